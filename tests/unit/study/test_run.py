import io
import json
import shutil
import tomllib

import pytest
from filelock import FileLock
from rich.console import Console

from mednorm.errors import ConfigError, RunError
from mednorm.report import write_report
from mednorm.results import read_results
from mednorm.study.arms import trials
from mednorm.study.run import run_study
from mednorm.study.settings import resolve
from mednorm.study.summary import summarize
from mednorm.tasks import find_task
from mednorm.tasks.outcomes import read_outcomes
from mednorm.training.disk import load_settings
from mednorm.training.progress import progress_display
from tests.studies import figures, read_figures


def settings(data, **flags):
    small = {"data": str(data), "norms": ["none"], "seeds": [0], "batch_sizes": [16], "epochs": 1}
    return resolve("lung", None, {}, small | flags)


def test_the_study_on_disk_is_the_one_returned(lung_npz, tmp_path):
    results = run_study(settings(lung_npz), tmp_path, "a command")
    assert read_results(tmp_path / "results.json") == results
    assert results.environment.command == "a command"


def test_every_arm_was_trained_with_every_seed_one_seed_after_the_other(study_results):
    arms = ["none-none-b16", "batch-none-b16", "none-dropout-b16", "batch-dropout-b16"]
    assert [run.name for run in study_results.runs] == [f"{arm}-s{seed}" for seed in (0, 1) for arm in arms]


def test_each_run_has_its_folder_with_its_record_but_for_the_time_to_the_target(study_folder, study_results):
    for run in study_results.runs:
        stored = json.loads((study_folder / "runs" / run.name / "run.json").read_text())
        of_the_study = {"epochs_to_target", "seconds_to_target", "samples", "outcomes"}
        assert stored == run.model_dump(mode="json") | {key: stored[key] for key in of_the_study}


def test_the_samples_and_outcomes_named_in_the_results_are_there(study_folder, study_results):
    for run in study_results.runs:
        assert (study_folder / run.samples).is_file()
        assert len(read_outcomes(study_folder / run.outcomes).names) == 20


def test_the_summary_is_that_of_the_runs(study_folder, study_results):
    arms = trials(study_results.runs, study_folder, "image", "images")
    assert study_results.summary == summarize(arms, "auc")


def test_the_data_are_described(study_results, lung_npz):
    data = study_results.study.data
    assert (data.source, data.kind, data.classes) == (str(lung_npz), "classification", ["normal", "pneumonia"])
    assert data.images == {"train": 48, "val": 16, "test": 20}
    assert (data.shape, data.patients, data.sites) == ([1, 12, 12], {}, [])


def test_the_parameters_are_those_of_the_network_without_normalization(study_results):
    # 12 → 10 → 8 → 4 pixels a side.
    assert study_results.study.parameters == (9 + 1) * 32 + (9 * 32 + 1) * 64 + (4 * 4 * 64 + 1) * 2


def test_the_network_that_was_trained_is_named_as_the_task_names_it(study_results):
    assert study_results.study.networks == [find_task("lung").network] == ["article_cnn"]
    assert study_results.study.network.startswith("conv 32, ReLU, norm, conv 64, ReLU, norm, max-pool, dense")
    assert {run.network for run in study_results.runs} == {"article_cnn"}


def test_the_settings_on_disk_are_those_of_the_study(study_folder, study_results):
    stored = tomllib.loads((study_folder / "study.toml").read_text(encoding="utf-8"))
    assert stored == {key: value for key, value in study_results.study.settings.items() if value is not None}


def test_arms_that_differ_in_norm_alone_start_from_the_same_weights(study_results):
    """Their first layer sees the same images with the same weights, so its output on the first batch is the same."""
    runs = {run.name: run for run in study_results.runs}
    for seed in (0, 1):
        first = {runs[f"{norm}-none-b16-s{seed}"].epochs[0].layers["conv1"] for norm in ("none", "batch")}
        assert len(first) == 1


def test_a_finished_study_trains_nothing_and_gives_the_same_figures(study_folder, study_results, tmp_path, lung_npz):
    copy = tmp_path / "copy"
    shutil.copytree(study_folder, copy)
    (copy / "results.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in (copy / "runs").rglob("[!.]*") if path.is_file()}
    flags = {"norms": ["none", "batch"], "regularizers": ["none", "dropout"], "seeds": [0, 1], "epochs": 2}
    again = run_study(settings(lung_npz, **flags), copy, "again")
    assert {path: path.stat().st_mtime_ns for path in (copy / "runs").rglob("[!.]*") if path.is_file()} == before
    assert read_figures(copy) == read_figures(study_folder)
    assert again.runs == study_results.runs


def test_a_further_seed_trains_that_seed_alone(lung_npz, tmp_path):
    first = run_study(settings(lung_npz), tmp_path, "")
    second = run_study(settings(lung_npz, seeds=[0, 1]), tmp_path, "")
    assert second.runs[0] == first.runs[0]
    assert [run.seed for run in second.runs] == [0, 1]


def test_a_folder_with_other_settings_is_refused_and_left_as_it_was(lung_npz, tmp_path):
    run_study(settings(lung_npz), tmp_path, "")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match="expected a run with epochs = 2, got one with 1"):
        run_study(settings(lung_npz, epochs=2), tmp_path, "")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_changed_file_of_images_is_not_mixed_with_runs_on_the_old(lung_npz, tmp_path):
    from tests.studies import write_npz

    data = tmp_path / "data.npz"
    shutil.copy(lung_npz, data)
    run_study(settings(data), tmp_path / "out", "")
    write_npz(data, seed=1)
    with pytest.raises(RunError, match="expected a run with digest = "):
        run_study(settings(data), tmp_path / "out", "")


