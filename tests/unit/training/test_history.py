import csv
from dataclasses import dataclass
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn

from mednorm.tasks import Task, find_task
from mednorm.tasks.judge import ClassificationJudge
from mednorm.tasks.scaling import fit_input_scaling
from mednorm.training.batches import training_loader
from mednorm.training.run import train
from tests.studies import run_settings

LUNG = find_task("lung")


BACKWARDS = """
from torch import nn
from monai.networks.layers.utils import get_norm_layer


class Backwards(nn.Module):
    def __init__(self, spatial_dims, in_channels, out_channels, norm):
        super().__init__()
        self.dense = nn.Linear(4, out_channels)
        self.norm = get_norm_layer(norm, spatial_dims, 4)
        self.second = nn.Conv2d(3, 4, 3)
        self.first = nn.Conv2d(in_channels, 3, 3)

    def forward(self, images):
        return self.dense(self.norm(self.second(self.first(images))).mean((2, 3)))
"""


@dataclass(frozen=True)
class Watched(Task):
    """Keeps the networks it builds."""

    built: tuple = ()

    def network_for(self, *arguments):
        network = super().network_for(*arguments)
        self.built.append(network)
        return network


def watched():
    return Watched(**vars(LUNG), built=[])


def fresh(prepared, settings):
    """The network as it is before its first step."""
    torch.manual_seed(settings.seed)
    network = LUNG.network_for(
        prepared.shape, settings.network, settings.norm, settings.dropout_rate, settings.placement
    )
    fit_input_scaling(network, prepared.splits()["train"].images)
    return network


def first_step(settings, prepared):
    """Do the first step of a run by hand: the network after its backward pass, and each layer's output."""
    network, outputs = fresh(prepared, settings), {}
    for name in ("conv1", "conv2", "dense"):
        layer = getattr(network.net, name)
        layer.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output.detach().numpy()}))
    images, labels, _ = next(iter(training_loader(prepared.splits()["train"], settings.batch_size, settings.seed)))
    nn.functional.cross_entropy(network(images), labels).backward()
    return network, outputs


@pytest.fixture(scope="module")
def single(prepared, tmp_path_factory):
    """A run of one epoch of one step, and the same by hand."""
    settings = run_settings(epochs=1, batch_size=48)
    run = train(settings, LUNG, prepared, tmp_path_factory.mktemp("single"))
    return run.epochs[0], *first_step(settings, prepared)


def test_gradient_norms_are_those_computed_by_hand(single):
    epoch, network, _ = single
    expected = {n: np.linalg.norm(getattr(network.net, n).weight.grad) for n in ("conv1", "conv2", "dense")}
    assert epoch.gradient_norms == pytest.approx(expected, rel=1e-4)


def test_layer_statistics_are_those_of_each_layers_output_averaged_over_channels(single):
    epoch, _, outputs = single
    for name, output in outputs.items():
        values = output.astype(np.float64).reshape(*output.shape[:2], -1)
        expected = {
            "mean": values.mean(),
            "variance": values.var((0, 2)).mean(),
            "range": np.ptp(values, (0, 2)).mean(),
        }
        assert epoch.layers[name].model_dump() == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_gradient_norms_are_averaged_over_the_steps(prepared, tmp_path):
    settings = run_settings(
        epochs=1, batch_size=16, optimizer="sgd", learning_rate=1e-30
    )  # weights stay where they are
    run = train(settings, LUNG, prepared, tmp_path)
    network, norms = fresh(prepared, settings), []
    for images, labels, _ in training_loader(prepared.splits()["train"], 16, settings.seed):
        network.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        norms.append(network.net.dense.weight.grad.norm().item())
    assert len(norms) == 3
    assert run.epochs[0].gradient_norms["dense"] == pytest.approx(np.mean(norms), rel=1e-4)
    assert run.initial_gradient_norms["dense"] == pytest.approx(norms[0], rel=1e-4)


def test_the_first_gradients_are_those_of_the_first_batch_in_the_order_of_the_layers(prepared, tmp_path):
    settings = run_settings(epochs=2, batch_size=16)
    run = train(settings, LUNG, prepared, tmp_path)
    network, _ = first_step(settings, prepared)
    expected = {n: np.linalg.norm(getattr(network.net, n).weight.grad) for n in ("conv1", "conv2", "dense")}
    assert list(run.initial_gradient_norms) == list(expected)
    assert run.initial_gradient_norms == pytest.approx(expected, rel=1e-4)
    assert run.epochs[0].gradient_norms["dense"] != run.initial_gradient_norms["dense"]


