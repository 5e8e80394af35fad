"""The page in a real browser: it draws, sorts, changes its theme, fits a phone, fetches nothing, and runs no data."""

import pytest

from mednorm.report import write_report
from tests.integration.browser import looked_at, nothing_went_wrong, opened_page, until
from tests.report_fixture import make_results, write_samples

pytestmark = looked_at


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory):
    """One page for the module; every request, console message and error is noted."""
    folder = tmp_path_factory.mktemp("results")
    results = make_results(more=True)
    write_samples(results, folder)
    path = write_report(results, folder)
    with opened_page(browser, path.as_uri()) as noted:
        yield noted


@pytest.fixture(autouse=True)
def _nothing_went_wrong(opened):
    yield
    nothing_went_wrong(opened)


def _column(page, title):
    place = page.evaluate(
        "(title) => [...document.querySelectorAll('#arms-table thead th')]"
        ".findIndex((heading) => heading.innerText.trim().startsWith(title))",
        title,
    )
    return page.locator("#arms-table thead th").nth(place), place


def _shown(page, place):
    """Read a column from top to bottom, as numbers; None for a dash."""
    texts = page.evaluate(
        "(place) => [...document.querySelectorAll('#arms-table tbody tr')]"
        ".map((row) => row.cells[place].innerText.trim().split(/\\s/)[0])",
        place,
    )
    return [None if text == "–" else float(text.replace("−", "-")) for text in texts]


def test_every_chart_is_drawn(opened):
    plots = opened.page.locator(".plot")
    assert plots.count() == 18
    for i in range(plots.count()):
        assert plots.nth(i).locator(".main-svg").count() > 0
        drawn = plots.nth(i).locator(".trace path")
        assert drawn.count() > 0, opened.page.locator("figure.chart h3").all_inner_texts()
        assert all(len(shape) > 4 for shape in drawn.evaluate_all("(paths) => paths.map((p) => p.getAttribute('d'))"))


def test_names_from_the_data_are_shown_in_charts_as_they_are(opened):
    labels = opened.page.locator("#chart-gradients .plot").first.locator(".xtick text").all_text_contents()
    assert labels == ["down1", "down2", "down3", "<b>bottom</b>", "up3", "up2", "up1", "head"]


@pytest.mark.parametrize("title", ["test dice", "peak memory", "difference to none"])
def test_the_table_sorts_by_number_both_ways_with_missing_last(opened, title):
    heading, place = _column(opened.page, title)
    for direction, backwards in (("ascending", False), ("descending", True)):
        heading.locator("button").focus()
        opened.page.keyboard.press("Enter")
        assert heading.get_attribute("aria-sort") == direction
        shown = _shown(opened.page, place)
        known = [value for value in shown if value is not None]
        assert shown == sorted(known, reverse=backwards) + [None] * (len(shown) - len(known))
        assert len(shown) == 25
    assert opened.page.locator("#arms-table th:not([aria-sort='none'])[aria-sort]").count() == 1


def test_batch_sizes_sort_as_numbers_not_as_text(opened):
    heading, place = _column(opened.page, "batch")
    heading.locator("button").click()
    assert _shown(opened.page, place) == [2] * 5 + [8] * 15 + [32] * 5


def test_the_theme_button_changes_page_and_charts_and_back(opened):
    text = "() => getComputedStyle(document.body).color"
    background = "() => getComputedStyle(document.body).backgroundColor"
    # Every word in every chart has one of the theme's two text colours.
    chart_text = (
        "() => [...new Set([...document.querySelectorAll('.plot .main-svg text')]"
        ".map((word) => getComputedStyle(word).fill))]"
    )
    fonts = "() => [...document.querySelectorAll('.plot')].map((plot) => plot.layout.font.color)"
    button = opened.page.locator("#theme")
    light = [opened.page.evaluate(asked) for asked in (text, background, chart_text, fonts)]
    button.click()
    until(opened.page, f"() => ({fonts})().every((colour) => colour !== {light[3][0]!r})")
    dark = [opened.page.evaluate(asked) for asked in (text, background, chart_text, fonts)]
    assert button.get_attribute("aria-pressed") == "true"
    assert dark[:2] == ["rgb(227, 231, 234)", "rgb(20, 23, 26)"]
    assert not set(light[2]) & set(dark[2])
    assert len(set(dark[3])) == 1
    button.click()
    until(opened.page, f"() => ({fonts})().every((colour) => colour === {light[3][0]!r})")
    assert [opened.page.evaluate(asked) for asked in (text, background, chart_text, fonts)] == light


def test_the_theme_follows_the_system_until_the_reader_chooses(opened):
    fresh = opened.page.context.browser.new_page(color_scheme="dark")
    fresh.goto(opened.address)
    until(fresh, "() => document.documentElement.dataset.theme === 'dark'")
    fresh.emulate_media(color_scheme="light")
    until(fresh, "() => document.documentElement.dataset.theme === 'light'")
    fresh.locator("#theme").click()
    fresh.emulate_media(color_scheme="dark")
    fresh.emulate_media(color_scheme="light")
    fresh.wait_for_timeout(100)
    assert fresh.evaluate("() => document.documentElement.dataset.theme") == "dark"
    fresh.close()


