"""Answers are rated once; silence and nonsense are retried and then marked."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from mtad.errors import JudgeError
from mtad.evaluation.judging import Endpoint, judge_answers, parse_rating

ENTRY = {
    "task": "mt_bench", "item": "101", "group": "math", "contender": "mmtad", "seed": 0, "start": 0,
    "turns": ["1+1?", "and 2+2?"], "outputs": ["two", "four"],
}  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "mt_bench"
    folder.mkdir()
    names = ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn")
    shapes = (
        "{question} {answer}",
        "{question} {ref_answer_1} {answer}",
        "{question_2} {answer_2}",
        "{ref_answer_2} {answer_2}",
    )
    lines = [{"name": n, "system_prompt": "Rate.", "prompt_template": s} for n, s in zip(names, shapes, strict=True)]
    (folder / "judge_prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    reference = {"question_id": 101, "choices": [{"turns": ["2", "4"]}]}
    (folder / "reference_gpt-4.jsonl").write_text(json.dumps(reference))
    return tmp_path


def test_judgements_are_kept(data: Path) -> None:
    asked: list[str] = []

    def ask(request: dict[str, Any]) -> str:
        asked.append(request["messages"][1]["content"])
        return "Good. Rating: [[7]]"

    log = data / "judgements.jsonl"
    first = judge_answers([ENTRY], data, "judge", ask, log)
    assert asked == ["1+1? 2 two", "4 four"]
    assert [(found["turn"], found["rating"]) for found in first] == [(1, 7.0), (2, 7.0)]
    assert judge_answers([ENTRY], data, "judge", ask, log) == first
    assert len(asked) == 2


def test_nonsense_is_retried_and_marked(data: Path) -> None:
    replies: Iterator[str | JudgeError] = iter(["what?", JudgeError("silent"), "[[9]]", "a", "b", "[[99]]"])

    def ask(request: dict[str, Any]) -> str:
        reply = next(replies)
        if isinstance(reply, JudgeError):
            raise reply
        return reply

    found = judge_answers([ENTRY], data, "judge", ask, data / "log.jsonl", wait_s=0)
    assert [one["rating"] for one in found] == [9.0, None]
    assert found[1]["problem"] == "no rating in the judgement"


class Handler(BaseHTTPRequestHandler):
    reply: bytes = b""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.reply)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def test_an_endpoint_is_asked_over_http(server: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = Endpoint(url=f"http://127.0.0.1:{server.server_port}/v1", key="k", timeout_s=5)
    monkeypatch.setattr(Handler, "reply", json.dumps({"choices": [{"message": {"content": "[[3]]"}}]}).encode())
    assert endpoint.ask({"messages": []}) == "[[3]]"
    for reply in (b"nonsense", b"{}", b'{"choices": [{"message": {"content": 3}}]}'):
        monkeypatch.setattr(Handler, "reply", reply)
        with pytest.raises(JudgeError, match=r"the judge at .* gave no"):
            endpoint.ask({"messages": []})
    with pytest.raises(JudgeError, match="check --endpoint"):
        Endpoint(url="http://127.0.0.1:9", timeout_s=1).ask({})


@pytest.mark.parametrize(("text", "rating"), [("[[8]]", 8.0), ("[5.5]", 5.5), ("8", None), ("[[0]]", None)])
def test_ratings_are_found(text: str, rating: float | None) -> None:
    assert parse_rating(text) == rating
