"""`mtad bench --server` against a server on a socket."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit.server.conftest import Serve, wait_until

from mtad.bench.server_client import ServerClient
from mtad.bench.server_load import Load, arrivals
from mtad.cli.main import main
from mtad.errors import ConfigError


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(["bench", *words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_closed_and_open_loops_become_a_record_and_a_table(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    running = serve(max_rows=4)
    path = tmp_path / "load.json"
    words = ["--server", running.url, "--streams", "1", "4", "--rates", "50", "--requests", "4", "--new-tokens", "8"]
    status, out, _ = run(capsys, *words, "--gamma", "2", "--record", str(path), "--json")
    assert status == 0
    rows = json.loads(out)["rows"]
    assert [row["label"] for row in rows] == ["1 stream", "4 streams", "50 a second"]
    assert all((row["num_requests"], row["num_lost"], row["num_refused"]) == (4, 0, 0) for row in rows)
    assert rows[0]["rows_per_step"] == 1.0
    assert 1.0 < rows[1]["rows_per_step"] <= 4.0
    assert rows[0]["ratio"] == 1.0
    record = json.loads(path.read_text())
    assert (record["kind"], record["model"], record["fields"]) == ("server_load", "tiny", {"gamma": 2})
    for item in record["samples"]:
        for reply in item["replies"]:
            assert reply["num_tokens"] == 8
            assert 0 < reply["first_s"] < reply["total_s"]
            assert sum(count for _, count in reply["gaps"]) < 8
            assert len(reply["gaps"]) + 1 == reply["target_calls"]
    more = ["--gamma", "2", "--record", str(path), "--rates", "50", "60", "--json"]
    status, out, _ = run(capsys, *words, *more)
    assert status == 0
    assert [row["label"] for row in json.loads(out)["rows"]][2:] == ["50 a second", "60 a second"]
    again = json.loads(path.read_text())
    assert again["samples"][:3] == record["samples"]
    assert len(again["continued"]) == 1
    status, out, err = run(capsys, *words, "--record", str(path))
    assert (status, out) == (2, "")
    assert "its fields differs" in err


def test_prompts_have_the_length_that_was_asked_for(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    running = serve()
    path = tmp_path / "load.json"
    words = ["--streams", "2", "--requests", "2", "--new-tokens", "2", "--prompt-tokens", "40", "--record", str(path)]
    assert run(capsys, "--server", running.url, *words)[0] == 0
    [sample] = json.loads(path.read_text())["samples"]
    assert all(reply["num_prompt_tokens"] >= 40 for reply in sample["replies"])


def test_what_is_refused_and_what_is_lost_are_told_apart(serve: Serve) -> None:
    running = serve(rate_limit=1)
    client = ServerClient(running.url)
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    first, second = client.stream(body), client.stream(body)
    assert (first.status, first.error) == (200, None)
    assert second.status == 429
    assert "too many requests" in str(second.error)
    running.server.should_exit = True
    wait_until(lambda: client.stream(body).status == 0)
    gone = client.stream(body)
    assert gone.error is not None


def test_a_stream_that_breaks_is_not_whole(serve: Serve) -> None:
    running = serve(request_timeout=0.001)
    reply = ServerClient(running.url).stream({"messages": [{"role": "user", "content": "hi"}]})
    assert reply.error is not None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--server", "http://127.0.0.1:1"], "does not answer /v1/models"),
        (["--server", "ftp://x"], "server must be an address"),
        (["--server", "x", "--streams", "0"], "streams must be a whole number >= 1"),
        (["--server", "x", "--rates", "0"], "rates must be a number > 0"),
        (["--streams", "3"], "--streams is for load on a server"),
    ],
)
def test_mistakes_are_said(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, *words)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_arrivals_have_the_rate_and_no_pattern() -> None:
    load = Load(streams=None, rate=4.0, num_requests=2000, prompt_tokens=0, new_tokens=1, temperature=1.0)
    times = arrivals(load)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert times == arrivals(load)
    assert sum(gaps) / len(gaps) == pytest.approx(0.25, rel=0.1)
    assert sum(gap > 0.25 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.04)


def test_no_address_is_an_error() -> None:
    with pytest.raises(ConfigError, match="server must be an address"):
        ServerClient("http://")