def test_the_same_images_at_another_place_are_the_same_study(lung_npz, tmp_path):
    first = run_study(settings(lung_npz), tmp_path / "out", "")
    again = run_study(settings(shutil.copy(lung_npz, tmp_path / "moved.npz")), tmp_path / "out", "")
    assert again.runs == first.runs


def test_a_batch_size_above_the_number_of_images_is_refused_before_any_training(lung_npz, tmp_path):
    with pytest.raises(ConfigError, match="batch size: expected at most 48, the number of training images, got 64"):
        run_study(settings(lung_npz, batch_sizes=[16, 64], base_batch_size=16), tmp_path, "")
    assert not (tmp_path / "runs").exists()


def test_a_folder_another_process_works_in_is_refused(lung_npz, tmp_path):
    with FileLock(tmp_path / ".lock"), pytest.raises(RunError, match="another mednorm works in this folder") as raised:
        run_study(settings(lung_npz), tmp_path, "")
    assert str(tmp_path) in str(raised.value)
    assert not (tmp_path / "runs").exists()


def test_a_mistake_lets_go_of_the_folder(lung_npz, tmp_path):
    with pytest.raises(ValueError, match=r"gone\.npz"):
        run_study(settings(tmp_path / "gone.npz"), tmp_path / "out", "")
    assert run_study(settings(lung_npz), tmp_path / "out", "").runs


def test_a_study_in_which_every_run_diverges_ends_with_valid_results_and_a_page(lung_npz, tmp_path):
    wild = settings(lung_npz, norms=["none", "batch"], optimizer="sgd", learning_rate=1e38, epochs=3)
    results = run_study(wild, tmp_path, "")
    assert [run.status for run in results.runs] == ["diverged", "diverged"]
    assert all(value is None for run in results.runs for value in run.metrics.values())
    json.loads((tmp_path / "results.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    assert read_results(tmp_path / "results.json") == results
    assert any("stopped being a number in none-none-b16-s0, batch-none-b16-s0" in s.text for s in results.statements)
    assert "none-none-b16-s0" in write_report(results, tmp_path).read_text(encoding="utf-8")


def test_what_is_said_while_waiting_names_images_and_runs(lung_npz, tmp_path):
    lines = []
    results = run_study(settings(lung_npz), tmp_path, "", say=lines.append)
    assert lines == [
        "Reading the images of lung …",
        f"1 runs of 1 epochs on 48 train, 16 val, 20 test images; results in {tmp_path}",
        f"1/1 none-none-b16-s0: test auc {results.runs[0].metrics['test_auc']:.3f}, {results.runs[0].seconds:.0f} s",
    ]


def test_figures_leave_out_what_no_two_studies_share(study_folder):
    content = json.loads((study_folder / "results.json").read_text())
    shown = figures(content)
    assert "environment" not in shown
    assert shown["runs"][0]["metrics"] == content["runs"][0]["metrics"]
    assert "seconds_per_step" not in shown["runs"][0]


def test_the_size_of_the_images_is_written_down_though_none_was_asked_for(study_folder, study_results):
    assert study_results.study.settings["image_size"] is None
    for run in study_results.runs:
        assert load_settings(study_folder / "runs" / run.name).image_size == [12, 12]


def test_what_a_killed_study_left_half_written_is_cleared_away(lung_npz, tmp_path):
    (tmp_path / ".results.json.123.partial").write_text("half")
    run_study(settings(lung_npz), tmp_path, "")
    assert [path.name for path in tmp_path.glob(".*")] == [".lock"]


@pytest.mark.parametrize("terminal", [True, False])
def test_finished_runs_are_said_one_a_line_where_no_bar_can_be_shown(lung_npz, tmp_path, terminal):
    lines = []
    display = progress_display(console=Console(file=io.StringIO(), force_terminal=terminal), disable=True)
    run_study(settings(lung_npz, seeds=[0, 1]), tmp_path, "", display, lines.append)
    finished = [line.split(":")[0] for line in lines[2:]]
    assert finished == ([] if terminal else ["1/2 none-none-b16-s0", "2/2 none-none-b16-s1"])
