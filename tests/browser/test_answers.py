"""Answers that stream, stop and stand beside each other."""

import json
import shlex
from typing import Any

import pytest
import requests
from playwright.sync_api import expect
from tests.browser.conftest import OpenPage
from tests.browser.pages import answer, figure, fill, finish, posted, run
from tests.unit.server.conftest import Running, wait_until

pytestmark = pytest.mark.browser


def test_an_answer_is_the_servers_own_and_every_token_says_where_it_comes_from(
    open_page: OpenPage, running: Running
) -> None:
    page = open_page()
    run(page, seed=3, max_new_tokens=30)
    messages = [{"role": "user", "content": "why is it so"}]
    body: Any = {"messages": messages, "seed": 3, "max_tokens": 30, "provenance": True}
    choice = requests.post(running.url + "/v1/chat/completions", json=body, timeout=60).json()["choices"][0]
    assert answer(page) == choice["message"]["content"]
    kinds = page.locator(".tokens .token").evaluate_all("nodes => nodes.map(node => node.classList[1])")
    assert kinds == choice["mtad"]["provenance"]
    assert {"drafted", "target"} == set(kinds)
    assert page.locator(".tokens").inner_text().replace("\n", "") == answer(page).replace("\n", "")
    statistics = choice["mtad"]["statistics"]
    assert figure(page, "tokens_per_call") == f"{statistics['tokens_per_call']:.2f}"
    assert figure(page, "perplexity") == f"{statistics['perplexity']:.2f}"
    assert figure(page, "law") == "changed (lossy)"
    assert figure(page, "end") == "limit of tokens"
    assert figure(page, "seed") == "3"
    expect(page.locator("#status")).to_have_text(f"mmtad done: 30 tokens in {statistics['target_calls']} calls.")


def test_tokens_come_one_iteration_after_the_other_and_escape_stops_them(open_page: OpenPage, running: Running) -> None:
    page = open_page()
    fill(page, max_new_tokens=1500)
    page.focus("#prompt")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".tokens .token").nth(12)).to_be_attached()
    expect(page.locator("#stop")).to_be_enabled()
    assert running.service.num_open == 1
    page.keyboard.press("Escape")
    finish(page)
    expect(page.locator("#status")).to_contain_text("mmtad stopped")
    assert figure(page, "end") == "stopped here"
    assert 12 < int(figure(page, "num_tokens")) < 1500
    wait_until(lambda: running.service.num_open == 0)


def test_the_stop_button_stops_too(open_page: OpenPage, running: Running) -> None:
    page = open_page()
    fill(page, max_new_tokens=1500, method="autoregressive")
    page.click("#run")
    expect(page.locator(".tokens .token").nth(3)).to_be_attached()
    page.click("#stop")
    finish(page)
    wait_until(lambda: running.service.num_open == 0)


def test_two_methods_run_at_once_with_one_seed(open_page: OpenPage) -> None:
    page = open_page()
    page.check("#compare")
    run(page, max_new_tokens=20, seed="", second_method="autoregressive")
    expect(page.locator(".answer")).to_have_count(2)
    calls = [int(figure(page, "target_calls", column)) for column in range(2)]
    assert calls[0] < calls[1] == 20
    assert figure(page, "target_calls", 2) == f"{calls[0] / calls[1]:.2f}\u00d7"
    assert [figure(page, "law", column) for column in range(2)] == ["changed (lossy)", "kept (lossless)"]
    assert figure(page, "seed", 0) == figure(page, "seed", 1) != ""
    assert page.locator("#statistics thead th").all_inner_texts() == ["mmtad", "autoregressive", "first / second"]
    # The chart of speeds has no points where all pieces come at one moment; that of tokens per call always has both.
    expect(page.locator(".chart").first.locator(".line")).to_have_count(2)
    page.check("#tree-side [value='1']")
    expect(page.locator("#tree-summary")).to_contain_text("Nothing was drafted")


def test_one_method_at_two_thresholds(open_page: OpenPage) -> None:
    page = open_page()
    page.check("#compare")
    run(page, threshold=1, second_method="mmtad", second_threshold=0.001, max_new_tokens=20)
    strict, loose = (float(figure(page, "tokens_per_call", column)) for column in range(2))
    assert strict < loose


def test_raw_text_and_a_system_message_are_sent_as_such(open_page: OpenPage) -> None:
    page = open_page()
    bodies = posted(page)
    page.click("#system-part summary")
    run(page, system="be brief", max_new_tokens=5)
    page.check("[name=mode][value=raw]")
    run(page, "abc", max_new_tokens=5)
    assert [url.split("/v1/")[1] for url, _ in bodies] == ["chat/completions", "completions"]
    assert bodies[0][1]["messages"][0] == {"role": "system", "content": "be brief"}
    assert bodies[1][1]["prompt"] == "abc"
    assert page.locator(".tokens .token").count() == 5


def test_the_copied_command_is_the_request(open_page: OpenPage) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    bodies = posted(page)
    run(page, "why isn't it", max_new_tokens=4)
    page.click("#copy-curl")
    expect(page.locator("#copy-curl")).to_have_text("Copied")
    words = shlex.split(page.evaluate("() => navigator.clipboard.readText()").replace("\\\n", " "))
    assert json.loads(words[words.index("-d") + 1]) == bodies[0][1]
    page.click(".answer button")
    expect(page.locator(".answer button")).to_have_text("Copied")
    assert page.evaluate("() => navigator.clipboard.readText()") == answer(page)


FLOWS: list[tuple[list[tuple[str, list[str]]], list[tuple[str, int]]]] = [
    ([("a b", ["a", " b"])], [("a", 1), (" b", 1)]),
    ([("", ["\ufffd"]), ("", ["\ufffd"]), ("é!", ["!"])], [("é", 2), ("!", 1)]),
    ([("", ["<eos>"])], [("", 1)]),
    ([("x", ["<tag>", "x"])], [("", 1), ("x", 1)]),
    ([("Two", ["Two"]), (" words", ["words"])], [("Two", 1), (" words", 1)]),
    ([("wo", ["word"]), ("rd", [])], [("word", 1)]),
    ([("", ["\ufffd"]), ("é", ["\ufffd"])], [("é", 2)]),
]


def test_text_is_laid_over_its_tokens(open_page: OpenPage) -> None:
    found = open_page().evaluate(
        """async (flows) => {
            const { TextFlow } = await import("./playground/flow.js");
            return flows.map((pieces) => {
                const flow = new TextFlow();
                const parts = pieces.flatMap(([text, tokens]) => flow.add(text, tokens.map((text) => ({ text }))));
                return [...parts, ...flow.finish()].map(({ text, tokens }) => [text, tokens.length]);
            });
        }""",
        [pieces for pieces, _ in FLOWS],
    )
    assert found == [[list(part) for part in parts] for _, parts in FLOWS]
