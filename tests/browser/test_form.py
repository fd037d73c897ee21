"""The form: refusals at their field, keys, settings in the address, and what every visitor can reach and read."""

from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect
from tests.browser.conftest import OpenPage
from tests.browser.pages import fill, finish, run
from tests.unit.server.conftest import Running

pytestmark = pytest.mark.browser

# Elements with text, by selector, whose contrast is computed.
READ = (
    "h1, h1 span, label, .hint, summary, button:not(:disabled), input, select, textarea, legend, #status, .legend li, "
    ".token, .state, dt, dd, th, td, .summary, .detail, figcaption b, .alert, .error, .key, #tooltip p, caption"
)
CONTRAST = """(nodes) => {
    const parse = (text) => {
        const numbers = text.match(/[\\d.]+/g).map(Number);
        return text.startsWith("color(") ? numbers.map((value, at) => (at < 3 ? value * 255 : value)) : numbers;
    };
    const light = (color) => color.slice(0, 3).map((value) => value / 255)
        .map((value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
        .reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);
    const ground = (node) => {
        const color = parse(getComputedStyle(node).backgroundColor);
        return color.length < 4 || color[3] === 1 ? color : ground(node.parentElement);
    };
    return nodes.filter((node) => node.checkVisibility() && node.textContent.trim()).map((node) => {
        const [one, other] = [light(parse(getComputedStyle(node).color)), light(ground(node))];
        const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
        return [node.tagName + "." + node.className, ratio];
    });
}"""
NAMES = """() => {
    const controls = [...document.querySelectorAll("input, select, textarea, button, summary")];
    const named = (node) => node.ariaLabel || node.labels?.[0]?.textContent.trim() || (
        ["BUTTON", "SUMMARY"].includes(node.tagName) && node.textContent.trim());
    const pictures = [...document.querySelectorAll("svg, [role=img], [role=listbox], [role=region]")];
    const wanted = [...document.querySelectorAll("[aria-describedby], [aria-labelledby]")].flatMap((node) => [
        ...(node.getAttribute("aria-describedby") ?? "").split(" "),
        ...(node.getAttribute("aria-labelledby") ?? "").split(" "),
    ]).filter(Boolean);
    const ids = [...document.querySelectorAll("[id]")].map(({ id }) => id);
    const nameless = [...controls.filter((node) => !named(node)), ...pictures.filter((node) => !node.ariaLabel)];
    return {
        unnamed: nameless.map((node) => node.outerHTML.slice(0, 80)),
        missing: wanted.filter((id) => !document.getElementById(id)),
        twice: ids.filter((id, place) => ids.indexOf(id) !== place),
        controls: controls.length,
    };
}"""


def test_a_refused_dial_is_told_at_its_field(open_page: OpenPage) -> None:
    page = open_page(is_refused=True)
    for name, value, sentence in (
        ("temperature", "-1", "temperature must be a number >= 0, got -1.0"),
        ("max_new_tokens", "0", "max_new_tokens must be a whole number >= 1, got 0"),
        ("gamma", "2.5", "gamma: Input should be a valid integer"),
        ("threshold", "2", "threshold must be a number > 0 and <= 1, got 2.0"),
    ):
        before = page.input_value(f"#{name}")
        run(page, **{name: value})
        expect(page.locator(f"#{name}-error")).to_contain_text(sentence)
        expect(page.locator(f"#{name}")).to_have_attribute("aria-invalid", "true")
        expect(page.locator(f"#{name}")).to_be_focused()
        assert page.locator("#form .error:not(:empty)").count() == 1
        page.fill(f"#{name}", before)
    run(page, max_new_tokens=3)
    assert page.locator("#form .error:not(:empty)").count() == 0
    assert page.locator("[aria-invalid]").count() == 0


def test_parts_that_do_not_fit_are_told_at_the_part(open_page: OpenPage) -> None:
    page = open_page(is_refused=True)
    page.locator("#more-part").evaluate("part => part.open = false")
    page.locator("#verifier").evaluate("(box) => box.value = 'block'")
    run(page)
    expect(page.locator("#verifier-error")).to_contain_text("verifier block needs tokens drawn from distributions")
    expect(page.locator("#verifier-error")).to_be_visible()


def test_the_second_methods_refusal_is_told_at_its_own_field(open_page: OpenPage) -> None:
    page = open_page(is_refused=True)
    page.check("#compare")
    run(page, second_method="mmtad", second_threshold="7", max_new_tokens=5)
    expect(page.locator("#second_threshold-error")).to_contain_text("threshold must be a number > 0 and <= 1")
    assert page.locator("#threshold-error").inner_text() == ""
    expect(page.locator("#status")).to_contain_text("mmtad done: 5 tokens")


