"""The page of an advice in a real browser: it draws, fits a phone, and fetches nothing."""

import pytest

from tests.integration.test_examination_in_browser import DRAWN, browser  # noqa: F401
from tests.integration.test_report_in_browser import _until, pytestmark  # noqa: F401
from tests.unit.advise.made import advised

HOSTILE = "<script>alert(1)</script>"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_charts_are_drawn_and_nothing_is_wider_than_the_screen(browser, tmp_path, width, scheme):  # noqa: F811
    address = advised(layers=(HOSTILE, "dec.bn"), network=HOSTILE).save_html(tmp_path / "advice.html").as_uri()
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    asked, troubles = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda message: troubles.append(message.text))
    page.goto(address)
    _until(page, DRAWN)
    assert page.locator("figure.chart h3").all_inner_texts() == ["Memory", "Noise", "Time"]
    assert page.locator("h1").inner_text() == f"Batch size: {HOSTILE}"
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.close()
    assert troubles == []
    assert [url for url in asked if not url.startswith("data:")] == [address]
