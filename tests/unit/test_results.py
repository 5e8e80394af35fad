import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from mednorm.errors import RunError
from mednorm.results import Estimate, Results, json_schema, read_results
from tests.report_fixture import make_results

SCHEMA = Path(__file__).parents[2] / "docs" / "reference" / "results.schema.json"


@pytest.fixture
def validator():
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.fixture
def content():
    return json.loads(make_results().model_dump_json(by_alias=True))


def written(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_the_documented_schema_is_that_of_the_code():
    assert SCHEMA.read_text(encoding="utf-8") == json_schema(), "run `make schema`"


def test_running_the_module_writes_the_schema():
    done = subprocess.run([sys.executable, "-m", "mednorm.results"], capture_output=True, text=True, check=True)
    assert done.stdout == json_schema()


def test_results_are_read_without_importing_torch():
    code = "import sys, mednorm.results; print(sorted({'torch', 'monai', 'lightning'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_real_study_validates_with_an_independent_validator(validator, study_folder):
    content = json.loads((study_folder / "results.json").read_text(encoding="utf-8"))
    assert [error.message for error in validator.iter_errors(content)] == []


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (lambda content: content.pop("runs"), "runs"),
        (lambda content: content.update(schema=2), "schema"),
        (lambda content: content["runs"][0].update(loss=1.0), "loss"),
        (lambda content: content["runs"][0].update(status="running"), "status"),
        (lambda content: content["study"].update(grid="cross"), "grid"),
    ],
)
def test_the_independent_validator_and_the_reader_refuse_the_same_mistakes(validator, content, tmp_path, spoil, field):
    spoil(content)
    assert not validator.is_valid(content)
    with pytest.raises(RunError, match=field):
        read_results(written(tmp_path, content))


def test_results_come_back_from_disk_as_they_were(tmp_path):
    results = make_results()
    assert read_results(written(tmp_path, results.model_dump_json(by_alias=True))) == results


def test_a_results_file_names_its_schema_number_as_schema(study_folder):
    assert json.loads((study_folder / "results.json").read_text(encoding="utf-8"))["schema"] == 1


def test_a_missing_file_is_named_with_the_command_that_makes_it(tmp_path):
    path = tmp_path / "results.json"
    with pytest.raises(RunError, match=rf"{re.escape(str(path))}: no such file.*mednorm study TASK --out"):
        read_results(path)


def test_a_folder_in_place_of_the_file_is_said(tmp_path):
    with pytest.raises(RunError, match=f"{re.escape(str(tmp_path))}: cannot be read"):
        read_results(tmp_path)


def test_a_truncated_file_is_named(tmp_path, content):
    path = written(tmp_path, json.dumps(content)[:4000])
    with pytest.raises(RunError, match=f"{re.escape(str(path))}: not results of schema 1: the file as a whole: .*EOF"):
        read_results(path)


def test_text_that_is_not_utf_8_is_said(tmp_path):
    path = tmp_path / "results.json"
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(RunError, match=r"results\.json: cannot be read"):
        read_results(path)


def test_a_number_that_is_nan_is_refused_and_its_place_named(tmp_path, content):
    content["runs"][3]["epochs"][1]["train_loss"] = float("nan")
    with pytest.raises(RunError, match=r"runs\.3\.epochs\.1\.train_loss: .*finite"):
        read_results(written(tmp_path, content))


def test_a_number_too_large_for_a_float_is_refused(tmp_path, content):
    text = json.dumps(content).replace('"learning_rate": 0.001', '"learning_rate": 1e999', 1)
    with pytest.raises(RunError, match=r"learning_rate: .*finite"):
        read_results(written(tmp_path, text))


def test_a_later_schema_number_is_named(tmp_path, content):
    content["schema"] = 2
    with pytest.raises(RunError, match="not results of schema 1: schema: Input should be 1"):
        read_results(written(tmp_path, content))


def test_results_cannot_be_changed_once_made():
    with pytest.raises(ValueError, match="frozen"):
        make_results().study = None


def test_nothing_in_a_written_file_is_nan_or_infinite(study_folder):
    def refuse(text):
        raise AssertionError(text)

    text = (study_folder / "results.json").read_text(encoding="utf-8")
    assert Results.model_validate(json.loads(text, parse_constant=refuse)).schema_version == 1


@pytest.mark.parametrize(
    ("given", "signed", "expected"),
    [
        (Estimate(n=3, mean=0.9125, std=0.1, low=-0.05, high=1.0), False, "0.91 [−0.05, 1.00]"),
        (Estimate(n=3, mean=-4.0, std=1.0, low=-6.5, high=1.5), True, "−4.00 [−6.50, +1.50]"),
        (Estimate(n=1, mean=0.5), True, "+0.50"),
        (Estimate(n=3, mean=-2.0, std=0), False, "−2.00"),
        (Estimate(n=0, mean=None), True, "–"),
    ],
)
def test_an_estimate_is_written_with_a_true_minus_and_the_interval_it_has(given, signed, expected):
    assert given.text(2, signed=signed) == expected


@pytest.mark.parametrize(
    ("regularizers", "base"), [(["l2", "none"], "none"), (["l2", "dropout"], "l2"), (["none"], "none"), ([], "none")]
)
def test_the_base_regularizer_is_none_or_else_the_first(regularizers, base):
    assert make_results().study.model_copy(update={"regularizers": regularizers}).base_regularizer == base


def test_the_headline_metrics_are_those_of_test_the_main_one_first_and_no_single_classes():
    names = ["train_dice", "val_dice", "test_hd95", "test_hd95_white", "test_dice_white", "test_dice", "test_dice_grey"]
    assert make_results().study.headline_metrics(names) == ["test_dice", "test_hd95"]
    judged = ["test_specificity", "test_calibration_error", "test_auc", "test_accuracy", "test_balanced_accuracy"]
    expected = ["test_auc", "test_accuracy", "test_calibration_error"]
    assert make_results("classification").study.headline_metrics(judged) == expected


def test_settings_with_shares_of_the_images_come_back_as_numbers_with_a_fraction(tmp_path, validator, content):
    """Whole numbers and words alone were once let in, and a study of shares ended without results."""
    content["study"]["settings"] |= {"train_shares": [0.1, 0.3, 1.0], "seeds": [0, 1], "holdout_site": None}
    assert validator.is_valid(content)
    settings = read_results(written(tmp_path, content)).study.settings
    assert (settings["train_shares"], settings["seeds"]) == ([0.1, 0.3, 1.0], [0, 1])


def test_results_from_before_there_were_networks_folds_and_shares_are_still_read(tmp_path, content):
    added = {
        "study": ("networks", "train_shares", "folds", "left_out"),
        "runs": ("network", "train_share", "fold", "intervals", "batch_metrics", "sites", "initial_gradient_norms"),
        "summary": ("network", "train_share", "over_units", "batch_metrics", "mode_gap", "sites"),
    }
    for part, names in added.items():
        for record in content[part] if isinstance(content[part], list) else [content[part]]:
            for name in names:
                record.pop(name, None)
    read = read_results(written(tmp_path, content))
    assert (read.runs[0].network, read.runs[0].train_share, read.study.folds) == ("", 1.0, [""])
