"""The official client and plain requests against a server on a socket."""

import json
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from tests.unit.server.conftest import Running, Serve, wait_until

from mtad.api import BatchSession
from mtad.config import GenerationOptions

QUESTION: list[Any] = [{"role": "user", "content": "why"}]


def ask(running: Running, **settings: Any) -> Any:
    return running.client().chat.completions.create(model="tiny", messages=QUESTION, **settings)


def post(running: Running, path: str, body: Any, **options: Any) -> requests.Response:
    data = body if isinstance(body, bytes) else json.dumps(body)
    headers = {"content-type": "application/json"}
    return requests.post(running.url + path, data=data, headers=headers, timeout=60, **options)


def refusal(running: Running, body: Any, path: str = "/v1/chat/completions") -> str:
    reply = post(running, path, body)
    assert reply.status_code == 400, reply.text
    message: str = reply.json()["error"]["message"]
    assert "\n" not in message
    return message


def test_a_chat_is_the_engines_own_answer(serve: Serve) -> None:
    running = serve()
    reply = ask(running, seed=3, max_tokens=9)
    assert reply.choices[0].message.role == "assistant"
    running.server.should_exit = True
    wait_until(lambda: running.engine._lock.acquire(blocking=False))
    running.engine._lock.release()
    result = running.engine.generate([QUESTION], GenerationOptions(max_new_tokens=9, seed=3))[0]
    assert reply.choices[0].message.content == result.text
    assert reply.usage.completion_tokens == result.stats.num_tokens
    assert reply.usage.prompt_tokens == result.stats.num_prompt_tokens
    assert reply.choices[0].mtad["statistics"]["target_calls"] == result.stats.target_calls
    assert reply.mtad["is_lossless"] is False


def test_a_stream_has_the_same_text_and_usage_last(serve: Serve) -> None:
    running = serve()
    whole = ask(running, seed=3)
    chunks = list(ask(running, seed=3, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(item.choices[0].delta.content or "" for item in chunks[:-1]) == whole.choices[0].message.content
    assert [item.choices[0].finish_reason for item in chunks[-2:-1]] == [whole.choices[0].finish_reason]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage


def test_a_seed_gives_the_same_text_alone_and_under_load(serve: Serve) -> None:
    running = serve(max_rows=3)
    alone = [ask(running, seed=seed).choices[0].message.content for seed in range(6)]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda seed: ask(running, seed=seed % 6).choices[0].message.content, range(24)))
    assert together == alone * 4


def test_a_server_with_a_seed_gives_the_same_texts_in_the_same_order(serve: Serve) -> None:
    def three(running: Running) -> list[tuple[int, str | None]]:
        choices = [ask(running).choices[0] for _ in range(3)]
        return [(choice.mtad["statistics"]["seed"], choice.message.content) for choice in choices]

    first, again, other = (three(serve(seed=seed)) for seed in (5, 5, 6))
    assert first == again
    assert not {seed for seed, _ in first} & {seed for seed, _ in other}
    assert len({seed for seed, _ in first}) == 3
    assert ask(serve(seed=5), seed=first[1][0]).choices[0].message.content == first[1][1]


def test_methods_and_dials_come_with_the_request(serve: Serve) -> None:
    running = serve()
    found = {
        name: ask(running, seed=1, temperature=0, extra_body={"method": name}).choices[0]
        for name in ("autoregressive", "speculative", "mmtad")
    }
    assert found["autoregressive"].message.content == found["speculative"].message.content
    assert {name: item.mtad["statistics"]["method"] for name, item in found.items()} == {name: name for name in found}
    reply = ask(running, extra_body={"method": "speculative", "gamma": 2})
    assert reply.mtad["is_lossless"] is True
    assert len(reply.choices[0].mtad["statistics"]["acceptance_by_depth"]) == 2


def test_log_probabilities_are_the_targets(serve: Serve) -> None:
    running = serve()
    reply = ask(running, seed=2, logprobs=True, top_logprobs=2, extra_body={"provenance": True})
    content = reply.choices[0].logprobs.content
    assert [item.logprob for item in content] == reply.choices[0].mtad["log_probs"]
    assert all(len(item.top_logprobs) == 2 for item in content)
    assert all(item.top_logprobs[0].logprob >= item.logprob - 1e-9 for item in content)
    legacy = running.client().completions.create(model="tiny", prompt="abc", logprobs=1, max_tokens=4)
    assert legacy.choices[0].logprobs is not None
    assert len(legacy.choices[0].logprobs.tokens or ()) == 4


