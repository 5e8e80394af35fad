"""The page of an examination: whole, alone, and deaf to what the data says."""

import base64
import hashlib
import itertools
import json
import re
import subprocess
import sys

import pytest
from plotly.offline import get_plotlyjs

from mednorm.errors import RunError
from mednorm.report.examination import _by_block, number, write_examination
from mednorm.report.examination_charts import channel_chart, channels, charts, gap_chart, noise_chart, site_chart
from tests.examination_fixture import HOSTILE, REMEDY, examination
from tests.unit.report.test_page import _read


@pytest.fixture(scope="module")
def document():
    return json.loads(examination(hostile=True, blocks=3).to_json())


@pytest.fixture(scope="module")
def page(document, tmp_path_factory):
    return _read(write_examination(document, tmp_path_factory.mktemp("page") / "page.html"))


def named(*names):
    return [{"name": name} for name in names]


def test_nothing_is_fetched_and_only_the_two_scripts_of_the_page_may_run(page):
    for tag, attributes in page.tags:
        assert tag not in ("base", "iframe", "object", "embed")
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert re.match(r"data:|#|$", attributes.get(name) or ""), (tag, attributes)
    assert not re.search(r"url\(|@import|https?:", "".join(page.styles))
    assert [script == get_plotlyjs() for script in page.scripts] == [False, True, False]
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in page.scripts[1:]]
    assert rules["default-src"] == "'none'"
    assert rules["script-src"].split() == [f"'sha256-{digest}'" for digest in hashes]


def test_hostile_names_are_shown_as_text_and_make_no_tag(page):
    assert page.text.count(HOSTILE) > 5
    assert [attributes.get("type") for tag, attributes in page.tags if tag == "script"] == [
        "application/json",
        None,
        None,
    ]
    assert not [attributes for _, attributes in page.tags if any(name.startswith("on") for name in attributes)]
    assert not re.search("[<>&\u2028\u2029]", page.scripts[0])


def test_the_diagnosis_is_the_first_thing_said(page, document):
    said = f"✕ error {document['diagnosis']}"
    assert page.text.index(said) < page.text.index("MN004 A site's images")


def test_the_lead_says_of_each_site_how_many_images_there_are_and_of_how_many_patients(page):
    assert f"18 images of 2 sites (A 12, {HOSTILE} 6 of 3 patients)" in page.text


def test_the_json_of_an_earlier_version_that_knew_no_patients_is_still_shown(document, tmp_path):
    earlier = {key: value for key, value in document.items() if key != "patients"}
    text = _read(write_examination(earlier, tmp_path / "page.html")).text
    assert f"18 images of 2 sites (A 12, {HOSTILE} 6)" in text


def test_every_rule_that_found_something_has_its_evidence_threshold_and_remedy(page, document):
    assert [attributes["id"] for tag, attributes in page.tags if tag == "article"] == [
        "MN004",
        "MN001",
        "MN003",
        "MN002",
    ]
    assert "distance of the site 1.42 σ 0.5" in page.text
    assert "patients of the site 3 patients" in page.text
    assert f"What mends it {REMEDY}" in page.text
    assert "mednorm examine --explain MN003" in page.text


def test_the_map_says_the_severity_of_every_layer_in_words_and_marks_too(page, document):
    tiles = [attributes for tag, attributes in page.tags if "tile-layer" in (attributes.get("class") or "")]
    assert [tile["title"].rsplit(": ", 1)[1] for tile in tiles] == ["MN004", "MN002", "fine", "fine", "fine", "MN003"]
    assert [tile["class"].split("tile-")[-1] for tile in tiles] == ["error", "info", "fine", "fine", "fine", "warning"]
    map_ = page.text[page.text.index("Every normalization layer") :]
    for shown in ("✕ bn1 MN004", "i bn2 MN002", "✓ bn1"):
        assert shown in map_


def test_headings_skip_no_level_and_sections_come_in_their_order(page):
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    sections = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert sections == ["findings", "map", "charts-section", "layers", "reading"]