def test_what_has_no_field_is_told_in_place_of_the_answer(open_page: OpenPage) -> None:
    page = open_page(is_refused=True)
    run(page, "a" * 1999, max_new_tokens=50)
    alert = page.locator(".answer [role=alert]")
    expect(alert).to_be_visible()
    assert "\n" not in alert.inner_text()
    page.route("**/v1/**", lambda route: route.abort())
    run(page)
    expect(alert).to_have_text("The server does not answer; check that mtad serve is still running.")
    page.unroute("**/v1/**")
    page.route("**/v1/**", lambda route: route.fulfill(status=502, body="<html>"))
    run(page)
    expect(alert).to_contain_text("status 502")


def test_a_stream_that_breaks_off_or_ends_in_an_error_says_so(open_page: OpenPage) -> None:
    page = open_page(is_refused=True)
    alert = page.locator(".answer [role=alert]")

    def answer_with(text: str) -> None:
        def reply(route: Route) -> None:
            route.fulfill(status=200, content_type="text/event-stream", body=text)

        page.unroute_all()
        page.route("**/v1/chat/completions", reply)
        run(page)

    answer_with('data: {"error": {"message": "the engine failed while this request ran", "param": null}}\n\n')
    expect(alert).to_have_text("the engine failed while this request ran")
    answer_with('data: {"choices": []}\n\n')
    expect(alert).to_contain_text("The stream broke off")


def test_a_key_is_asked_for_kept_in_the_tab_and_never_written_out(open_page: OpenPage, guarded: Running) -> None:
    page = open_page(server=guarded, is_refused=True, permissions=["clipboard-read", "clipboard-write"])
    run(page, max_new_tokens=4)
    expect(page.locator("#key-error")).to_contain_text("no valid API key was given")
    expect(page.locator("#key")).to_be_focused()
    page.fill("#key", "open sesame")
    run(page, max_new_tokens=4)
    assert page.locator(".tokens .token").count() == 4
    expect(page.locator("#model")).to_have_text("tiny")
    page.click("#copy-curl")
    expect(page.locator("#copy-curl")).to_have_text("Copied")
    command = page.evaluate("() => navigator.clipboard.readText()")
    assert "$MTAD_API_KEY" in command
    assert "sesame" not in command + page.evaluate("() => location.href")
    assert page.evaluate("() => Object.values(localStorage).join()") == ""
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.input_value("#key") == "open sesame"


def test_settings_stand_in_the_address_and_come_back(open_page: OpenPage) -> None:
    page = open_page()
    assert page.evaluate("() => location.hash") == ""
    fill(page, "short", threshold="0.125", method="mtad", gamma=5)
    page.check("#compare")
    page.check("[name=mode][value=raw]")
    assert (
        page.evaluate("() => location.hash.slice(1)")
        == "mode=raw&prompt=short&method=mtad&threshold=0.125&gamma=5&compare=1"
    )
    page.reload()
    page.wait_for_selector("html[data-ready]")
    values = [page.input_value(f"#{name}") for name in ("prompt", "threshold", "method", "gamma")]
    assert values == ["short", "0.125", "mtad", "5"]
    expect(page.locator("#second-part")).to_be_visible()
    expect(page.locator("[name=mode][value=raw]")).to_be_checked()
    page.fill("#prompt", "long " * 40)
    assert "prompt" not in page.evaluate("() => location.hash")


def test_an_address_with_nonsense_changes_nothing(open_page: OpenPage) -> None:
    page = open_page("#method=magic&nothing=1&key=stolen&threshold=")
    assert page.input_value("#method") == "mmtad"
    assert page.input_value("#key") == ""


def test_the_slider_and_the_number_move_together_on_a_logarithmic_scale(open_page: OpenPage) -> None:
    page = open_page()
    assert page.input_value("#threshold") == "0.5"
    slider = page.locator("#threshold-slider")
    for place, number in (("0", "0.001"), ("100", "0.01"), ("200", "0.1"), ("300", "1")):
        slider.fill(place)
        assert page.input_value("#threshold") == number
        page.fill("#threshold", "0.5")
        page.fill("#threshold", number)
        assert slider.input_value() == place
        expect(slider).to_have_attribute("aria-valuetext", number)
    assert "threshold=1" in page.evaluate("() => location.hash")


