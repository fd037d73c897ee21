"""The draft of an iteration as a drawing, in words and as a table."""

import json
from typing import Any

import pytest
import requests
from playwright.sync_api import Page, expect
from tests.browser.conftest import OpenPage
from tests.browser.pages import posted, run

pytestmark = pytest.mark.browser


def run_with_steps(page: Page, **dials: Any) -> list[dict[str, Any]]:
    """Run, and return what the server says of every iteration when it is asked the same again."""
    bodies = posted(page)
    run(page, **dials)
    url, body = bodies[0]
    lines = [line.removeprefix("data: ") for line in requests.post(url, json=body, timeout=60).text.split("\n\n")]
    chunks = [json.loads(line) for line in lines if line.startswith("{")]
    return [chunk["choices"][0]["mtad"]["step"] for chunk in chunks if "mtad" in chunk["choices"][0]]


def show(page: Page, iteration: int) -> None:
    page.locator("#iteration").fill(str(iteration))


def test_the_drawing_has_every_node_and_marks_what_was_kept(open_page: OpenPage) -> None:
    page = open_page()
    steps = run_with_steps(page, seed=2, max_new_tokens=40, gamma=4, beam_width=3)
    assert {len(step["kept_path"]) for step in steps} >= {0, 2}
    for number, step in enumerate(steps[:6], 1):
        show(page, number)
        expect(page.locator("#iteration-number")).to_have_text(f"{number} of {len(steps)}")
        assert page.locator("#tree .node.drafted").count() == len(step["tokens"])
        assert page.locator("#tree .node.kept").count() == len(step["kept_path"])
        assert page.locator("#tree .node:has-text('\u2605')").count() == len(step["winner_path"])
        bar = -0.6931471805599453
        passing = sum(ratio is not None and ratio > bar for ratio in step["joint_log_ratios"])
        assert page.locator("#tree .node.passes").count() == passing
        assert page.locator("#tree .node.next").count() == 1
        words = page.locator("#tree-summary").inner_text()
        assert words.startswith(f"Kept {len(step['kept_path']) or 'nothing'} of {max(step['depths'])} levels")


def test_nodes_say_what_was_decided_on_pointing_and_by_keyboard(open_page: OpenPage) -> None:
    page = open_page()
    steps = run_with_steps(page, seed=2, max_new_tokens=40)
    chosen = next(number for number, step in enumerate(steps, 1) if len(step["kept_path"]) == 2)
    show(page, chosen)
    detail = page.locator("#node-detail")
    page.locator("#tree .node.kept").first.hover()
    expect(detail).to_contain_text("passes. Kept.")
    page.locator("#tree .node.root").focus()
    expect(detail).to_contain_text("The text so far ends with")
    page.keyboard.press("ArrowRight")
    expect(detail).to_contain_text("at depth 1")
    expect(detail).to_contain_text("log \u03c4 \u22120.69")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    expect(detail).to_contain_text("at depth 2")
    page.keyboard.press("Home")
    expect(page.locator("#tree .node.root")).to_be_focused()
    labels = page.locator("#tree .node.drafted").evaluate_all("nodes => nodes.map(node => node.ariaLabel)")
    assert all("passes" in label or "fails" in label for label in labels)


def test_a_table_says_the_same(open_page: OpenPage) -> None:
    page = open_page()
    step = run_with_steps(page, seed=2, max_new_tokens=40)[0]
    show(page, 1)
    page.click("#table-part summary")
    rows = page.locator("#tree-table tbody tr")
    assert rows.count() == len(step["tokens"])
    cells = [row.locator("td").all_inner_texts() for row in rows.all()]
    assert [cell[0] for cell in cells] == [str(depth) for depth in step["depths"]]
    assert [number for number, cell in enumerate(cells) if cell[6] == "yes"] == sorted(step["kept_path"])
    assert [number for number, cell in enumerate(cells) if cell[7] == "yes"] == sorted(step["winner_path"])


def test_iterations_are_walked_through_by_keyboard_and_by_tokens(open_page: OpenPage) -> None:
    page = open_page()
    steps = run_with_steps(page, seed=2, max_new_tokens=40)
    number = page.locator("#iteration-number")
    expect(number).to_have_text(f"{len(steps)} of {len(steps)}")
    expect(page.locator("#next")).to_be_disabled()
    page.focus("#iteration")
    page.keyboard.press("Home")
    expect(number).to_have_text(f"1 of {len(steps)}")
    page.keyboard.press("ArrowRight")
    expect(number).to_have_text(f"2 of {len(steps)}")
    page.click("#previous")
    expect(number).to_have_text(f"1 of {len(steps)}")
    first = len(steps[0]["kept_path"]) + 1
    tokens = page.locator(".tokens .token")
    tokens.nth(first).click()
    expect(number).to_have_text(f"2 of {len(steps)}")
    selected = page.locator(".token[aria-selected=true]")
    expect(selected).to_have_count(len(steps[1]["kept_path"]) + 1)
    page.keyboard.press("Home")
    expect(tokens.first).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(tokens.nth(first)).to_be_focused()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    expect(number).to_have_text(f"1 of {len(steps)}")


def test_a_token_tells_its_probability_to_pointers_and_keyboards(open_page: OpenPage) -> None:
    page = open_page()
    run(page, seed=2, max_new_tokens=20)
    tooltip = page.locator("#tooltip")
    page.locator(".tokens .token").nth(4).hover()
    expect(tooltip).to_contain_text("log-probability \u2212")
    expect(tooltip).to_contain_text("Likeliest here")
    page.mouse.move(0, 0)
    expect(tooltip).to_be_hidden()
    page.locator(".tokens .token").first.focus()
    page.keyboard.press("ArrowRight")
    expect(tooltip).to_be_visible()
    expect(page.locator(".tokens .token").nth(1)).to_have_attribute("aria-describedby", "tooltip")
    page.keyboard.press("Escape")
    expect(tooltip).to_be_hidden()


def test_other_rules_show_their_drafts_without_a_verdict_of_the_joint_rule(open_page: OpenPage) -> None:
    page = open_page()
    run(page, method="speculative", seed=1, max_new_tokens=20)
    expect(page.locator("#tree-summary")).to_contain_text("The rule token_rejection decides")
    assert page.locator("#tree .passes, #tree .fails").count() == 0
    assert page.locator("#tree .node.drafted").count() == 3


def test_without_explanations_there_is_no_tree(open_page: OpenPage) -> None:
    page = open_page()
    page.uncheck("#explain")
    run(page, max_new_tokens=8)
    expect(page.locator("#statistics-part")).to_be_visible()
    expect(page.locator("#tree-part")).to_be_hidden()
    assert page.locator(".chart").count() == 3
