"""The server's page in a real browser."""

import json

import pytest
import requests

from tests.browser import chromium_or_skip, open_browser


@pytest.fixture(scope="module")
def tab(served):
    """The page in a browser, loaded once for all tests of a file; `served` is the file's own fixture."""
    with open_browser(chromium_or_skip()) as one:
        one.screen(width=1280, height=900)
        one.open(served + "/")
        one.wait("document.querySelector('#label').options.length > 1")
        yield one


@pytest.fixture(scope="module")
def made(tab, served):
    """A function that presses Generate, waits for the clip, and returns its job."""

    def make() -> dict:
        before = tab.evaluate("location.hash")
        tab.fill("#steps", "2")
        tab.click("#generate")
        shows_clip = "document.querySelector('#stage').dataset.state === 'clip'"
        tab.wait(f"location.hash !== {json.dumps(before)} && {shows_clip}", seconds=120)
        return requests.get(f"{served}/v1/videos/{tab.evaluate('location.hash.slice(1)')}", timeout=30).json()

    return make


@pytest.fixture(scope="module")
def refusal(tab):
    """A function that writes a value into a field, presses Generate, and returns what the page says to it."""

    def refused(field: str, value: str) -> str:
        tab.fill(f"#{field}", value)
        tab.click("#generate")
        tab.wait(f"!document.querySelector('#error-{field}').hidden")
        return tab.evaluate(f"document.querySelector('#error-{field}').textContent")

    return refused
