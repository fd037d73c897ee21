"""Where Chromium is, for the tests that drive the playground with it."""

import shutil
from importlib.util import find_spec

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ADVICE = "browser tests are left out: install Chromium (for example apt-get install chromium) and the dev extra"
# Headless, and quiet: no host but the server under test is asked for anything.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_chromium() -> str | None:
    """Path of the browser; None where it, or the driver's package, is missing."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    return found if find_spec("playwright") else None
