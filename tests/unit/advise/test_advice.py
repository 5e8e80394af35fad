import io
import json

import pytest
from rich.console import Console

from mednorm.errors import RunError
from mednorm.report.advice import charts, shown_sizes
from tests.unit.advise.made import MB, advised


def printed(advice, width):
    console = Console(width=width, record=True, file=io.StringIO())
    advice.show(console)
    return console.export_text()


def test_the_table_has_what_was_measured_and_what_is_advised_and_says_which_is_predicted():
    shown = printed(advised(least=6, largest=41), 100)
    rows = {line.split("│")[1].strip(): line for line in shown.splitlines() if line.startswith("│")}
    assert list(rows) == ["1", "2", "4", "6", "8"]
    assert "≈ 160 MB" in rows["6"]
    assert "advised" in rows["6"]
    assert "180 MB" in rows["8"]
    assert "≈" not in rows["8"]
    assert "too noisy" in rows["4"]


def test_sixty_columns_are_enough_for_all_of_it():
    shown = printed(advised(least=6, largest=3, noise_at_one=0.9), 60)
    assert max(map(len, shown.splitlines())) <= 60
    assert "too large" in " ".join(shown.split())
    assert "mednorm.accumulate" in shown


def test_as_text_the_sentence_comes_first_and_the_noisiest_layer_is_named():
    text = str(advised(least=6, largest=41))
    assert text.splitlines()[0] == advised(least=6, largest=41).sentence
    assert "noisiest layer: enc.bn, of 2; 64 images seen" in text
    assert "100 MB + 10.0 MB an image; checked at a size left out: +0.0 %" in text


def test_json_has_every_figure_in_bytes_seconds_and_sigma(tmp_path):
    advice = advised(least=6, largest=41)
    assert advice.to_json(tmp_path / "advice.json") == (tmp_path / "advice.json").read_text()
    written = json.loads(advice.to_json())
    assert written["recommended"] == 6
    assert written["limit"] == 512 * MB
    assert written["measured"][3] == {"batch_size": 8, "peak": 180 * MB, "tensors": 80 * MB, "seconds_per_image": 0.01}
    assert written["memory"]["per_image"] == pytest.approx(10 * MB)
    layer = dict(zip(written["noise"]["sizes"], written["noise"]["layers"]["enc.bn"], strict=True))
    assert layer[4] == pytest.approx(0.5)


def test_a_noise_that_is_no_number_is_null_in_json():
    written = json.loads(advised(noise_at_one=float("nan")).to_json())
    assert set(written["noise"]["layers"]["enc.bn"]) == {None}


def test_the_page_needs_no_other_file_and_says_the_sentence(tmp_path):
    advice = advised(least=6, largest=41)
    page = advice.save_html(tmp_path / "advice.html").read_text(encoding="utf-8")
    assert advice.sentence in page
    assert 'src="http' not in page
    assert '<link rel="icon" href="data:,">' in page


def test_names_from_a_network_are_escaped_in_the_page(tmp_path):
    advice = advised(layers=("<script>alert(1)</script>",), network="<b>Net</b>")
    page = advice.save_html(tmp_path / "advice.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page
    assert "<b>Net</b>" not in page


def test_a_page_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    with pytest.raises(RunError, match=str(tmp_path)):
        advised().save_html(tmp_path)


def test_the_chart_of_memory_crosses_the_limit_where_batches_become_too_large():
    document = advised(least=6, largest=41).to_dict()
    predicted, measured, limit = charts(document)[0].panels[0].views[0]
    level = limit["y"][0]
    assert [size for size, peak in zip(predicted["x"], predicted["y"], strict=True) if peak <= level][-1] == 41
    assert measured["y"] == pytest.approx([0.11, 0.12, 0.14, 0.18])


def test_the_chart_of_noise_has_a_line_a_layer_and_the_noisiest_on_top():
    document = advised(least=6, largest=41).to_dict()
    *layers, enough = charts(document)[1].panels[0].views[0]
    assert [line["name"] for line in layers] == ["other layers", "noisiest layer"]
    assert layers[1]["y"][0] == pytest.approx(1.0)
    assert enough["y"] == [0.4, 0.4]


def test_without_layers_there_is_no_chart_of_noise():
    assert [chart.key for chart in charts(advised(least=1, layers=()).to_dict())] == ["memory", "time"]


def test_the_sizes_on_the_page_reach_beyond_what_fits():
    assert max(shown_sizes(advised(least=6, largest=41).to_dict())) > 41
