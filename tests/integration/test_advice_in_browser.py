"""The page of an advice in a real browser: it draws, fits a phone, and fetches nothing."""

import pytest

from tests.integration.browser import looked_at, nothing_went_wrong, opened_page
from tests.unit.advise.made import advised

HOSTILE = "<script>alert(1)</script>"
pytestmark = looked_at


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_charts_are_drawn_and_nothing_is_wider_than_the_screen(browser, tmp_path, width, scheme):
    page = advised(layers=(HOSTILE, "dec.bn"), network=HOSTILE).save_html(tmp_path / "advice.html")
    with opened_page(browser, page.as_uri(), width, scheme) as noted:
        assert noted.page.locator("figure.chart h3").all_inner_texts() == ["Memory", "Noise", "Time"]
        assert noted.page.locator("h1").inner_text() == f"Batch size: {HOSTILE}"
        assert noted.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    nothing_went_wrong(noted)
