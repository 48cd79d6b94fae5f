"""The console: its headers, and the page itself in a headless browser."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import hfh_embed
from tests.service.conftest import serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
CONSOLE = Path(__file__).parent.parent.parent / "service" / "console"
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; .ci/run installs it")


def test_the_page_and_its_files_load_nothing_from_elsewhere(client) -> None:
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    for path in re.findall(r'(?:src|href)="(console/[^"]+)"', page.text):
        answer = client.get(f"/{path}")
        assert answer.status_code == 200
        again = client.get(f"/{path}", headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    for file in CONSOLE.iterdir():
        assert not re.findall(r"https?://(?!www\.w3\.org)", file.read_text())
    assert "unsafe" not in page.headers["content-security-policy"]
    assert client.get("/console/settings.py").status_code == 404


def test_the_documentation_loads_nothing_from_elsewhere(client) -> None:
    page = client.get("/docs").text
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert loaded
    for path in loaded:
        assert path.startswith("/")
        assert client.get(path).status_code == 200


@contextmanager
def _page(url: str, folder: Path, **options: Any) -> Iterator[Any]:
    """A page of the console, which must not have complained at the end."""
    from playwright.sync_api import sync_playwright

    complaints: list[str] = []
    elsewhere: list[str] = []
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(folder), executable_path=CHROMIUM, headless=True, args=FLAGS, **options
        )
        page = context.pages[0]
        page.set_default_timeout(15_000)
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: elsewhere.append(request.url) if not request.url.startswith(url) else None)
        page.goto(url)
        page.wait_for_selector("#tables tr")
        yield page
        context.close()
    assert not complaints
    assert not elsewhere


@pytest.fixture(scope="module")
def url(snapshot_path) -> Iterator[str]:
    with serving(str(snapshot_path)) as (url, _):
        yield url


@needs_browser
def test_a_visitor_looks_up_rows_with_the_keyboard_alone(url: str, snapshot_path, tmp_path) -> None:
    users = hfh_embed.open(snapshot_path)["users"]
    with _page(url, tmp_path) as page:
        assert page.locator("#tables tr").count() == 2
        assert page.locator("#health").inner_text() == "serving"
        page.locator("#versions").wait_for(state="visible")
        reached = []
        for _ in range(12):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
            if reached[-1] == "wanted":
                break
        assert reached[-1] == "wanted", reached
        page.keyboard.press("Control+A")
        page.keyboard.type("3, 17")
        page.keyboard.press("Enter")
        page.wait_for_selector("#rows article:nth-child(2)")
        found = [
            int(text.split(" · ")[0].removeprefix("key "))
            for text in page.locator("#rows article:nth-child(1) li").all_inner_texts()
        ]
        wanted = users.search(users.lookup(3), 11, metric="cosine")[0]
        assert found == wanted[1:].tolist()
        assert page.locator("#rows canvas").count() == 2
        page.locator("#rows article:nth-child(1) li button").first.press("Enter")
        page.wait_for_selector(f"#rows h3:text-is('id {wanted[1]}')")
        page.select_option("#kind", "keys")
        page.fill("#wanted", "key 7")
        page.click("#look button")
        page.wait_for_selector("#rows h3:text-is('key 7')")


@needs_browser
def test_wrong_input_gets_a_sentence(url: str, tmp_path) -> None:
    with _page(url, tmp_path) as page:
        page.fill("#wanted", "abc")
        page.click("#look button")
        page.wait_for_selector("#look-error:has-text('abc is not an id')")


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_does_not_scroll_sideways(url: str, tmp_path, scheme: str) -> None:
    options = {"viewport": {"width": 360, "height": 740}, "color_scheme": scheme}
    with _page(url, tmp_path, **options) as page:
        page.fill("#wanted", "1,2,3")
        page.click("#look button")
        page.wait_for_selector("#rows article:nth-child(3)")
        page.evaluate("document.getElementById('versions').hidden = false")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