def test_the_legend_hides_and_shows_a_norm_in_every_panel(opened):
    figure = opened.page.locator("#chart-learning")
    button = figure.locator("[data-norm='batch']")
    before = [figure.locator(".plot").nth(i).locator(".trace").count() for i in range(3)]
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert [figure.locator(".plot").nth(i).locator(".trace").count() for i in range(3)] == [n - 3 for n in before]
    button.click()
    assert [figure.locator(".plot").nth(i).locator(".trace").count() for i in range(3)] == before


def test_the_choice_of_arm_changes_what_is_drawn(opened):
    figure = opened.page.locator("#chart-learning")
    norms = "() => [...new Set(document.querySelector('#chart-learning .plot').data.map((trace) => trace.name))]"
    assert opened.page.evaluate(norms) == ["none", "batch", "group", "instance", "renorm"]
    figure.locator("select").select_option(label="dropout, batch size 8")
    assert opened.page.evaluate(norms) == ["none", "batch"]
    figure.locator("select").select_option(index=0)


def test_the_choice_of_time_changes_the_gradients_of_both_networks(opened):
    figure = opened.page.locator("#chart-gradients")
    read = "() => [...document.querySelectorAll('#chart-gradients .plot')].map((plot) => plot.data[0].y[0])"
    first_step = opened.page.evaluate(read)
    figure.locator("select").select_option(label="last epoch")
    assert all(before != after for before, after in zip(first_step, opened.page.evaluate(read), strict=True))
    figure.locator("select").select_option(index=0)
    assert opened.page.evaluate(read) == first_step


def test_each_kind_of_statistics_is_hidden_and_shown_alone(opened):
    figure = opened.page.locator("#chart-modes")
    button = figure.locator("[data-norm='batch, batch statistics']")
    shown = (
        "() => document.querySelector('#chart-modes .plot').data"
        ".filter((trace) => trace.visible).map((trace) => trace.name)"
    )
    before = opened.page.evaluate(shown)
    assert {"batch", "batch, batch statistics"} < set(before)
    button.click()
    assert opened.page.evaluate(shown) == [name for name in before if name != "batch, batch statistics"]
    button.click()
    assert opened.page.evaluate(shown) == before


def test_every_test_metric_is_folded_away_opens_and_sorts(opened):
    table = opened.page.locator("#metrics-table")
    assert not table.is_visible()
    opened.page.locator("details.more summary").click()
    assert table.is_visible()
    place = opened.page.evaluate(
        "() => [...document.querySelectorAll('#metrics-table thead th')]"
        ".findIndex((heading) => heading.innerText.includes('batch statistics'))"
    )
    table.locator("thead th").nth(place).locator("button").click()
    texts = opened.page.evaluate(
        "(place) => [...document.querySelectorAll('#metrics-table tbody tr')].map((row) => row.cells[place].innerText)",
        place,
    )
    known = [float(text.split()[0]) for text in texts if text.strip() != "–"]
    assert len(known) == 11
    assert known == sorted(known)
    assert [text.strip() for text in texts[11:]] == ["–"] * 14
    opened.page.locator("details.more summary").click()


def test_slanted_names_are_thinned_where_there_is_no_room(opened):
    labels = opened.page.locator("#chart-gradients .plot").nth(1).locator(".xtick text")
    opened.page.set_viewport_size({"width": 200, "height": 740})
    opened.page.locator("#theme").click()  # draws anew
    opened.page.locator("#theme").click()
    until(
        opened.page,
        "() => document.querySelectorAll('#chart-gradients .plot')[1].querySelectorAll('.xtick').length == 5",
    )
    assert labels.first.text_content() == "down1"
    opened.page.set_viewport_size({"width": 1280, "height": 900})
    opened.page.locator("#theme").click()
    opened.page.locator("#theme").click()
    until(
        opened.page,
        "() => document.querySelectorAll('#chart-gradients .plot')[1].querySelectorAll('.xtick').length == 10",
    )


def test_images_are_there_and_not_broken(opened):
    opened.page.evaluate("() => { for (const image of document.images) image.loading = 'eager' }")
    until(opened.page, "() => [...document.images].every((image) => image.complete)")
    widths = opened.page.evaluate("() => [...document.images].map((image) => image.naturalWidth)")
    assert widths == [48] * 72


def test_hostile_text_did_not_run(opened):
    assert opened.page.evaluate("() => window.hacked === undefined && !document.querySelector('img[src=x]')")


@pytest.mark.parametrize("width", [360, 768])
def test_nothing_is_wider_than_a_small_screen(opened, width):
    opened.page.set_viewport_size({"width": width, "height": 740})
    until(
        opened.page,
        "() => [...document.querySelectorAll('.plot')].every((plot) => {"
        " const svg = plot.querySelector('.main-svg'); return svg && svg.clientWidth <= innerWidth })",
    )
    assert opened.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    opened.page.set_viewport_size({"width": 1280, "height": 900})