def test_dials_that_a_method_does_not_use_say_so(open_page: OpenPage) -> None:
    page = open_page()
    page.select_option("#method", "speculative")
    expect(page.locator("#threshold-hint")).to_have_text("Not used by speculative.")
    expect(page.locator("#method-hint")).to_contain_text("Lossless.")
    page.select_option("#method", "mmtad")
    expect(page.locator("#threshold-hint")).to_contain_text("lower keeps more")
    expect(page.locator("#method-hint")).to_contain_text("Lossy by design.")


def prepare(page: Page) -> None:
    """Bring everything onto the page that can be there."""
    for part in ("#system-part", "#more-part", "#table-part"):
        page.locator(part).evaluate("part => part.open = true")
    page.check("#compare")
    run(page, max_new_tokens=8, temperature="-1")
    alert = page.locator("#temperature-error").inner_text()
    assert alert
    run(page, max_new_tokens=8, temperature="1")
    # Both kinds of refusals beside an answer, to be looked at with everything else.
    page.locator("#temperature-error").evaluate("(line, text) => line.textContent = text", alert)
    page.locator(".answer .alert").first.evaluate("line => [line.textContent, line.hidden] = ['refused', false]")
    page.locator(".tokens .token").first.focus()


def test_everything_has_a_name_and_every_reference_a_target(open_page: OpenPage) -> None:
    page = open_page(is_refused=True)
    prepare(page)
    found: dict[str, Any] = page.evaluate(NAMES)
    assert found.pop("controls") > 25
    assert found == {"unnamed": [], "missing": [], "twice": []}
    assert page.locator("#status[role=status]").count() == 1
    assert page.locator(".tokens[aria-live]").count() == 0
    assert page.locator("h1").count() == 1
    assert page.get_attribute("html", "lang") == "en"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read_in_both_themes(open_page: OpenPage, theme: Any) -> None:
    page = open_page(is_refused=True, color_scheme=theme)
    prepare(page)
    ground = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) > 600) == (theme == "light")
    ratios = page.locator(READ).evaluate_all(CONTRAST)
    assert len(ratios) > 100
    assert {name: ratio for name, ratio in ratios if ratio < 4.5} == {}


def test_the_theme_can_be_chosen_and_is_remembered(open_page: OpenPage) -> None:
    page = open_page(color_scheme="light")

    def lightness() -> int:
        return sum(map(int, page.evaluate("() => getComputedStyle(document.body).backgroundColor")[4:-1].split(",")))

    assert lightness() > 600
    page.click("#theme")
    page.click("#theme")
    expect(page.locator("#theme")).to_have_text("Theme: dark")
    assert lightness() < 150
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert lightness() < 150


def test_a_phone_shows_everything_without_scrolling_sideways(open_page: OpenPage) -> None:
    page = open_page(is_refused=True, viewport={"width": 360, "height": 740}, has_touch=True)
    width = "() => document.documentElement.scrollWidth"
    assert page.evaluate(width) == 360
    prepare(page)
    assert page.evaluate(width) == 360
    sizes = page.locator("button:visible").evaluate_all("nodes => nodes.map((node) => node.offsetHeight)")
    assert min(sizes) >= 24
    expect(page.locator("#answers")).to_be_in_viewport()


def test_everything_is_reached_by_keyboard_and_shows_focus(open_page: OpenPage) -> None:
    page = open_page()
    run(page, max_new_tokens=8)
    page.evaluate("() => { document.body.tabIndex = -1; document.body.focus(); }")
    seen: list[str] = []
    outlines: list[str] = []
    for _ in range(45):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate("() => document.activeElement.id || document.activeElement.getAttribute('class') || ''")
        )
        style = "() => { const style = getComputedStyle(document.activeElement); return style.outlineStyle; }"
        outlines.append(page.evaluate(style))
    assert seen[0] == "skip"
    wanted = {"theme", "prompt", "method", "threshold", "run", "gamma", "seed", "explain", "compare", "iteration"}
    assert wanted <= set(seen)
    assert any("token" in name for name in seen)
    assert any("node root" in name for name in seen)
    assert all(style != "none" for name, style in zip(seen, outlines, strict=True) if "node" not in name and name)


@pytest.mark.parametrize(("motion", "animation"), [("reduce", "none"), ("no-preference", "blink")])
def test_nothing_moves_for_those_who_do_not_want_it(open_page: OpenPage, motion: Any, animation: str) -> None:
    page = open_page(reduced_motion=motion)
    fill(page, max_new_tokens=1500)
    page.click("#run")
    expect(page.locator(".tokens .token").first).to_be_attached()
    name = "() => getComputedStyle(document.querySelector('.tokens'), '::after').animationName"
    assert page.evaluate(name) == animation
    page.keyboard.press("Escape")
    finish(page)
