"""The study of the embedded images, small, from the command line to the page."""

import html
import json
import shutil
import tomllib

import pytest

from mednorm.cli.app import run
from mednorm.results import read_results
from tests.studies import read_figures

pytestmark = pytest.mark.slow

ARMS = ["--norms", "none,batch", "--seeds", "0,1", "--regularizers", "none", "--batch-sizes", "8", "--epochs", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two norms, two seeds, two epochs; a quarter of the pixels."""
    out = tmp_path_factory.mktemp("tissue") / "out"
    assert run(["study", "tissue", *ARMS, "--image-size", "48,40", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def results(folder):
    return read_results(folder / "results.json")


def test_every_arm_and_seed_was_trained_on_the_embedded_images(results):
    assert [run.name for run in results.runs] == [f"{n}-none-b8-s{s}" for s in (0, 1) for n in ("none", "batch")]
    assert results.study.data.images == {"train": 120, "val": 40, "test": 40}
    assert results.study.data.shape == [1, 48, 40]
    assert results.study.data.classes == ["background", "grey matter", "white matter"]
    assert "ICBM152" in results.study.data.note
    assert all(run.status == "finished" and len(run.epochs) == 2 for run in results.runs)


def test_the_networks_learn(results):
    for each in results.runs:
        first, last = each.epochs
        assert last.train_loss < first.train_loss
        assert 0.15 < each.metrics["test_dice"] < 1
        classes = [each.metrics[f"test_dice_{name}"] for name in ("grey matter", "white matter")]
        assert each.metrics["test_dice"] == pytest.approx(sum(classes) / 2)


def test_gradients_and_layers_are_recorded_from_the_first_layer_to_the_last(results):
    for each in results.runs:
        for epoch in each.epochs:
            assert len(epoch.gradient_norms) == len(epoch.layers) == 7
            assert list(epoch.gradient_norms) == list(epoch.layers)
            assert all(value > 0 for value in epoch.gradient_norms.values())


def test_the_statements_speak_of_the_two_seeds(results):
    quality = next(statement for statement in results.statements if statement.topic == "quality")
    assert quality.difference.n == 2
    assert "over 2 paired seeds" in quality.text


def test_the_page_shows_every_sentence_and_the_sample_images(folder, results):
    page = html.unescape((folder / "report.html").read_text(encoding="utf-8"))
    assert [statement.text for statement in results.statements if statement.text[:40] not in page] == []
    assert "data:image/png;base64," in page


def test_the_settings_written_beside_the_results_give_the_same_figures_again(folder, tmp_path):
    config = shutil.copy(folder / "study.toml", tmp_path / "again.toml")
    assert run(["study", "--config", str(config), "--seeds", "1", "--out", str(tmp_path / "again")]) == 0
    again, before = read_figures(tmp_path / "again"), read_figures(folder)
    assert [run["name"] for run in again["runs"]] == ["none-none-b8-s1", "batch-none-b8-s1"]
    # The time to the target hangs on the target, which is chosen from all runs.
    timed = {"epochs_to_target"}
    twins = {run["name"]: run for run in before["runs"]}
    for run_again in again["runs"]:
        twin = twins[run_again["name"]]
        assert {k: v for k, v in run_again.items() if k not in timed} == {
            k: v for k, v in twin.items() if k not in timed
        }
    settings = tomllib.loads((tmp_path / "again" / "study.toml").read_text(encoding="utf-8"))
    assert settings == tomllib.loads(config.read_text(encoding="utf-8")) | {"seeds": [1]}


def test_the_page_can_be_made_again(folder, capsys):
    before = (folder / "report.html").read_bytes()
    assert run(["report", str(folder)]) == 0
    assert (folder / "report.html").read_bytes() == before


def test_a_run_of_the_study_can_be_judged_by_itself(folder, results, capsys):
    capsys.readouterr()
    assert run(["evaluate", str(folder / "runs" / "batch-none-b8-s0"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    stored = next(run for run in results.runs if run.name == "batch-none-b8-s0").metrics
    assert found["images"] == 40
    assert found["metrics"] == pytest.approx({name: stored[f"test_{name}"] for name in found["metrics"]}, abs=1e-6)
