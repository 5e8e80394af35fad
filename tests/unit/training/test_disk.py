import csv
import io
import re

import pytest
import torch
from torch import nn

from mednorm.errors import ConfigError, RunError
from mednorm.files import write_atomically
from mednorm.results import Epoch, LayerSummary
from mednorm.training.disk import (
    AtomicCheckpoints,
    exclusive,
    flat,
    load_settings,
    load_weights,
    metrics_csv,
    open_run,
)
from tests.studies import run_settings

SETTINGS = run_settings(regularizer="dropout+l2", learning_rate=0.1 + 0.2, classes=["normal", "ill, or “so”"])


class Payload:
    """Pickled by name: writes a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def epoch(number, **changed):
    values = {
        "epoch": number, "train_loss": 0.5, "val_loss": None, "penalty": None, "train_metrics": {"auc": 0.75},
        "val_metrics": {"auc": None}, "gradient_norms": {"conv1": 0.25, "dense": 4.0},
        "layers": {"conv1": LayerSummary(mean=0.0, variance=2.0, range=9.0)}, "seconds": 1.5,
        "seconds_per_step": 0.5, "peak_memory_mb": None,
    }  # fmt: skip
    return Epoch.model_validate(values | changed)


def test_settings_come_back_from_disk_exactly(tmp_path):
    assert open_run(SETTINGS, tmp_path) is None
    assert load_settings(tmp_path) == SETTINGS


def test_opening_a_folder_twice_with_the_same_settings_is_fine(tmp_path):
    open_run(SETTINGS, tmp_path)
    assert open_run(SETTINGS, tmp_path) is None


@pytest.mark.parametrize(
    ("key", "value", "before"),
    [
        ("epochs", 9, 3),
        ("digest", "abc", ""),
        ("learning_rate", 0.5, SETTINGS.learning_rate),
        ("image_size", [8, 8], None),
    ],
)
def test_a_folder_with_other_settings_is_refused_and_the_difference_named(tmp_path, key, value, before):
    open_run(SETTINGS, tmp_path)
    expected = rf"expected a run with {key} = {value!r}, got one with {before!r}".replace("[", r"\[")
    with pytest.raises(RunError, match=expected):
        open_run(SETTINGS.model_copy(update={key: value}), tmp_path)


@pytest.mark.parametrize("changed", [{"tensorboard": True}, {"lean": True}, {"data": "elsewhere/the_same.npz"}])
def test_what_does_not_change_the_numbers_may_differ(tmp_path, changed):
    open_run(SETTINGS, tmp_path)
    assert open_run(SETTINGS.model_copy(update=changed), tmp_path) is None


@pytest.mark.parametrize("content", ["", '{"name": "batch-none"', '{"name": "batch-none-b16-s0"}', "\xff"])
def test_a_damaged_record_is_named_with_what_to_do(tmp_path, content):
    open_run(SETTINGS, tmp_path)
    (tmp_path / "run.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(RunError, match=rf"{re.escape(str(tmp_path / 'run.json'))}: damaged \(.*Remove it"):
        open_run(SETTINGS, tmp_path)


def test_a_damaged_config_is_named(tmp_path):
    (tmp_path / "config.toml").write_text("epochs = ")
    with pytest.raises(ConfigError, match=rf"{re.escape(str(tmp_path / 'config.toml'))}: not valid TOML"):
        open_run(SETTINGS, tmp_path)


def test_a_folder_that_is_no_run_is_said(tmp_path):
    with pytest.raises(RunError, match=rf"{re.escape(str(tmp_path))}: expected the folder of a run.*no config\.toml"):
        load_settings(tmp_path)


def test_weights_are_loaded_without_the_name_of_the_training_module(tmp_path):
    saved, loaded = nn.Linear(3, 2), nn.Linear(3, 2)
    state = {f"network.{key}": value for key, value in saved.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 4}, tmp_path / "best.ckpt")
    assert load_weights(loaded, tmp_path / "best.ckpt") == 5
    assert torch.equal(loaded.weight, saved.weight)
    assert torch.equal(loaded.bias, saved.bias)


def test_a_missing_checkpoint_says_that_no_epoch_was_finished(tmp_path):
    with pytest.raises(RunError, match=r"best\.ckpt: no such file\. The run has not finished an epoch"):
        load_weights(nn.Linear(3, 2), tmp_path / "best.ckpt")


def test_weights_are_never_unpickled(tmp_path):
    proof = tmp_path / "executed"
    torch.save({"state_dict": Payload(proof), "epoch": 0}, tmp_path / "best.ckpt")
    with pytest.raises(RunError, match=r"best\.ckpt: expected the weights.*got: Weights only load failed"):
        load_weights(nn.Linear(3, 2), tmp_path / "best.ckpt")
    assert not proof.exists()
    torch.load(tmp_path / "best.ckpt", weights_only=False)["state_dict"].close()  # the payload is a live one
    assert proof.exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_a_truncated_checkpoint_is_named(tmp_path, share):
    path = tmp_path / "best.ckpt"
    torch.save({"state_dict": nn.Linear(30, 20).state_dict(), "epoch": 0}, path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(RunError, match=rf"{re.escape(str(path))}: expected the weights of this run's network, got: .+"):
        load_weights(nn.Linear(30, 20), path)


@pytest.mark.parametrize("content", [{"weights": 1}, [1, 2], torch.zeros(3), {"state_dict": 3, "epoch": 0}])
def test_a_file_of_something_else_is_named(tmp_path, content):
    torch.save(content, tmp_path / "best.ckpt")
    with pytest.raises(RunError, match=r"best\.ckpt: expected the weights of this run's network, got: .+"):
        load_weights(nn.Linear(3, 2), tmp_path / "best.ckpt")


def test_the_weights_of_another_network_are_refused_with_both_shapes(tmp_path):
    torch.save({"state_dict": nn.Linear(5, 2).state_dict(), "epoch": 0}, tmp_path / "best.ckpt")
    with pytest.raises(RunError, match=r"size mismatch for weight: .*\[2, 5\].*\[2, 3\]"):
        load_weights(nn.Linear(3, 2), tmp_path / "best.ckpt")


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpoints().save_checkpoint({"epoch": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        AtomicCheckpoints().save_checkpoint({"epoch": 2, "what": lambda: None}, path)
    assert AtomicCheckpoints().load_checkpoint(path) == {"epoch": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_record_is_flattened_with_slashes_and_without_what_is_not_defined():
    assert flat(epoch(2)) == {
        "epoch": 2, "train_loss": 0.5, "train_metrics/auc": 0.75, "gradient_norms/conv1": 0.25,
        "gradient_norms/dense": 4.0, "layers/conv1/mean": 0.0, "layers/conv1/variance": 2.0,
        "layers/conv1/range": 9.0, "seconds": 1.5, "seconds_per_step": 0.5,
    }  # fmt: skip


def test_the_table_leaves_cells_empty_that_only_other_epochs_have():
    text = metrics_csv([epoch(1), epoch(2, val_loss=0.25), epoch(3, train_loss=None)])
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["val_loss"] for row in rows] == ["", "0.25", ""]
    assert [row["train_loss"] for row in rows] == ["0.5", "0.5", ""]


def test_a_held_folder_is_made_and_let_go_of_whatever_happens(tmp_path):
    folder = tmp_path / "new" / "out"
    with pytest.raises(ZeroDivisionError), exclusive(folder):
        1 / 0  # noqa: B018
    with exclusive(folder):
        assert folder.is_dir()


def test_a_folder_that_is_held_is_refused_and_what_its_holder_writes_is_left_alone(tmp_path):
    with exclusive(tmp_path):
        (tmp_path / ".last.ckpt.1.partial").write_bytes(b"being written")
        expected = rf"{re.escape(str(tmp_path))}: another mednorm works in this folder\. Wait for it, or choose"
        with pytest.raises(RunError, match=expected), exclusive(tmp_path):
            pytest.fail("held twice")
        assert (tmp_path / ".last.ckpt.1.partial").read_bytes() == b"being written"


def test_holding_a_folder_clears_what_is_half_written_and_nothing_else(tmp_path):
    kept = [".hidden", "last.ckpt", "notes.partial"]
    for name in [*kept, ".last.ckpt.1.partial", ".results.json.77.partial"]:
        (tmp_path / name).touch()
    write_atomically(tmp_path / ".run-treated.9.partial" / "treatment.json", "{}")
    with exclusive(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", ".lock", "last.ckpt", "notes.partial"]
