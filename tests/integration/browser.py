"""Pages in a real browser, and what goes wrong there."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

SWITCHES = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CHROMIUM = shutil.which("chromium")
DRAWN = "() => [...document.querySelectorAll('.plot')].every((plot) => plot.querySelector('.main-svg'))"
looked_at = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="no chromium here; the page is not looked at"
)


@contextmanager
def chromium():
    """Give a browser."""
    assert CHROMIUM is not None, "CI needs chromium: install it, or this page is looked at by nobody"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield browser
        browser.close()


@contextmanager
def opened_page(browser, address, width=1280, scheme="light"):
    """Open a page whose charts are drawn; give it with every request, and every console message and error, so far."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    noted = SimpleNamespace(page=page, address=address, requests=[], troubles=[])
    page.on("request", lambda request: noted.requests.append(request.url))
    page.on("pageerror", lambda error: noted.troubles.append(str(error)))
    page.on("console", lambda message: noted.troubles.append(message.text))
    page.goto(address)
    until(page, DRAWN)
    yield noted
    page.close()


def nothing_went_wrong(noted):
    """Pass if there was no error and no message, and nothing was fetched but the page itself."""
    assert noted.troubles == []
    assert [address for address in noted.requests if not address.startswith("data:")] == [noted.address]


def until(page, condition):
    """Wait for a condition, asking from outside: the page's own policy lets nobody poll from inside."""
    deadline = time.monotonic() + 10
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(20)
