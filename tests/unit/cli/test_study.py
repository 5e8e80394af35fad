import json
import shlex
import shutil
import sys

import pytest
from filelock import FileLock

from mednorm.cli.app import run
from mednorm.results import Results
from tests.studies import write_patients

TINY = ["--norms", "none", "--seeds", "0", "--batch-sizes", "16", "--epochs", "1"]


@pytest.fixture
def copied(study_folder, tmp_path):
    """A finished study of our own, so that showing it trains nothing."""
    copy = tmp_path / "copy"
    shutil.copytree(study_folder, copy)
    return copy


def again(copy, lung_npz, *options):
    arms = ["--norms", "none,batch", "--regularizers", "none,dropout", "--seeds", "0,1", "--batch-sizes", "16"]
    return run(["study", "lung", "--data", str(lung_npz), "--epochs", "2", "--out", str(copy), *arms, *options])


def test_json_is_the_results_file_and_nothing_else_is_on_stdout(capsys, copied, lung_npz):
    assert again(copied, lung_npz, "--json") == 0
    captured = capsys.readouterr()
    assert captured.out == (copied / "results.json").read_text(encoding="utf-8")
    assert Results.model_validate_json(captured.out).study.task == "lung"
    assert "Reading the images of lung" in captured.err


def test_json_stays_clean_while_a_run_trains(capsys, tmp_path, lung_npz):
    assert run(["study", "lung", "--data", str(lung_npz), "--out", str(tmp_path / "out"), *TINY, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["status"] == "finished"


def test_the_table_the_sentences_and_where_the_files_are_are_shown(capsys, copied, lung_npz, study_results):
    assert again(copied, lung_npz) == 0
    shown = capsys.readouterr().out
    assert "lung: 8 runs, mean and 95 % interval over seeds" in shown
    assert study_results.statements[0].text[:50] in shown
    assert shown.endswith(f"Figures  {copied / 'results.json'}\nPage     {copied / 'report.html'}\n")
    assert (copied / "report.html").stat().st_size > 100_000


def test_an_output_folder_with_brackets_in_its_name_is_a_folder_like_others(capsys, tmp_path, lung_npz):
    """Rich takes [/b] for the end of a style and once stopped there with a traceback."""
    out = tmp_path / "results[/b]"
    assert run(["study", "lung", "--data", str(lung_npz), "--out", str(out), *TINY]) == 0
    assert f"Figures  {out / 'results.json'}" in capsys.readouterr().out


def test_a_file_of_settings_is_taken_and_options_are_stronger(capsys, tmp_path, lung_npz):
    (tmp_path / "my.toml").write_text(
        f'task = "lung"\ndata = "{lung_npz}"\nnorms = ["batch"]\nseeds = [3]\nbatch_sizes = [24]\nepochs = 2\n'
    )
    options = ["--config", str(tmp_path / "my.toml"), "--epochs", "1", "--out", str(tmp_path / "out"), "--json"]
    assert run(["study", *options]) == 0
    (only,) = json.loads(capsys.readouterr().out)["runs"]
    assert (only["name"], len(only["epochs"])) == ("batch-none-b24-s3", 1)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("epoch = 3", "unknown key 'epoch'. Did you mean 'epochs'?"),
        ("epochs = 'many'", "epochs: input should be a valid integer"),
        ("epochs = ", "not valid TOML: Invalid value"),
        ("task = 'lung'", "task: expected 'tissue', as on the command line, got 'lung'."),
    ],
)
def test_a_mistake_in_a_file_of_settings_is_one_line_that_names_the_file(capsys, tmp_path, content, expected):
    path = tmp_path / "my.toml"
    path.write_text(content)
    assert run(["study", "tissue", "--config", str(path), "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"mednorm: {path}: {expected}")
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_said_and_left_alone(capsys, tmp_path, lung_npz):
    out = tmp_path / "out"
    out.mkdir()
    with FileLock(out / ".lock"):
        assert run(["study", "lung", "--data", str(lung_npz), "--out", str(out), *TINY]) == 2
    said = capsys.readouterr().err
    assert said == f"mednorm: {out}: another mednorm works in this folder. Wait for it, or choose another --out.\n"
    assert [path.name for path in out.iterdir()] == [".lock"]


def test_other_settings_in_the_same_folder_are_said_in_one_line(capsys, copied, lung_npz):
    assert again(copied, lung_npz, "--learning-rate", "0.5") == 2
    said = capsys.readouterr().err
    assert "expected a run with learning_rate = 0.5, got one with 0.001. Choose another --out" in said
    assert said.count("\n") == 1


def test_the_command_is_written_down(copied, study_results):
    assert study_results.environment.command == shlex.join(["mednorm", *sys.argv[1:]])


def test_folds_sites_and_shares_on_the_command_line_are_what_is_studied(capsys, tmp_path):
    data = write_patients(tmp_path / "data")
    small = ["--norms", "none,batch", "--seeds", "0", "--batch-sizes", "3", "--epochs", "1", "--json"]
    heart = ["--preset", "quick", "--image-size", "12,12", "--folds", "2", "--train-shares", "0.5,1", *small]
    assert run(["study", "heart", "--data", str(data), "--out", str(tmp_path / "folds"), *heart]) == 0
    found = json.loads(capsys.readouterr().out)
    names = [f"{n}-none-b3-s0{share}-f{f}of2" for f in (1, 2) for share in ("", "-t0.5") for n in ("none", "batch")]
    assert [each["name"] for each in found["runs"]] == names
    lv = ["--preset", "quick", "--network", "unet", "--image-size", "16,16", "--folds", "0", "--holdout-site", "each"]
    assert run(["study", "heart-lv", "--data", str(data), "--out", str(tmp_path / "sites"), *lv, *small]) == 0
    assert json.loads(capsys.readouterr().out)["study"]["folds"] == ["site-north", "site-south"]


def test_a_cross_validation_is_shown_as_a_table_and_a_page(capsys, tmp_path):
    data, out = write_patients(tmp_path / "data"), tmp_path / "out"
    options = ["--preset", "quick", "--image-size", "12,12", "--folds", "2", "--batch-sizes", "3", "--epochs", "1"]
    assert run(["study", "heart", "--data", str(data), "--out", str(out), *options]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "4 runs of 1 epochs on 18 train, 18 test images in each of 2 folds" in shown
    assert "2-fold cross-validation by patient" in shown
    assert (out / "report.html").stat().st_size > 100_000
