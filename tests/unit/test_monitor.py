"""NormMonitor: what it finds while a network trains, what it logs, and that it leaves the training alone."""

import copy
import csv
import gc
import tracemalloc
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from mednorm import BatchNorm, NormMonitor
from mednorm.errors import ConfigError
from mednorm.lightning import AccumulateStatistics

pytestmark = pytest.mark.filterwarnings("ignore::Warning:lightning", "ignore:NormMonitor:UserWarning")


class Small(pl.LightningModule):
    """Two norms, with dropout, which draws random numbers."""

    def __init__(self, norm=nn.BatchNorm2d, repeat=False, decay=0.0):
        super().__init__()
        torch.manual_seed(1)
        self.network = nn.Sequential(
            *(nn.Conv2d(1, 4, 3, bias=False), norm(4), nn.ReLU(), nn.Dropout(0.2)),
            *(nn.Conv2d(4, 4, 3), norm(4), nn.ReLU(), nn.Conv2d(4, 1, 1)),
        )
        self.repeat, self.decay = repeat, decay

    def training_step(self, batch, index):
        x = self.network[0](batch[0])
        y = checkpoint(self.network[1:], x, use_reentrant=False) if self.repeat else self.network[1:](x)
        return (y - 1).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=self.decay)


def images(steps=12, size=16):
    torch.manual_seed(2)
    return torch.randn(steps * size, 1, 8, 8)


def fit(module, *callbacks, batches=None, size=16, logger=False, accumulate=1):
    """Train for an epoch."""
    batches = images(size=size) if batches is None else batches
    trainer = pl.Trainer(
        max_epochs=1,
        callbacks=list(callbacks),
        logger=logger,
        accumulate_grad_batches=accumulate,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    torch.manual_seed(3)
    trainer.fit(module, DataLoader(TensorDataset(batches), batch_size=size))
    return trainer


def monitor(**settings):
    return NormMonitor(**{"every_n_steps": 4, "budget": None, **settings})


def logged(trainer):
    """Return what the looks wrote to metrics.csv, one row each."""
    with open(Path(trainer.logger.log_dir) / "metrics.csv", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def codes(looking):
    return {(finding.code, finding.severity) for finding in looking.findings}


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, BatchNorm])
def test_a_training_is_bit_identical_with_and_without_it(norm):
    plain, watched = Small(norm), Small(norm)
    fit(plain)
    drawn = torch.rand(3)
    fit(watched, monitor())
    assert torch.equal(torch.rand(3), drawn)
    ours, theirs = watched.state_dict(), plain.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_useless_bias_is_all_there_is_to_say_of_a_sound_network():
    looking = monitor()
    fit(Small(), looking)
    assert [(finding.code, finding.layer) for finding in looking.findings] == [("MN008", "network.5")]


@pytest.mark.parametrize(("norm", "expected"), [(nn.BatchNorm2d, {("MN010", "warning")}), (BatchNorm, set())])
def test_updates_are_counted_in_the_training_itself(norm, expected):
    looking = monitor(select="MN010")
    fit(Small(norm, repeat=True), looking)
    assert codes(looking) == expected


def test_the_trainers_optimizer_tells_the_weight_decay():
    looking = monitor(select="weight-decay")
    fit(Small(decay=0.05), looking)
    assert {finding.layer: finding.evidence[0].value for finding in looking.findings} == {
        "": 0.05,
        "network.1": 0.05,
        "network.5": 0.05,
    }


def test_batches_of_one_image_are_pooled_until_they_tell_how_noisy_one_is():
    varied = images(20, 1) + 3 * torch.randn(20, 1, 1, 1)
    looking = monitor(every_n_steps=1, select="MN003")
    fit(Small(), looking, batches=varied, size=1)
    assert ("MN003", "error") in codes(looking)
    early = monitor(every_n_steps=2, select="MN003")  # ten images in all
    fit(Small(), early, batches=varied, size=1)
    assert early.findings == ()


def test_a_batch_that_is_no_number_is_found_by_the_look_at_it():
    broken = images()
    broken[7 * 16] = torch.nan  # in the 8th batch, which is the second looked at
    looking = monitor(select="MN006")
    fit(Small(BatchNorm), looking, batches=broken[: 8 * 16])
    assert ("MN006", "error") in codes(looking)


def test_frozen_weights_with_moving_statistics_are_found():
    module, looking = Small(), monitor(select="MN011")
    module.network[:2].requires_grad_(False)
    fit(module, looking)
    assert [(finding.code, finding.layer) for finding in looking.findings] == [("MN011", "network.1")]


