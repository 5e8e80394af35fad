import gc
import os
import re

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mednorm
from mednorm import BatchNorm, BatchRenorm, freeze, is_frozen
from mednorm.errors import ConfigError
from mednorm.lightning import AccumulateStatistics, FreezeStatistics

STEPS = 10  # micro-batches of an epoch
pytestmark = pytest.mark.filterwarnings("ignore::Warning:lightning")


class Stop(Exception):
    pass


class Small(pl.LightningModule):
    """Two norms and weights between them; one more pass over the images in validation."""

    def __init__(self, norm=BatchNorm, fails_at=None):
        super().__init__()
        torch.manual_seed(1)
        self.network = nn.Sequential(nn.Conv2d(1, 3, 3), norm(3), nn.ReLU(), nn.Conv2d(3, 2, 3), norm(2))
        self.fails_at = fails_at
        self.seen = []  # running mean of the first norm in each validation pass

    def training_step(self, batch, index):
        if self.fails_at == (self.current_epoch, index):
            raise Stop
        return self.network(batch[0]).square().mean() + self.network[1].weight.sum()

    def validation_step(self, batch, index):
        self.network(batch[0])
        self.seen.append(self.network[1].running_mean.clone())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Watch(pl.Callback):
    """What the first norm is after each training batch; further down the list, so after the callback under test."""

    def __init__(self):
        self.means, self.tracked, self.frozen = [], [], []

    def on_train_batch_end(self, trainer, module, *_):
        norm = module.network[1]
        self.means.append(norm.running_mean.clone())
        self.tracked.append(norm.num_batches_tracked.item())
        self.frozen.append(is_frozen(norm))


class Resumable:
    """Batches that go on where they were; PyTorch's loader would begin again in the middle of an epoch."""

    def __init__(self, images):
        self.batches, self.given, self.start = [[batch] for batch in images.split(2)], 0, 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        start, self.start = self.start, 0
        for place in range(start, len(self.batches)):
            self.given = place + 1
            yield self.batches[place]

    def state_dict(self):
        return {"given": self.given}

    def load_state_dict(self, state):
        self.start = state["given"]