def test_a_page_without_findings_or_layers_is_written_too(tmp_path):
    empty = examination().to_dict() | {"findings": [], "layers": [], "gap": None, "sites": {}, "worst": None}
    text = _read(write_examination(empty, tmp_path / "page.html")).text
    assert "✓ fine" in text
    assert "No rule found anything." in text
    assert "Charts" not in text


def test_a_place_that_cannot_be_written_is_said(document, tmp_path):
    with pytest.raises(RunError, match="expected a place to write the page"):
        write_examination(document, tmp_path)


def test_it_is_written_without_importing_torch(document, tmp_path):
    (tmp_path / "found.json").write_text(json.dumps(document))
    code = f"""
import json, sys, pathlib
from mednorm.report.examination import write_examination
folder = pathlib.Path({str(tmp_path)!r})
write_examination(json.loads((folder / "found.json").read_text()), folder / "page.html")
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_blocks_are_as_deep_as_gives_a_dozen_of_them():
    net = named("net.down.bn1", "net.down.bn2", "net.up.bn1", "net.head")
    assert [(block, len(members)) for block, members in _by_block(net)] == [("net.down", 2), ("net.up", 1), ("net", 1)]
    deep = named(*(f"features.denseblock{i}.layer{j}.norm" for i in range(4) for j in range(6)))
    assert [block for block, _ in _by_block(deep)] == [f"features.denseblock{i}" for i in range(4)]
    assert [block for block, _ in _by_block(named("0", "1"))] == [""]


def test_a_block_that_comes_again_later_stands_again():
    assert [block for block, _ in _by_block(named("a.n1", "b.n1", "a.n2"))] == ["a", "b", "a"]


def test_numbers_have_three_digits_and_a_true_minus():
    assert [number(value) for value in (0.12345, -2.0, None)] == ["0.123", "−2", "–"]


def test_the_channels_are_held_against_the_running_statistics():
    layer = {
        "mean": [1.0, 0.0],
        "variance": [4.0, 1.0],
        "running_mean": [0.0, 0.0],
        "running_var": [1.0, -1.0],
        "eps": 0.0,
    }
    assert channels(layer) == ([1.0, None], [2.0, None])


def test_the_layers_with_findings_are_the_first_choices(document):
    chart = channel_chart(document)
    assert chart.choices[0] == "block0.bn1 (error)"
    assert chart.choices[1] == f"{HOSTILE} (warning)"
    assert len(chart.choices) == len(chart.panels[0].views) == 6


def test_sites_are_curves_with_their_count_and_the_far_one_is_above(document):
    chart = site_chart(document)
    assert chart.norms == ["all images", f"{HOSTILE} (6 of 3 patients)", "A (12)"]
    _, far, near = (line["y"] for line in chart.panels[0].views[0])
    assert all(b > 1 > a for a, b in zip(near, far, strict=True))


def test_the_trainings_own_batch_size_is_the_first_choice_and_noise_falls_with_size(document):
    chart = noise_chart(document)
    assert chart.choices[0] == "4 (this training)"
    sizes = [int(choice.split()[0]) for choice in chart.choices]
    first = {size: view[0]["y"][0] for size, view in zip(sizes, chart.panels[0].views, strict=True)}
    assert first[1] / first[4] == pytest.approx(2, rel=1e-3)
    assert sorted(first.values(), reverse=True) == [first[size] for size in sorted(sizes)]


def test_shares_of_the_gap_are_drawn_only_where_they_were_asked(document):
    assert gap_chart(document).panels[0].views[0][0]["y"] == [25.0] * 6
    unasked = document | {"layers": [layer | {"share": None} for layer in document["layers"]]}
    assert "gap" not in [chart.key for chart in charts(unasked)]


def test_a_distance_far_beyond_the_others_gets_a_logarithmic_axis(document):
    assert "type" not in site_chart(document).panels[0].layout["yaxis"]
    far = json.loads(json.dumps(document))
    far["layers"][0]["distance"]["median"] = 400.0
    assert site_chart(far).panels[0].layout["yaxis"]["type"] == "log"
