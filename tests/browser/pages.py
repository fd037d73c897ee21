"""What the tests do on the page."""

from typing import Any

from playwright.sync_api import Page, Request, expect


def finish(page: Page) -> None:
    """Wait until nothing runs."""
    expect(page.locator("#run")).to_be_enabled()
    expect(page.locator("#status")).not_to_contain_text("running")


def run(page: Page, prompt: str = "why is it so", **dials: Any) -> None:
    """Fill the form in, run, and wait for the end."""
    fill(page, prompt, **dials)
    page.click("#run")
    finish(page)


def fill(page: Page, prompt: str = "why is it so", **dials: Any) -> None:
    """Fill the form in."""
    page.fill("#prompt", prompt)
    for name, value in dials.items():
        box = page.locator(f"#{name}")
        if box.evaluate("box => box.tagName") == "SELECT":
            box.select_option(str(value))
        else:
            box.fill(str(value))


def answer(page: Page, side: int = 0) -> str:
    """Plain text of an answer."""
    return page.locator(".answer").nth(side).locator("p.hidden").text_content() or ""


def figure(page: Page, row: str, column: int = 0) -> str:
    """A cell of the statistics."""
    return page.locator(f"[data-row={row}] :is(dd, td)").nth(column).inner_text()


def posted(page: Page) -> list[tuple[str, Any]]:
    """Addresses and documents of what the page posts from now on."""
    found: list[tuple[str, Any]] = []

    def note(request: Request) -> None:
        if request.method == "POST":
            found.append((request.url, request.post_data_json))

    page.on("request", note)
    return found