@pytest.fixture(scope="module")
def images():
    return 3 + 2 * torch.randn(2 * STEPS, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def fit(module, images, callbacks, *, ckpt_path=None, validate=False, **options):
    data = DataLoader(TensorDataset(images), batch_size=2)
    trainer = pl.Trainer(
        **{"max_epochs": 1, "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks)} | options,
        callbacks=callbacks, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, Resumable(images), data if validate else None, ckpt_path=ckpt_path)
    return trainer


def by_hand(module, images, epochs=1, micro=4):
    """Train with plain loops: `accumulate` around each step of `micro` micro-batches, the last of an epoch shorter."""
    optimizer = module.configure_optimizers()
    states = []
    for _ in range(epochs):
        batches = images.split(2)
        for start in range(0, len(batches), micro):
            optimizer.zero_grad()
            with mednorm.accumulate(module):
                for batch in batches[start : start + micro]:
                    loss = module.network(batch).square().mean() + module.network[1].weight.sum()
                    (loss / micro).backward()
            optimizer.step()
            states.append(statistics(module))
    return states


def statistics(module):
    return {name: value.clone() for name, value in module.network.named_buffers() if "running" in name}


def assert_same(ours, theirs):
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-6)


def moving(module):
    return [layer for layer in module.modules() if isinstance(layer, BatchNorm) and layer.accumulating]


@pytest.mark.parametrize("norm", [BatchNorm, BatchRenorm, mednorm.MovingBatchNorm])
def test_accumulated_steps_move_the_statistics_as_accumulate_by_hand_does(images, norm):
    module, expected = Small(norm), Small(norm)
    trainer = fit(module, images, [AccumulateStatistics()], accumulate_grad_batches=4, max_epochs=2)
    states = by_hand(expected, images, epochs=2)
    assert trainer.global_step == len(states) == 6
    assert_same(statistics(module), states[-1])
    assert module.network[1].num_batches_tracked.item() == 6


def test_without_the_callback_every_micro_batch_would_move_them(images):
    plain, module = Small(), Small()
    fit(plain, images, [], accumulate_grad_batches=4)
    fit(module, images, [AccumulateStatistics()], accumulate_grad_batches=4)
    assert plain.network[1].num_batches_tracked.item() == STEPS
    assert (plain.network[1].running_var - module.network[1].running_var).abs().max() > 0.01


def test_the_statistics_move_when_the_optimizer_steps_and_at_the_shorter_end_of_an_epoch(images):
    watch = Watch()
    fit(Small(), images, [AccumulateStatistics(), watch], accumulate_grad_batches=4)
    assert watch.tracked == [0, 0, 0, 1, 1, 1, 1, 2, 2, 3]


def test_the_shorter_last_step_moves_them_by_its_own_images_alone(images):
    watch, module = Watch(), Small()
    fit(module, images, [AccumulateStatistics(), watch], accumulate_grad_batches=4)
    reference = Small()
    by_hand(reference, images[:16])
    rest = reference.network[0](images[16:])  # two micro-batches of two
    expected = 0.9 * watch.means[7] + 0.1 * rest.mean((0, 2, 3))
    torch.testing.assert_close(watch.means[9], expected, rtol=1e-5, atol=1e-6)


def test_validation_in_the_middle_of_a_step_sees_the_statistics_of_the_steps_before_and_disturbs_nothing(images):
    module, watch, undisturbed = Small(), Watch(), Small()
    callbacks = [AccumulateStatistics(), watch]
    fit(module, images, callbacks, accumulate_grad_batches=4, validate=True, val_check_interval=3)
    assert len(module.seen) == 3 * STEPS
    after_3, after_6, after_9 = (module.seen[place] for place in (0, STEPS, 2 * STEPS))
    assert torch.equal(after_3, torch.zeros(3))
    assert torch.equal(after_6, watch.means[3])
    assert torch.equal(after_9, watch.means[7])
    assert_same(statistics(module), by_hand(undisturbed, images)[-1])


def test_after_training_batches_move_the_statistics_at_once_again(images):
    module = Small()
    fit(module, images, [AccumulateStatistics()], accumulate_grad_batches=4)
    assert moving(module) == []
    module.train().network(images)
    assert module.network[1].num_batches_tracked.item() == 4


def test_an_exception_in_a_training_step_leaves_no_layer_accumulating_and_drops_the_unfinished_step(images):
    module, watch = Small(fails_at=(0, 6)), Watch()
    with pytest.raises(Stop):
        fit(module, images, [AccumulateStatistics(), watch], accumulate_grad_batches=4)
    assert moving(module) == []
    assert module.network[1].num_batches_tracked.item() == 1
    assert torch.equal(module.network[1].running_mean, watch.means[3])


def test_one_callback_serves_a_second_training(images):
    callback, module, expected = AccumulateStatistics(), Small(fails_at=(0, 6)), Small()
    with pytest.raises(Stop):
        fit(module, images, [callback], accumulate_grad_batches=4)
    again = Small()
    fit(again, images, [callback], accumulate_grad_batches=4)
    assert_same(statistics(again), by_hand(expected, images)[-1])


def test_a_network_of_pytorchs_batch_normalization_is_refused_with_the_call_that_converts_it(images):
    with pytest.raises(ConfigError, match=r"got none in Small\. .*mednorm\.convert\(network, to='batch'\)"):
        fit(Small(nn.BatchNorm2d), images, [AccumulateStatistics()])


def test_a_network_with_one_layer_of_pytorchs_left_is_refused_with_its_name(images):
    module = Small()
    module.network[4] = nn.BatchNorm2d(2)
    with pytest.raises(ConfigError, match=r"got BatchNorm2d at 'network\.4', which moves .*mednorm\.convert"):
        fit(module, images, [AccumulateStatistics()])
    assert moving(module) == []


def test_a_training_that_goes_on_from_a_checkpoint_gives_the_statistics_of_an_uninterrupted_one(images, tmp_path):
    whole, module, resumed = Small(), Small(fails_at=(1, 5)), Small()
    fit(whole, images, [AccumulateStatistics()], accumulate_grad_batches=4, max_epochs=2)
    each = ModelCheckpoint(tmp_path, "step{step}", save_top_k=-1, every_n_train_steps=1, auto_insert_metric_name=False)
    with pytest.raises(Stop):
        fit(module, images, [AccumulateStatistics(), each], accumulate_grad_batches=4, max_epochs=2)
    last = max(tmp_path.glob("*.ckpt"), key=lambda path: int(re.findall(r"\d+", path.stem)[0]))
    assert last.stem == "step4"  # the first step of the second epoch
    state = torch.load(last, weights_only=True)["state_dict"]
    assert state["network.1.num_batches_tracked"].item() == 4
    fit(resumed, images, [AccumulateStatistics()], accumulate_grad_batches=4, max_epochs=2, ckpt_path=last)
    assert resumed.network[1].num_batches_tracked.item() == 6
    assert_same(statistics(resumed), statistics(whole))


# Freezing.


def frozen(module):
    return [is_frozen(layer) for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize("norm", [BatchNorm, nn.BatchNorm2d, mednorm.MovingBatchNorm])
@pytest.mark.parametrize("from_epoch", [0, 1])
def test_the_statistics_stop_moving_exactly_when_the_epoch_comes(images, norm, from_epoch):
    module, watch = Small(norm), Watch()
    start = module.network[1].running_mean.clone()
    fit(module, images, [FreezeStatistics(from_epoch), watch], max_epochs=3)
    before, after = watch.means[: from_epoch * STEPS], watch.means[from_epoch * STEPS :]
    assert watch.frozen == [False] * len(before) + [True] * len(after)
    steps = zip([start, *before], before, strict=False)
    assert all(not torch.equal(old, new) for old, new in steps)
    assert all(torch.equal(mean, before[-1] if before else start) for mean in after)
    assert module.network[1].momentum == 0.1


def test_frozen_layers_normalize_the_training_batches_with_the_running_statistics(images):
    class Outputs(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            with torch.no_grad():
                given = module.network[0](batch[0])
                self.ours = module.network[1](given)
                self.expected = nn.functional.batch_norm(
                    given, module.network[1].running_mean, module.network[1].running_var,
                    module.network[1].weight, module.network[1].bias, eps=1e-5,
                )  # fmt: skip

    outputs = Outputs()
    fit(Small(), images, [FreezeStatistics(), outputs], max_steps=2)
    torch.testing.assert_close(outputs.ours, outputs.expected)


@pytest.fixture
def one_process():
    """Whatever a strategy for several processes sets up is gone afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK"):
            patch.setenv(name, "")  # so that what Lightning sets is taken back
            os.environ.pop(name)
        yield
    # What still holds the group goes first: it must not be the last, see `tests.processes.run_alone`.
    gc.collect()
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(
    ("from_epoch", "strategy"), [(0, "ddp"), (1, "ddp_find_unused_parameters_true")], ids=["first", "later"]
)
def test_scale_and_shift_are_held_under_distributed_data_parallel(images, from_epoch, strategy):
    module, watch = Small(), Watch()
    fit(module, images, [FreezeStatistics(from_epoch, affine=True), watch], max_epochs=2, strategy=strategy, devices=1)
    assert watch.frozen == [False] * STEPS * from_epoch + [True] * STEPS * (2 - from_epoch)
    assert torch.equal(module.network[1].weight, torch.ones(3)) == (from_epoch == 0)
    assert all(parameter.requires_grad for parameter in module.parameters())


class BuiltLate(Small):
    """Its layers are made by Lightning's hook, when the training is set up."""

    def __init__(self):
        super().__init__()
        self.made, self.network = self.network, nn.ModuleList([nn.Identity()])

    def configure_model(self):
        self.network = self.made


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(
    ("build", "from_epoch", "got"),
    [(Small, 2, "from_epoch=2"), (BuiltLate, 0, "a network built in configure_model")],
    ids=["epoch", "built late"],
)
def test_holding_scale_and_shift_of_a_wrapped_network_is_refused_before_training(images, build, from_epoch, got):
    module = build()
    with pytest.raises(ConfigError, match=rf"affine=True, got {got}: .*'ddp_find_unused_parameters_true'\."):
        fit(module, images, [FreezeStatistics(from_epoch, affine=True)], max_epochs=3, strategy="ddp", devices=1)
    assert module.global_step == 0


def test_layers_that_are_built_when_training_is_set_up_are_frozen_when_it_starts(images):
    module, watch = BuiltLate(), Watch()
    fit(module, images, [FreezeStatistics(affine=True), watch])
    assert watch.frozen == [True] * STEPS
    assert torch.equal(module.network[1].weight, torch.ones(3))


def test_layers_are_let_go_where_no_training_comes_about(images):
    module = Small()
    fit(module, images, [FreezeStatistics()], max_epochs=0)
    assert frozen(module) == [False, False]


def test_layers_are_let_go_when_training_ends(images):
    module = Small()
    fit(module, images, [FreezeStatistics()])
    assert frozen(module) == [False, False]
    before = module.network[1].running_mean.clone()
    module.train().network(images)
    assert not torch.equal(module.network[1].running_mean, before)


def test_layers_are_let_go_when_training_fails(images):
    module = Small(fails_at=(0, 3))
    with pytest.raises(Stop):
        fit(module, images, [FreezeStatistics(affine=True)])
    assert frozen(module) == [False, False]
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_scale_and_shift_are_held_where_asked_for_and_learn_where_not(images):
    held, free = Small(), Small()
    fit(held, images, [FreezeStatistics(affine=True)])
    fit(free, images, [FreezeStatistics()])
    assert torch.equal(held.network[1].weight, torch.ones(3))
    assert (free.network[1].weight - 1).abs().min() > 0.1
    assert all(parameter.requires_grad for parameter in held.parameters())


def test_only_the_layers_asked_for_are_frozen(images):
    module = Small()
    fit(module, images, [FreezeStatistics(where="network.4")])
    assert module.network[4].num_batches_tracked.item() == 0
    assert module.network[1].num_batches_tracked.item() == STEPS


@pytest.mark.parametrize("fails", [False, True])
def test_what_the_user_froze_before_stays_frozen_and_the_rest_is_let_go(images, fails):
    module = Small(fails_at=(1, 2) if fails else None)
    freeze(module, where="network.1")
    if fails:
        with pytest.raises(Stop):
            fit(module, images, [FreezeStatistics(1)], max_epochs=2)
    else:
        fit(module, images, [FreezeStatistics(1)], max_epochs=2)
    assert frozen(module) == [True, False]
    assert [module.network[place].num_batches_tracked.item() for place in (1, 4)] == [0, STEPS]


def test_a_scale_that_the_user_froze_is_held_while_the_statistics_are_frozen_and_after(images):
    """`freeze` without γ and β lets them go: the last call counts, and the callback's came last."""
    module = Small()
    freeze(module, statistics=False, affine=True, where="network.1")
    fit(module, images, [FreezeStatistics(1)], max_epochs=2)
    assert torch.equal(module.network[1].weight, torch.ones(3))
    assert module.network[1].num_batches_tracked.item() == STEPS  # its statistics moved in the first epoch
    assert (module.network[1].weight.requires_grad, module.network[4].weight.requires_grad) == (False, True)
    assert frozen(module) == [False, False]


def test_a_layer_that_the_user_froze_and_that_was_not_asked_for_stays_as_it_is(images):
    module, watch = Small(), Watch()
    freeze(module, affine=True, where="network.1")
    fit(module, images, [FreezeStatistics(where="network.4"), watch])
    assert watch.frozen == [True] * STEPS
    assert torch.equal(module.network[1].weight, torch.ones(3))
    assert frozen(module) == [True, False]


def test_a_training_that_goes_on_after_the_epoch_is_frozen_at_once(images, tmp_path):
    whole, module, resumed, watch = Small(), Small(fails_at=(2, 1)), Small(), Watch()
    fit(whole, images, [FreezeStatistics(1)], max_epochs=3)
    with pytest.raises(Stop):
        fit(module, images, [FreezeStatistics(1), ModelCheckpoint(tmp_path, "last")], max_epochs=3)
    fit(resumed, images, [FreezeStatistics(1), watch], max_epochs=3, ckpt_path=tmp_path / "last.ckpt")
    assert watch.frozen == [True] * STEPS
    assert_same(statistics(resumed), statistics(whole))
    torch.testing.assert_close(resumed.network[0].weight, whole.network[0].weight)


def test_accumulation_and_freezing_together_move_the_statistics_until_the_epoch_and_not_after(images):
    module, watch = Small(), Watch()
    callbacks = [AccumulateStatistics(), FreezeStatistics(1), watch]
    fit(module, images, callbacks, accumulate_grad_batches=4, max_epochs=2)
    assert watch.tracked == [0, 0, 0, 1, 1, 1, 1, 2, 2, 3] + [3] * STEPS


def test_a_network_without_batch_normalization_has_nothing_to_freeze(images):
    with pytest.raises(ConfigError, match=r"expected batch normalization to freeze, got none.*found no layer with"):
        fit(Small(lambda channels: nn.GroupNorm(1, channels)), images, [FreezeStatistics()])


def test_a_layer_that_is_not_there_is_named_and_what_the_user_froze_stays(images):
    module = Small()
    freeze(module)
    with pytest.raises(ConfigError, match="freeze: expected where to name modules of the network, got 'decoder'"):
        fit(module, images, [FreezeStatistics(where="decoder")])
    assert frozen(module) == [True, True]


@pytest.mark.parametrize("value", [-1, 1.5, "1", True, None])
def test_an_epoch_that_is_no_whole_number_from_0_on_is_refused(value):
    with pytest.raises(ConfigError, match=re.escape(f"whole number of at least 0, got {value!r}")):
        FreezeStatistics(value)