def test_several_answers_and_prompts(serve: Serve) -> None:
    running = serve()
    both = ask(running, seed=5, n=2)
    assert [item.index for item in both.choices] == [0, 1]
    assert both.choices[1].message.content == ask(running, seed=6).choices[0].message.content
    pair = running.client().completions.create(model="tiny", prompt=["ab", "cd"], max_tokens=3, seed=0)
    assert len(pair.choices) == 2
    assert pair.usage is not None
    assert pair.usage.prompt_tokens == 4


def test_a_stop_text_ends_the_answer_before_it(serve: Serve) -> None:
    running = serve()
    text = ask(running, seed=3).choices[0].message.content
    reply = ask(running, seed=3, stop=[text[4:6]]).choices[0]
    assert reply.finish_reason == "stop"
    assert reply.message.content == text[: text.index(text[4:6])]


def test_a_stream_explains_its_steps(serve: Serve) -> None:
    running = serve()
    chunks = list(ask(running, stream=True, extra_body={"explain": True, "provenance": True}))
    pieces = [item.choices[0].mtad for item in chunks if item.choices and hasattr(item.choices[0], "mtad")]
    steps = [piece["step"] for piece in pieces]
    assert all(len(step["tokens"]) == len(step["parents"]) for step in steps)
    assert all(set(piece["provenance"]) <= {"drafted", "target"} for piece in pieces)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "the body is not JSON"),
        (b"\xff\xfe", "the body is not JSON"),
        (b'{"messages": "\xff"}', "the body is not JSON"),
        ([], "the body"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": 3}]}, "content"),
        ({"messages": QUESTION, "tools": []}, "tools: Extra inputs"),
        ({"messages": QUESTION, "temperature": "hot"}, "temperature"),
        ({"messages": QUESTION, "temperature": -1}, "temperature must be a number >= 0, got -1"),
        ({"messages": QUESTION, "grammar": "/etc/passwd"}, "grammar: Extra inputs"),
        ({"messages": QUESTION, "method": "magic"}, "method must be one of"),
        ({"messages": QUESTION, "method": "mtjd"}, "mtjd"),
        ({"messages": QUESTION, "n": 100}, "got 100 answers in one request, expected at most 8"),
        ({"messages": QUESTION, "top_logprobs": 3}, "top_logprobs needs logprobs"),
        ({"messages": QUESTION, "explain": True}, "explain needs a stream"),
        ({"messages": QUESTION, "max_tokens": 0}, "max_new_tokens must be a whole number >= 1, got 0"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "no tools here"),
        ({"messages": [{"role": "user", "content": "a" * 500}]}, "5"),
    ],
)
def test_bad_requests_get_one_sentence(serve: Serve, body: Any, message: str) -> None:
    assert message in refusal(serve(), body)


def test_what_is_not_there_is_said(serve: Serve) -> None:
    running = serve()
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt' here; use 'tiny'"):
        running.client().chat.completions.create(model="gpt", messages=QUESTION)
    assert requests.get(f"{running.url}/nothing", timeout=20).json()["error"]["type"] == "not_found_error"
    assert [item.id for item in running.client().models.list()] == ["tiny"]


def test_tokens_go_there_and_back(serve: Serve) -> None:
    running = serve()
    tokens = post(running, "/tokenize", {"prompt": "hello"}).json()
    assert tokens["count"] == 5
    assert post(running, "/detokenize", {"tokens": tokens["tokens"]}).json() == {"prompt": "hello"}
    assert "below 61" in refusal(running, {"tokens": [999]}, "/detokenize")
    assert "either prompt or messages" in refusal(running, {}, "/tokenize")


def test_keys_are_asked_for(serve: Serve) -> None:
    running = serve(keys={"me": "s3cret"})
    with pytest.raises(openai.AuthenticationError, match="no valid API key"):
        ask(running)
    client = running.client("s3cret")
    assert client.chat.completions.create(model="tiny", messages=QUESTION).choices
    assert requests.get(f"{running.url}/health", timeout=20).json() == {"status": "ok"}


@pytest.mark.parametrize("is_chunked", [False, True])
def test_long_bodies_are_refused(serve: Serve, is_chunked: bool) -> None:
    running = serve(max_body_bytes=2000)
    body = b"x" * 100_000
    try:
        reply = requests.post(f"{running.url}/v1/completions", data=iter([body]) if is_chunked else body, timeout=20)
        assert reply.status_code == 413
        assert "expected at most 2000" in reply.json()["error"]["message"]
    except requests.ConnectionError:  # closed before the body was sent whole
        pass
    assert ask(running).choices


def test_too_many_answers_are_told_to_come_back(serve: Serve) -> None:
    running = serve(max_open=1)
    assert ask(running).choices
    with running.service.open.hold("127.0.0.1", 1):
        reply = post(running, "/v1/chat/completions", {"messages": QUESTION})
        assert (reply.status_code, reply.headers["retry-after"]) == (429, "2")
    with running.service.open.hold("somebody else", 1):
        assert ask(running).choices


