"""A real browser, Debian's Chromium, driven by Playwright; and what axe says of a page."""

import shutil
from functools import cache

import pytest
from axe_playwright_python.base import AXE_FILE_PATH

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None,
    reason="NO BROWSER: the pages are not tested. Install Chromium (Debian: apt install chromium)",
)
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
DESK, PHONE = {"width": 1280, "height": 800}, {"width": 380, "height": 844}


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


def profiles(browser, **always):
    """Give the same profile of the browser for the same options: a new one costs several pages."""
    return cache(lambda **options: browser.new_context(**always, **options))


def serious_problems(page):
    """Let axe look at a page as it is at a desk, and on a phone where it is dark."""
    page.add_script_tag(path=AXE_FILE_PATH)
    found = []
    for viewport, scheme in ((DESK, "light"), (PHONE, "dark")):
        page.set_viewport_size(viewport)
        page.emulate_media(color_scheme=scheme)
        answer = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        found += [
            (scheme, each["id"], [node["html"][:120] for node in each["nodes"]][:3])
            for each in answer["violations"]
            if each["impact"] in ("serious", "critical")
        ]
    return found
