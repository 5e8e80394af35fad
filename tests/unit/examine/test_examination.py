"""What was found, seen by rule, layer and site, printed and as JSON."""

import io
import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch
from rich.console import Console

from mednorm.errors import RunError
from mednorm.examine import Examination
from mednorm.examine.records import Probed
from mednorm.examine.schema import json_schema
from mednorm.population.distance import distance
from tests.examination_fixture import HOSTILE, REMEDY, examination, layer

REFERENCE = Path(__file__).parents[3] / "docs" / "reference"


@pytest.fixture(scope="module")
def found():
    return examination()


def printed(found, width):
    console = Console(width=width, force_terminal=False, record=True, file=io.StringIO())
    found.show(console)
    return console.export_text()


def test_an_error_is_the_worst_and_makes_it_not_ok(found):
    assert (found.worst, found.ok) == ("error", False)
    assert replace(found, findings=found.findings[2:]).worst == "warning"
    assert replace(found, findings=found.findings[2:]).ok
    assert (replace(found, findings=()).worst, replace(found, findings=()).ok) == (None, True)


def test_the_views_hold_every_finding_and_every_layer(found):
    assert list(found.by_code()) == ["MN004", "MN001", "MN003", "MN002"]
    assert sum(found.by_code().values(), ()) == found.findings
    by_layer = found.by_layer()
    assert list(by_layer) == [each.name for each in found.probed.layers]
    assert [[each.code for each in findings] for findings in by_layer.values()] == [["MN004"], ["MN002"], [], ["MN003"]]


def test_a_site_says_how_far_each_layer_is_and_which_is_worst(found):
    sites = found.by_site()
    assert {site: (view.images, view.patients) for site, view in sites.items()} == {"A": (12, None), "B": (6, 3)}
    first = found.probed.layers[0]
    expected = distance(first.sites["B"].moments, torch.zeros(4).double(), torch.ones(4).double(), 1e-5)
    assert sites["B"].distance[first.name] == pytest.approx(float(expected.quantile(0.5)), rel=1e-12)
    assert all(sites["B"].distance[name] > 1 > sites["A"].distance[name] for name in sites["A"].distance)
    assert sites["B"].worst == max(sites["B"].distance, key=sites["B"].distance.get)


def test_a_layer_without_running_statistics_has_no_distance():
    bare = layer("bn", 0)
    bare = replace(bare, state=replace(bare.state, running_mean=None, running_var=None))
    found = Examination(Probed("Net", (bare,), 18, 4, 1, {"A": 12, "B": 6}, None), ())
    assert found.by_site()["A"].worst is None
    assert found.to_dict()["layers"][0]["distance"] is None


def test_the_text_says_the_diagnosis_first_and_what_mends_it(found):
    lines = str(found).splitlines()
    assert lines[0].startswith("A site's images differ from what the network expects (MN004, error in 1 of 4 layers")
    assert lines[0].endswith("Beside it: MN001, MN003, MN002.")
    assert f"        mended by: {REMEDY}" in lines
    assert "        distance of the site 1.42 σ (threshold 0.5)" in lines


def test_no_finding_is_said_with_what_was_looked_at(found):
    assert str(replace(found, findings=())) == (
        "No finding: the normalization of UNet, 4 layers, fits these 18 images."
    )


@pytest.mark.parametrize("width", [60, 100])
def test_the_table_fits_the_terminal_and_remedies_stay_whole(found, width):
    lines = printed(found, width).splitlines()
    assert f"  {REMEDY}" in lines
    whole = {f"  {each.remedy}" for each in found.findings}
    assert max(len(line) for line in lines if line not in whole) <= width
    shown = " ".join(" ".join(lines).split())
    for word in ("MN004", "1/4", "distance of the site", "worst in block0.bn1", "network", "warning"):
        assert word in shown


def test_a_symptom_of_the_whole_network_names_the_layer_that_shares_most_in_it(found):
    shares = [replace(found.findings[1], layer=name, share=share) for name, share in (("block1.bn1", 0.9), ("b", 0.1))]
    shown = printed(replace(found, findings=(found.findings[1], *shares)), 100)
    assert "worst in block1.bn1" in shown


