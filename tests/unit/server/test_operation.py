"""Log, ids, rates, turns, origins and deadlines of a server on a socket."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
from tests.unit.server.conftest import Running, Serve, wait_until

from mtad.api import BatchSession
from mtad.config import ServerOptions
from mtad.errors import ConfigError
from mtad.server.notes import RequestNote
from mtad.server.server_log import ServerLog

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "what zebra"}], "max_tokens": 6, "seed": 1}


def post(running: Running, body: Any, path: str = CHAT, **headers: str) -> requests.Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.post(running.url + path, json=body, headers=names, timeout=60)


def lines_of(path: Path, count: int) -> list[dict[str, Any]]:
    wait_until(lambda: path.exists() and path.read_text().count("\n") >= count)
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in found if line["message"] == "request"]


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_request_is_one_line_without_its_text(serve: Serve, tmp_path: Path, is_stream: bool) -> None:
    running = serve(log_file=str(tmp_path / "log"), log_format="json", keys={"me": "s3cret"})
    extra = {"stream": True, "stream_options": {"include_usage": True}} if is_stream else {}
    reply = post(running, BODY | extra, authorization="Bearer s3cret", x_request_id="abc-1")
    if is_stream:
        events = [json.loads(line[6:]) for line in reply.text.split("\n\n") if line.startswith("data: {")]
        usage, statistics = events[-1]["usage"], events[-2]["choices"][0]["mtad"]["statistics"]
    else:
        usage, statistics = reply.json()["usage"], reply.json()["choices"][0]["mtad"]["statistics"]
    [line] = lines_of(tmp_path / "log", 1)
    expected = {
        "request_id": "abc-1",
        "key": "me",
        "client": "127.0.0.1",
        "path": CHAT,
        "method": "POST",
        "status": 200,
    }
    assert {name: line[name] for name in expected} == expected
    assert line["prompt_tokens"] == usage["prompt_tokens"]
    assert line["answer_tokens"] == usage["completion_tokens"]
    assert line["tokens_per_call"] == pytest.approx(statistics["tokens_per_call"], abs=1e-3)
    assert line["finish_reasons"] == [statistics["finish_reason"]]
    assert 0 < line["first_token_s"] <= line["duration_s"]
    assert line["time"].endswith("Z")
    assert "zebra" not in (tmp_path / "log").read_text()
    assert "s3cret" not in (tmp_path / "log").read_text()


def test_prompts_are_logged_where_that_is_asked_for(serve: Serve, tmp_path: Path) -> None:
    running = serve(log_file=str(tmp_path / "log"), log_format="json", log_prompts=True)
    post(running, BODY)
    [line] = lines_of(tmp_path / "log", 1)
    assert line["prompts"] == [BODY["messages"]]


def test_refusals_are_logged_and_health_is_not(serve: Serve, tmp_path: Path) -> None:
    running = serve(log_file=str(tmp_path / "log"), log_format="json", keys={"me": "s3cret"})
    requests.get(f"{running.url}/health", timeout=20)
    post(running, BODY)
    post(running, {"messages": 3}, authorization="Bearer s3cret")
    requests.get(f"{running.url}/nothing", timeout=20)
    assert [line["status"] for line in lines_of(tmp_path / "log", 3)] == [401, 400, 404]


def test_a_client_that_leaves_is_logged_as_such(serve: Serve, tmp_path: Path) -> None:
    running = serve(log_file=str(tmp_path / "log"), log_format="json")
    body = BODY | {"stream": True, "max_tokens": 90, "ignore_eos": True}
    with requests.post(running.url + CHAT, json=body, stream=True, timeout=20) as reply:
        next(reply.iter_lines())
    [line] = lines_of(tmp_path / "log", 1)
    assert line["finish_reasons"] == ["cancelled"]
    assert running.service.num_open == 0


@pytest.mark.parametrize(("given", "is_kept"), [("abc-1.2:3", True), ("a b", False), ("x" * 129, False), ("", False)])
def test_ids_are_the_same_everywhere(serve: Serve, tmp_path: Path, given: str, is_kept: bool) -> None:
    running = serve(log_file=str(tmp_path / "log"), log_format="json")
    reply = post(running, BODY | {"temperature": -1}, x_request_id=given)
    found = reply.headers["x-request-id"]
    assert reply.json()["error"]["request_id"] == found
    assert lines_of(tmp_path / "log", 1)[0]["request_id"] == found
    assert (found == given) == is_kept
    assert len(found) >= 9


def test_text_lines_stay_one_line_each(tmp_path: Path) -> None:
    log = ServerLog(ServerOptions(log_file=str(tmp_path / "log"), log_prompts=True))
    log.request(RequestNote(request_id="a", path="/x y", status=200, prompts=[["one\ntwo"]]))
    log.request(RequestNote(request_id="b", path="/z", status=404))
    log.close()
    first, second = (tmp_path / "log").read_text().splitlines()
    assert " request_id=a " in first
    assert 'path="/x y"' in first
    assert second.split(" ", 1)[1].startswith(
        'info request request_id=b client="" method="" path=/z status=404 duration_s='
    )


def test_a_full_disk_loses_lines_and_nothing_else(
    serve: Serve, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log"
    path.symlink_to("/dev/full")
    running = serve(log_file=str(path), log_format="json")
    assert [post(running, BODY).status_code for _ in range(3)] == [200] * 3
    log = running.service.log
    assert log is not None
    wait_until(lambda: log.num_lost == 3)
    assert "mtad_lost_log_lines_total 3.0" in requests.get(f"{running.url}/metrics", timeout=20).text
    assert capfd.readouterr().err.count("the log cannot be written") == 1
    path.unlink()
    post(running, BODY, x_request_id="after")
    assert [line["request_id"] for line in lines_of(path, 1)] == ["after"]


def test_a_line_that_was_cut_short_does_not_spoil_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = ServerLog(ServerOptions(log_file=str(tmp_path / "log"), log_format="json"))
    write, room = os.write, iter([10, 0])

    def little(file: int, text: bytes) -> int:
        count = next(room, None)
        if count == 0:
            raise OSError(28, "No space left on device")
        return write(file, text[:count])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", little)
        log.request(RequestNote(request_id="first"))
        wait_until(lambda: log.num_lost == 1)
    log.request(RequestNote(request_id="second"))
    log.close()
    torn, whole = (tmp_path / "log").read_text().splitlines()
    assert len(torn) == 10
    assert json.loads(whole)["request_id"] == "second"


def test_a_file_that_is_moved_away_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = ServerLog(ServerOptions(log_file=str(path), log_format="json"))
    log.request(RequestNote(request_id="first"))
    wait_until(lambda: "first" in path.read_text())
    path.rename(tmp_path / "old")
    log.request(RequestNote(request_id="second"))
    log.close()
    assert "second" in path.read_text()
    assert "second" not in (tmp_path / "old").read_text()


def test_a_pipe_that_nobody_reads_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="cannot be written"):
        ServerLog(ServerOptions(log_file=str(path)))
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = ServerLog(ServerOptions(log_file=str(path)))
    for _ in range(2000):
        log.request(RequestNote(request_id="x" * 100))
    log.close()
    os.close(reader)
    assert log.num_lost > 100


def test_requests_have_a_rate_for_each_key(serve: Serve) -> None:
    running = serve(rate_limit=3, keys={"me": "one", "you": "two"})
    mine = [post(running, BODY, authorization="Bearer one") for _ in range(4)]
    assert [reply.status_code for reply in mine] == [200, 200, 200, 429]
    assert 10 <= int(mine[3].headers["retry-after"]) <= 20
    assert "too many requests" in mine[3].json()["error"]["message"]
    assert post(running, BODY, authorization="Bearer two").status_code == 200
    with pytest.raises(openai.RateLimitError):
        running.client("one").models.list()
    assert requests.get(f"{running.url}/health", timeout=20).status_code == 200


def test_after_the_wait_that_was_said_a_request_is_let_in(serve: Serve) -> None:
    running = serve(rate_limit=20)
    replies = [requests.get(f"{running.url}/v1/models", timeout=20) for _ in range(21)]
    assert replies[-1].status_code == 429
    time.sleep(int(replies[-1].headers["retry-after"]))
    assert requests.get(f"{running.url}/v1/models", timeout=20).status_code == 200


def test_tokens_have_a_rate_too(serve: Serve) -> None:
    running = serve(token_rate_limit=60)
    body = BODY | {"max_tokens": 40, "ignore_eos": True}
    first = post(running, body)
    used = first.json()["usage"]["total_tokens"]
    assert used > 60
    refused = post(running, body)
    needed = first.json()["usage"]["prompt_tokens"] + used - 60
    assert refused.status_code == 429
    assert needed - 20 <= int(refused.headers["retry-after"]) <= needed + 1
    text = requests.get(f"{running.url}/metrics", timeout=20).text
    assert 'mtad_rejected_requests_total{reason="token_rate"} 1.0' in text


def hold_steps(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """The engine takes no step until what is returned is called."""
    gate, step = threading.Event(), BatchSession.step

    def held(session: BatchSession) -> Any:
        assert gate.wait(30)
        return step(session)

    monkeypatch.setattr(BatchSession, "step", held)
    return gate.set


def test_a_key_that_floods_does_not_keep_others_waiting(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    running = serve(max_rows=1, keys={"flood": "one", "calm": "two"})
    release = hold_steps(monkeypatch)
    order: list[str] = []

    def ask(key: str) -> None:
        assert post(running, BODY, authorization=f"Bearer {key}").status_code == 200
        order.append(key)

    with ThreadPoolExecutor(12) as pool:
        floods = [pool.submit(ask, "one") for _ in range(10)]
        wait_until(lambda: running.service.num_open == 10)
        calm = [pool.submit(ask, "two") for _ in range(2)]
        wait_until(lambda: running.service.num_open == 12)
        release()
        for item in (*floods, *calm):
            item.result(60)
    assert [place for place, key in enumerate(order) if key == "two"][-1] <= 5, order


def test_cancelled_rows_of_a_full_batch_are_free_again(serve: Serve) -> None:
    running = serve(max_rows=2)
    body = BODY | {"stream": True, "max_tokens": 90, "ignore_eos": True}
    for _ in range(2):
        streams = [requests.post(running.url + CHAT, json=body, stream=True, timeout=20) for _ in range(2)]
        for stream in streams:
            next(stream.iter_lines())
        for stream in streams:
            stream.close()
        wait_until(lambda: running.service.num_open == 0)
    assert post(running, BODY).status_code == 200


def test_a_refusal_of_a_stream_has_its_status(serve: Serve) -> None:
    running = serve()
    reply = post(running, BODY | {"stream": True, "method": "mtjd"})
    assert reply.status_code == 400
    assert "mtjd" in reply.json()["error"]["message"]


def test_a_request_may_be_less_patient_than_the_server(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    running = serve()
    release = hold_steps(monkeypatch)
    refused = post(running, BODY | {"timeout": 0.1})
    assert refused.status_code == 408
    assert "its own timeout of 0.1 s" in refused.json()["error"]["message"]
    reply = post(running, BODY | {"stream": True, "timeout": 0.1})
    assert '"timeout_error"' in reply.text
    release()
    wait_until(lambda: running.service.num_open == 0)
    assert "timeout: Input should be greater than 0" in post(running, BODY | {"timeout": 0}).json()["error"]["message"]


def test_a_request_is_never_more_patient_than_the_server(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    running = serve(request_timeout=0.1)
    release = hold_steps(monkeypatch)
    assert post(running, BODY | {"timeout": 1000}).status_code == 504
    release()


def test_origins_are_let_in_by_name(serve: Serve) -> None:
    running = serve(cors_origin=("https://a.example",), keys={"me": "one"})
    preflight = {"origin": "https://a.example", "access-control-request-method": "POST"}
    preflight["access-control-request-headers"] = "authorization,content-type"
    reply = requests.options(running.url + CHAT, headers=preflight, timeout=20)
    assert reply.status_code == 200
    assert reply.headers["access-control-allow-origin"] == "https://a.example"
    reply = post(running, BODY, origin="https://a.example")
    assert reply.status_code == 401
    assert reply.headers["access-control-allow-origin"] == "https://a.example"
    assert "x-request-id" in reply.headers["access-control-expose-headers"].lower()
    other = requests.options(running.url + CHAT, headers=preflight | {"origin": "https://b.example"}, timeout=20)
    assert "access-control-allow-origin" not in other.headers


def test_no_origin_is_let_in_by_default(serve: Serve) -> None:
    reply = requests.get(f"{serve().url}/v1/models", headers={"origin": "https://a.example"}, timeout=20)
    assert "access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize("origin", ["example.org", "https://a.example/", "https://", "ftp://a"])
def test_what_is_no_origin_is_said(origin: str) -> None:
    with pytest.raises(ConfigError, match="cors_origin must be"):
        ServerOptions(cors_origin=(origin,))


@pytest.mark.parametrize("is_stream", [False, True])
def test_more_tokens_than_there_is_room_for_are_refused(serve: Serve, is_stream: bool) -> None:
    running = serve()
    reply = post(running, BODY | {"max_tokens": 119, "stream": is_stream})
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "max_tokens")
    room = 120 - reply_tokens(running)
    assert f"there is room for {room}" in error["message"]
    assert post(running, BODY | {"max_tokens": room, "max_completion_tokens": None}).status_code == 200
    assert running.service.num_open == 0


def reply_tokens(running: Running) -> int:
    count: int = post(running, {"messages": BODY["messages"]}, "/tokenize").json()["count"]
    return count


def test_a_body_of_another_type_is_told_what_was_expected(serve: Serve) -> None:
    running = serve()
    for headers in ({"content-type": "text/plain"}, {}):
        reply = requests.post(running.url + CHAT, data=json.dumps(BODY).encode(), headers=headers, timeout=20)
        assert reply.status_code == 400
        assert "expected the header content-type: application/json" in reply.json()["error"]["message"]


def raw(running: Running) -> socket.socket:
    host, port = running.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def test_a_body_that_does_not_come_is_given_up(serve: Serve) -> None:
    running = serve(body_timeout=0.2)
    with raw(running) as line:
        line.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"
        )
        assert line.recv(9999).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("head", [b"", b"GET /health HTTP/1.1\r\nhost: "])
def test_a_connection_without_a_request_is_closed(serve: Serve, head: bytes) -> None:
    running = serve(body_timeout=0.2)
    with raw(running) as line:
        line.sendall(head)
        assert line.recv(99) == b""


def test_a_long_answer_outlives_the_patience_for_requests(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    running = serve(body_timeout=1.0)
    release = hold_steps(monkeypatch)
    threading.Timer(2.5, release).start()
    assert post(running, BODY).status_code == 200


def test_a_client_that_reads_nothing_holds_nothing(serve: Serve) -> None:
    running = serve(request_timeout=1.0)
    host, port = running.url.removeprefix("http://").split(":")
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        line.connect((host, int(port)))
        # Every chunk carries much beside its text, so that no buffer holds the whole answer.
        body = json.dumps(
            BODY
            | {"stream": True, "n": 8, "max_tokens": 90, "ignore_eos": True, "logprobs": True, "top_logprobs": 20}
            | {"explain": True, "provenance": True}
        ).encode()
        head = (
            f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        line.sendall(head.encode() + body)
        wait_until(lambda: running.service.num_open == 8)
        wait_until(lambda: running.service.num_open == 0)
    assert post(running, BODY | {"timeout": 1.0}).status_code in (200, 408, 504)
