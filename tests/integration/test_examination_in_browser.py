"""The page of an examination in a real browser: it draws, changes its theme, fits a phone, and fetches nothing."""

import pytest

from mednorm.report.examination import write_examination
from tests.examination_fixture import examination
from tests.integration.browser import looked_at, nothing_went_wrong, opened_page

pytestmark = looked_at


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    document = examination(hostile=True, blocks=30).to_dict()
    return write_examination(document, tmp_path_factory.mktemp("page") / "page.html").as_uri()


@pytest.fixture(scope="module")
def opened(browser, address, request):
    """A page of the width and theme asked for; every request, console message and error is noted and must be none."""
    with opened_page(browser, address, *getattr(request, "param", (1280, "light"))) as noted:
        yield noted.page
    nothing_went_wrong(noted)


def test_every_chart_is_drawn(opened):
    assert opened.locator("figure.chart h3").all_inner_texts() == [
        "Where the train/eval gap comes from",
        "Sites against the running statistics",
        "Channels of each layer",
        "Noise of the batch statistics",
    ]
    for plot in opened.locator(".plot").all():
        drawn = plot.locator(".trace path").evaluate_all("(paths) => paths.map((path) => path.getAttribute('d'))")
        assert drawn
        assert all(len(shape) > 4 for shape in drawn)


@pytest.mark.parametrize("opened", [(390, "light"), (390, "dark"), (1280, "dark")], indirect=True)
def test_nothing_is_wider_than_the_screen_and_no_tile_is_cut(opened):
    assert opened.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    cut = (
        "() => [...document.querySelectorAll('.tile-layer')].filter((tile) => tile.scrollWidth > tile.clientWidth + 1)"
    )
    assert opened.evaluate(f"({cut})().length") == 0


def test_the_choice_of_a_layer_shows_its_channels(opened):
    read = "() => document.querySelector('#chart-channels .plot').data[0].x"
    select = opened.locator("#chart-channels select")
    first = opened.evaluate(read)
    select.select_option(label="<script>alert(1)</script> (warning)")
    assert opened.evaluate(read) != first
    assert len(opened.evaluate(read)) == 4


@pytest.mark.parametrize("opened", [(390, "light"), (390, "dark")], indirect=True)
def test_every_severity_can_be_read_on_its_ground(opened):
    """WCAG's 4.5 between a tile's mark and what is behind it."""
    script = """(severity) => {
      const style = getComputedStyle(document.querySelector('.tile-' + severity));
      const light = (colour) => {
        const [r, g, b] = colour.match(/\\d+/g).map((part) => part / 255)
          .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const [low, high] = [light(style.color), light(style.backgroundColor)].sort((a, b) => a - b);
      return (high + 0.05) / (low + 0.05);
    }"""
    assert min(opened.evaluate(script, severity) for severity in ("error", "warning", "info", "fine")) >= 4.5


def test_a_sites_line_can_be_hidden(opened):
    lines = "document.querySelector('#chart-sites .plot').data"
    shown = f"() => {lines}.filter((line) => line.visible).map((line) => line.name)"
    before = opened.evaluate(shown)
    button = opened.locator("#chart-sites [data-norm='A (12)']")
    button.click()
    assert opened.evaluate(shown) == [name for name in before if name != "A (12)"]
    button.click()
    assert opened.evaluate(shown) == before