def test_markup_in_a_name_is_printed_as_it_is():
    name = "[red]bn[/red]"
    odd = examination()
    first = replace(odd.findings[0], layer=name)
    probed = replace(odd.probed, layers=(replace(odd.probed.layers[0], name=name), *odd.probed.layers[1:]))
    assert f"worst in {name}" in printed(Examination(probed, (first,)), 100)


def test_the_json_follows_the_schema_that_the_docs_hold(found):
    schema = json.loads((REFERENCE / "examination.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    for each in (found, examination(hostile=True, blocks=3), Examination(Probed("Net", (), 3, 1, 1, {}, None), ())):
        jsonschema.validate(json.loads(each.to_json()), schema)
    with pytest.raises(jsonschema.ValidationError, match="surplus"):
        jsonschema.validate({**found.to_dict(), "surplus": 1}, schema)


def test_the_schema_page_is_the_schema():
    assert (REFERENCE / "examination.schema.json").read_text(encoding="utf-8") == json_schema()


def test_the_page_of_the_schema_names_every_field():
    page = (REFERENCE / "examination.md").read_text(encoding="utf-8")
    definitions = json.loads(json_schema())
    fields = {name for each in (definitions, *definitions["$defs"].values()) for name in each["properties"]}
    assert {name for name in fields if f"`{name}`" not in page} == set()


def test_what_is_no_number_is_null(found):
    content = json.loads(found.to_json())
    broken = content["layers"][-1]
    assert broken["running_var"] == [1.0, -1.0, None, None]
    assert broken["distance"]["not_finite"] == 3
    divergence = next(each for each in content["findings"] if each["code"] == "MN001")["evidence"][0]
    assert (divergence["value"], divergence["threshold"], content["gap"]["divergence"]) == (None, 1.0, None)


def test_the_json_holds_what_was_measured_to_four_digits(found):
    written, measured = found.to_dict()["layers"][0], found.probed.layers[0]
    seen = measured.seen
    assert written["mean"] == pytest.approx(seen.moments.mean.tolist(), rel=5e-4)
    assert written["variance"] == pytest.approx(seen.moments.variance.tolist(), rel=5e-4)
    at_four = next(each for each in written["noise"] if each["batch_size"] == 4)
    assert at_four["mean"] == pytest.approx(float(seen.noise_of_mean(4).quantile(0.5)), rel=5e-4)
    assert at_four["variance"] == pytest.approx(float(seen.noise_of_variance(4).quantile(0.5)), rel=5e-4)
    assert written["sites"]["B"]["images"] == 6
    assert (found.to_dict()["sites"], found.to_dict()["patients"]) == ({"A": 12, "B": 6}, {"B": 3})
    assert (written["severity"], written["codes"], written["share"]) == ("error", ["MN004"], 0.25)


def test_the_training_batch_size_is_among_those_that_noise_is_given_for():
    odd = examination()
    noise = Examination(replace(odd.probed, batch_size=5), ()).to_dict()["layers"][0]["noise"]
    assert [at["batch_size"] for at in noise] == [1, 2, 4, 5, 8, 16, 32, 64]


def test_a_network_of_forty_thousand_channels_takes_less_than_three_megabytes():
    layers = tuple(layer(f"bn{place}", place, channels=340) for place in range(2))
    probed = Probed("DenseNet", layers, 18, 4, 1, {"A": 12, "B": 6}, None)
    assert len(Examination(probed, ()).to_json()) / 680 * 40_000 < 3e6


def test_the_file_is_what_is_returned_and_a_bad_place_is_said(found, tmp_path):
    text = found.to_json(tmp_path / "new" / "examination.json")
    assert (tmp_path / "new" / "examination.json").read_text(encoding="utf-8") == text
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file: expected a folder"):
        found.to_json(tmp_path / "file" / "examination.json")


def test_the_page_is_written_where_it_is_asked(tmp_path):
    path = examination(hostile=True).save_html(tmp_path / "page.html")
    assert path == tmp_path / "page.html"
    assert HOSTILE not in path.read_text(encoding="utf-8")
