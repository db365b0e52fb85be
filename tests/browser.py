"""The real browser that pages are tested in: Chromium, which no wheel brings, driven by Playwright."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

from compose.local.errors import LocalSettingError

SETTING = "CHROMIUM_BIN"
PACKAGE = "chromium"
NAMES = (PACKAGE, "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip


def found_browser() -> str | None:
    """Find the browser: the one that CHROMIUM_BIN names, else one on the path; None if there is none.

    Raises LocalSettingError if CHROMIUM_BIN names something else.
    """
    named = os.environ.get(SETTING)
    if not named:
        return next(filter(None, map(shutil.which, NAMES)), None)
    if shutil.which(named) is None:
        raise LocalSettingError(f"{SETTING} is wrong: {named} is no program that can be run")
    return named


def browser_missing(why: str) -> LocalSettingError:
    """Say what is missing and what to do about it, and `why` it is not done already."""
    return LocalSettingError(
        f"the tests need a Chromium ({why}); on Debian install the package: sudo apt-get install {PACKAGE}; "
        f"or name one: {SETTING}=/path/to/chromium make test"
    )


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Run the browser; while it runs, no event loop can be run in this thread."""
    path = found_browser()
    if path is None:
        raise browser_missing(f"none of {', '.join(NAMES)} is on the path")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()