def test_a_client_that_leaves_frees_its_row(serve: Serve) -> None:
    running = serve()
    for is_stream in (True, False):
        body = json.dumps({"messages": QUESTION, "stream": is_stream, "max_tokens": 90, "ignore_eos": True})
        host, port = running.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as line:
            head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            head += f"content-length: {len(body)}\r\n\r\n"
            line.sendall((head + body).encode())
            wait_until(lambda: running.service.worker.num_running == 1)
        wait_until(lambda: running.service.worker.num_running == 0 and running.service.num_open == 0)


def test_a_failed_engine_is_said_and_comes_back(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    running = serve()

    def fail(_: Any) -> Any:
        raise RuntimeError("kernel")

    with monkeypatch.context() as patch:
        patch.setattr(BatchSession, "step", fail)
        with pytest.raises(openai.InternalServerError, match="the engine failed"):
            ask(running)
        with pytest.raises(openai.APIError, match="the engine failed"):
            list(ask(running, stream=True))
    assert ask(running).choices[0].message.content is not None
    assert running.service.worker.counts.num_failures == 2


def test_a_deadline_ends_a_request(serve: Serve) -> None:
    running = serve(request_timeout=0.001)
    reply = post(running, "/v1/chat/completions", {"messages": QUESTION, "max_tokens": 90})
    assert reply.status_code == 504
    wait_until(lambda: running.service.worker.num_running == 0)


def test_the_first_signal_drains(serve: Serve) -> None:
    running = serve()
    stream = ask(running, stream=True, max_tokens=90, extra_body={"ignore_eos": True})
    next(stream)
    running.server.handle_exit(signal.SIGTERM, None)
    assert post(running, "/v1/chat/completions", {"messages": QUESTION}).status_code == 503
    assert requests.get(f"{running.url}/ready", timeout=20).status_code == 503
    assert list(stream)[-1].choices[0].finish_reason == "length"
    wait_until(lambda: running.server.should_exit)


def test_the_metrics_can_be_read(serve: Serve) -> None:
    running = serve()
    reply = ask(running)
    families = {
        family.name: family
        for family in text_string_to_metric_families(requests.get(f"{running.url}/metrics", timeout=20).text)
    }
    tokens = sum(item.value for item in families["mtad_tokens"].samples if item.name == "mtad_tokens_total")
    assert tokens == reply.usage.completion_tokens
    counted = {
        item.labels["path"]: item.value for item in families["mtad_replies"].samples if item.name[-6:] == "_total"
    }
    assert counted == {"/v1/chat/completions": 1}
    assert {"mtad_running_rows", "mtad_inter_piece_seconds", "mtad_kept_levels"} <= set(families)


def test_a_number_that_somebody_else_keeps_can_be_shown(serve: Serve) -> None:
    running = serve()
    running.service.metrics.watch("mtad_energy_joules", "Energy.", lambda: 12.5)
    assert "mtad_energy_joules_total 12.5" in requests.get(f"{running.url}/metrics", timeout=20).text


def test_the_metrics_agree_with_the_answers(serve: Serve) -> None:
    running = serve(max_rows=2)
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda seed: ask(running, seed=seed, extra_body={"ignore_eos": True}), range(4)))
    found = {
        (item.name, *item.labels.values()): item.value
        for family in text_string_to_metric_families(requests.get(f"{running.url}/metrics", timeout=20).text)
        for item in family.samples
    }
    statistics = [reply.choices[0].mtad["statistics"] for reply in replies]
    calls, tokens = sum(item["target_calls"] for item in statistics), 4 * 12
    assert found["mtad_target_calls_total",] == found["mtad_step_rows_total",] == calls
    assert calls / 2 <= found["mtad_steps_total",] < calls
    assert found["mtad_tokens_total", "drafted"] + found["mtad_tokens_total", "target"] == tokens
    assert found["mtad_time_to_first_token_seconds_count",] == found["mtad_started_answers_total",] == 4
    assert found["mtad_inter_piece_seconds_count",] == calls - 4
    assert calls - 4 <= found["mtad_inter_token_seconds_count",] < tokens
    assert found["mtad_inter_token_seconds_sum",] == pytest.approx(found["mtad_inter_piece_seconds_sum",])
    for depth in (1, 2, 3):
        kept, drafted = found["mtad_kept_levels_total", str(depth)], found["mtad_drafted_levels_total", str(depth)]
        shares = [item["acceptance_by_depth"][depth - 1] * item["target_calls"] for item in statistics]
        assert drafted == calls
        assert kept == pytest.approx(sum(shares))
    assert found["mtad_answers_total", "length"] == 4
    assert (found["mtad_rows",], found["mtad_waiting_answers",], found["mtad_cache_room_tokens",]) == (2, 0, 240)
