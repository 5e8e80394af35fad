import re

import pytest

from mednorm.errors import ConfigError
from mednorm.training.settings import RunSettings, canonical_regularizer, read_toml, validated
from tests.studies import run_settings


def refused(**changed):
    with pytest.raises(ConfigError) as raised:
        validated(RunSettings, run_settings().model_dump() | changed, "here.toml")
    return str(raised.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", "none"),
        ("l2+dropout", "dropout+l2"),
        (" l1 + l2 ", "l1+l2"),
        ("l2+l2", "l2"),
        ("dropout", "dropout"),
        ("l1+dropout_last", "dropout_last+l1"),
        ("dropout_before", "dropout_before"),
    ],
)
def test_a_regularizer_has_one_spelling(text, expected):
    assert canonical_regularizer(text) == expected


@pytest.mark.parametrize("text", ["l3", "none+l2", "", "dropout+"])
def test_an_unknown_regularizer_is_named_once(text):
    message = refused(regularizer=text)
    known = "dropout, dropout_before, dropout_last, l1, l2 such as 'dropout+l2'"
    assert message.startswith(f"here.toml: regularizer: expected 'none' or a sum of {known}, got")
    assert message.endswith(f"got {text!r}.")
    assert message.count("got") == 1


def test_dropout_in_two_places_at_once_is_refused_with_both_named():
    message = refused(regularizer="l2+dropout_last+dropout")
    assert message == "here.toml: regularizer: expected dropout in one place, got dropout and dropout_last."


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({}, "batch-none-b16-s0"),
        ({"regularizer": "l2+dropout", "seed": 4}, "batch-dropout+l2-b16-s4"),
        ({"train_share": 0.1}, "batch-none-b16-s0-t0.1"),
        ({"fold": "2of5"}, "batch-none-b16-s0-f2of5"),
        ({"deeper": True, "train_share": 0.25, "fold": "site-HT"}, "batch-none-b16-s0-deeper-t0.25-fsite-HT"),
    ],
)
def test_the_name_of_a_run_tells_what_it_is(changed, name):
    assert run_settings(**changed).name == name


@pytest.mark.parametrize(
    ("regularizer", "rate", "placement"),
    [
        ("none", 0.0, None),
        ("l2", 0.0, None),
        ("dropout", 0.4, "every"),
        ("dropout_before+l1", 0.4, "before"),
        ("dropout_last", 0.4, "last"),
    ],
)
def test_only_an_arm_with_dropout_drops_and_where_its_name_says(regularizer, rate, placement):
    settings = run_settings(regularizer=regularizer, dropout=0.4)
    assert (settings.dropout_rate, settings.placement) == (rate, placement)


def test_dropout_of_nothing_has_no_place():
    settings = run_settings(regularizer="dropout", dropout=0)
    assert (settings.dropout_rate, settings.placement) == (0.0, None)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("epochs", 0, "here.toml: epochs: input should be greater than or equal to 1, got 0."),
        ("epochs", "three", "here.toml: epochs: input should be a valid integer.*got 'three'"),
        ("learning_rate", -0.5, "here.toml: learning_rate: input should be greater than 0, got -0.5."),
        ("learning_rate", float("inf"), "here.toml: learning_rate: input should be a finite number, got inf."),
        ("l2", float("nan"), "here.toml: l2: .*got nan."),
        ("dropout", 1, "here.toml: dropout: input should be less than 1, got 1."),
        ("optimizer", "adma", "here.toml: optimizer: input should be 'adam', 'adamw' or 'sgd', got 'adma'."),
        ("norm", "evonorm", "here.toml: norm: .*got 'evonorm'."),
        ("train_share", 0, "here.toml: train_share: input should be greater than 0, got 0."),
        ("train_share", 1.5, "here.toml: train_share: input should be less than or equal to 1, got 1.5."),
        ("folds", -1, "here.toml: folds: input should be greater than or equal to 0, got -1."),
        ("patches_per_volume", 0, "here.toml: patches_per_volume: .*got 0."),
        ("patch_size", "32", "here.toml: patch_size: input should be a valid list, got '32'."),
        ("seed", 2**31, "here.toml: seed: .*got 2147483648."),
        ("batch_size", 0, "here.toml: batch_size: .*got 0."),
        ("classes", "a,b", "here.toml: classes: input should be a valid list, got 'a,b'."),
        ("tensorboard", "perhaps", "here.toml: tensorboard: .*got 'perhaps'."),
    ],
)
def test_a_bad_value_is_said_in_one_line_with_its_source_and_what_came(key, value, expected):
    message = refused(**{key: value})
    assert re.fullmatch(expected.replace(".toml", r"\.toml") + ".*", message)
    assert "\n" not in message


def test_an_unknown_key_names_the_nearest():
    assert refused(learning_rat=1) == "here.toml: unknown key 'learning_rat'. Did you mean 'learning_rate'?"


def test_an_unknown_key_nothing_is_near_to_lists_the_known():
    assert refused(zzz=1).startswith("here.toml: unknown key 'zzz'. Known keys: task, data, classes")


def test_a_missing_key_is_named():
    with pytest.raises(ConfigError, match=r"^here\.toml: epochs is missing\.$"):
        validated(RunSettings, {"task": "lung", "network": "article_cnn"}, "here.toml")


def test_a_toml_file_that_is_not_there_is_named(tmp_path):
    path = tmp_path / "study.toml"
    with pytest.raises(ConfigError, match=f"^{re.escape(str(path))}: no such file"):
        read_toml(path)


def test_a_folder_is_no_toml_file(tmp_path):
    with pytest.raises(ConfigError, match=f"^{re.escape(str(tmp_path))}: cannot be read"):
        read_toml(tmp_path)


def test_what_is_no_toml_is_named_with_the_line(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text("epochs = 3\nseeds = [0, x]\n")
    with pytest.raises(ConfigError, match=rf"{re.escape(str(path))}: not valid TOML: .*line 2"):
        read_toml(path)