def test_a_rule_warns_once_however_often_it_finds_something():
    varied = images() + 3 * torch.randn(12 * 16, 1, 1, 1)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        fit(Small(), monitor(every_n_steps=1, select="MN003"), batches=varied[:40], size=2)
    (said,) = (str(each.message) for each in seen if "NormMonitor" in str(each.message))
    assert said.startswith("NormMonitor: MN003 in network.")
    assert "Mended by: mednorm." in said


def test_what_is_logged_has_a_line_for_each_look_and_a_column_for_each_group(tmp_path):
    looking = monitor(select="MN003,MN008")
    trainer = fit(Small(), looking, logger=CSVLogger(tmp_path))
    rows = logged(trainer)
    assert [row["step"] for row in rows] == [4, 8, 12]
    assert {row["norm/findings/info"] for row in rows} == {1.0}
    assert {row["norm/findings/error"] for row in rows} == {0.0}
    for group in ("1", "5"):
        assert all(0 < row[f"norm/{group}/noise"] < 0.4 for row in rows)
        assert rows[0][f"norm/{group}/distance"] > rows[-1][f"norm/{group}/distance"] > 0


def test_the_statistics_of_accumulated_batches_do_not_count_as_standing_still():
    looking = monitor(every_n_steps=2, select="MN010")
    fit(Small(BatchNorm), AccumulateStatistics(), looking, accumulate=3)
    assert codes(looking) == set()


class Twofold(Small):
    """Two optimizers, each of which takes a step with every batch, as where two networks train each other."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, index):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, index))
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.network[place].parameters(), lr=1e-2) for place in (0, 4)]


def test_two_optimizers_a_batch_are_looked_at_and_not_taken_for_checkpoints():
    looking = monitor(every_n_steps=4)
    fit(Twofold(), looking)
    assert codes(looking) == {("MN008", "info")}


class Searching(Small):
    """An optimizer that takes the loss of each batch several times, each with other weights."""

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=5)


@pytest.mark.parametrize(
    ("norm", "repeat", "expected"),
    [(nn.BatchNorm2d, False, set()), (BatchNorm, True, set()), (nn.BatchNorm2d, True, {("MN010", "warning")})],
)
def test_an_optimizer_of_several_passes_a_step_is_not_taken_for_checkpoints(norm, repeat, expected):
    module, looking = Searching(norm, repeat), monitor(select="MN010")
    fit(module, looking)
    assert module.network[1].num_batches_tracked > 3 * 12
    assert codes(looking) == expected
    assert {finding.evidence[0].value for finding in looking.findings} <= {2}


def test_no_hook_is_left_when_training_fails_in_a_step_it_looks_at():
    class Failing(Small):
        def training_step(self, batch, index):
            super().training_step(batch, index)
            raise ZeroDivisionError

    module = Failing()
    with pytest.raises(ZeroDivisionError):
        fit(module, monitor(every_n_steps=1))
    assert [name for name, layer in module.named_modules() if layer._forward_pre_hooks] == []


def test_memory_does_not_grow_with_the_looks():
    class Held(pl.Callback):
        def __init__(self):
            self.bytes = []

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if batch_idx in (19, 59):
                gc.collect()
                self.bytes.append(tracemalloc.get_traced_memory()[0])

    held = Held()
    tracemalloc.start()
    try:
        fit(Small(), monitor(every_n_steps=1), held, batches=images(60))
    finally:
        tracemalloc.stop()
    assert held.bytes[1] - held.bytes[0] < 40_000  # a kilobyte a look, which is less than what it sees of one layer


def test_looks_that_would_cost_more_than_the_budget_are_left_out(tmp_path):
    looks = {}
    for budget in (None, 1e-6):
        looking = monitor(every_n_steps=1, budget=budget)
        trainer = fit(Small(), looking, logger=CSVLogger(tmp_path, version=str(budget)))
        looks[budget] = len(logged(trainer))
    assert looks == {None: 12, 1e-6: 2}  # the first is not counted, the second has used it up


def test_a_copy_of_the_network_after_training_works_without_it():
    module = Small()
    fit(module, monitor())
    assert torch.equal(copy.deepcopy(module.network).eval()(images(1)), module.network.eval()(images(1)))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"every_n_steps": 0}, "every_n_steps to be a whole number of at least 1, got 0"),
        ({"every_n_steps": 2.5}, "got 2.5"),
        ({"budget": 1.5}, r"budget to be a share in \(0, 1\] or None, got 1.5"),
        ({"select": "MN004"}, "expected the code or name of a rule, got 'MN004'"),
    ],
)
def test_what_cannot_be_is_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        NormMonitor(**settings)