def test_layers_stand_in_the_order_in_which_they_are_called(prepared, tmp_path, monkeypatch):
    (tmp_path / "backwards_network.py").write_text(BACKWARDS)
    monkeypatch.chdir(tmp_path)
    settings = run_settings(epochs=1, network="backwards_network:Backwards")
    run = train(settings, LUNG, prepared, tmp_path / "run")
    assert list(run.epochs[0].gradient_norms) == ["first", "second", "dense"]
    assert list(run.initial_gradient_norms) == ["first", "second", "dense"]
    assert list(run.epochs[0].layers) == ["first", "second", "dense"]


class Trouble(pl.Callback):
    """Raises in the first step, while every layer is watched."""

    def on_before_backward(self, trainer, module, loss):
        assert any(part._forward_hooks for part in module.modules())
        raise OSError("disk on fire")


def test_no_hook_is_left_on_the_network_after_an_exception(prepared, tmp_path):
    task = watched()
    with pytest.raises(OSError, match="disk on fire"):
        train(run_settings(), task, prepared, tmp_path, [Trouble()])
    assert [name for name, part in task.built[0].named_modules() if part._forward_hooks] == []


def test_no_hook_is_left_on_the_network_after_training(prepared, tmp_path):
    task = watched()
    train(run_settings(epochs=1), task, prepared, tmp_path)
    assert [name for name, part in task.built[0].named_modules() if part._forward_hooks] == []


def test_the_table_has_a_row_for_each_epoch_with_the_numbers_of_the_record(study_folder, study_results):
    run = next(run for run in study_results.runs if run.name == "batch-dropout-b16-s1")
    with (study_folder / "runs" / run.name / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [1, 2]
    for row, epoch in zip(rows, run.epochs, strict=True):
        assert float(row["train_loss"]) == epoch.train_loss
        assert float(row["val_metrics/auc"]) == epoch.val_metrics["auc"]
        assert float(row["gradient_norms/conv1"]) == epoch.gradient_norms["conv1"]
        assert float(row["layers/dense/range"]) == epoch.layers["dense"].range
        assert "penalty" not in row


def test_the_penalty_is_recorded_where_there_is_one(prepared, tmp_path):
    settings = run_settings(epochs=1, batch_size=48, regularizer="l2", l2=0.5)
    run = train(settings, LUNG, prepared, tmp_path)
    network, _ = first_step(settings, prepared)
    weights = [getattr(network.net, name).weight.detach().numpy() for name in ("conv1", "conv2", "dense")]
    assert run.epochs[0].penalty == pytest.approx(0.25 * sum((w**2).sum() for w in weights), rel=1e-4)


def test_time_and_memory_of_an_epoch_are_sane(study_results):
    for run in study_results.runs:
        for epoch in run.epochs:
            assert 0 < epoch.seconds_per_step < epoch.seconds < 600
            assert epoch.peak_memory_mb is None or 0 <= epoch.peak_memory_mb < 4096
        assert run.seconds == pytest.approx(sum(epoch.seconds for epoch in run.epochs))


def test_training_metrics_are_taken_over_all_images_of_the_epoch(prepared, tmp_path):
    """With a learning rate of nothing and no norm, the training metrics are those of the initial network."""
    from sklearn.metrics import roc_auc_score

    settings = run_settings(epochs=1, norm="none", optimizer="sgd", learning_rate=1e-30)
    run = train(settings, LUNG, prepared, tmp_path)
    network, train_set = fresh(prepared, settings), prepared.splits()["train"]
    with torch.no_grad():
        logits = network(train_set.images)
    expected = roc_auc_score(train_set.targets, logits.softmax(1)[:, 1])
    assert run.epochs[0].train_metrics["auc"] == pytest.approx(expected, abs=1e-6)
    assert run.epochs[0].train_loss == pytest.approx(
        nn.functional.cross_entropy(logits, train_set.targets).item(), rel=1e-5
    )


def test_the_clock_of_the_step_does_not_count_the_metrics(prepared, tmp_path, monkeypatch):
    """Time stands still but for the metrics, which take 100 s a batch: three in training, one in validation."""
    now = [0.0]
    update = ClassificationJudge.update

    def slow(judge, outputs, targets):
        now[0] += 100
        update(judge, outputs, targets)

    monkeypatch.setattr(ClassificationJudge, "update", slow)
    monkeypatch.setattr("mednorm.training.history.time", SimpleNamespace(perf_counter=lambda: now[0]))
    run = train(run_settings(epochs=1), LUNG, prepared, tmp_path)
    assert (run.epochs[0].seconds_per_step, run.epochs[0].seconds) == (0, 400)
