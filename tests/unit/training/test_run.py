import json
import signal
from dataclasses import replace

import lightning.pytorch as pl
import pytest
import torch
from filelock import FileLock

from mednorm.data import Fold
from mednorm.errors import ConfigError, RunError
from mednorm.results import Run
from mednorm.tasks import find_task
from mednorm.training.run import train
from tests.studies import figures, run_settings

LUNG = find_task("lung")


class Stop(Exception):
    pass


class StopIn(pl.Callback):
    """Raises in a step of an epoch, as a kill would come."""

    def __init__(self, epoch, step=1, error=Stop):
        self.epoch, self.step, self.error = epoch, step, error

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
        if (trainer.current_epoch + 1, batch_index) == (self.epoch, self.step):
            raise self.error


class Draws(pl.Callback):
    """Keeps what dropout let through in the first step of each epoch."""

    def __init__(self):
        self.masks = []

    def on_train_batch_start(self, trainer, module, batch, batch_index):
        if batch_index == 0:
            layer = module.network.net.norm1.dropout
            self.handle = layer.register_forward_hook(
                lambda _, given, output: self.masks.append(kept(given[0], output))
            )

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
        self.handle.remove()


def kept(before, after):
    return (after != 0) | (before == 0)


def record(run):
    return figures(run.model_dump())


@pytest.fixture(scope="module")
def settings():
    return run_settings(epochs=4, regularizer="dropout")


@pytest.fixture(scope="module")
def whole(settings, prepared, tmp_path_factory):
    """An uninterrupted run: its record, its folder, its dropout."""
    folder, draws = tmp_path_factory.mktemp("whole") / "run", Draws()
    return train(settings, LUNG, prepared, folder, [draws]), folder, draws.masks


def interrupted(settings, prepared, folder, **when):
    with pytest.raises(Stop):
        train(settings, LUNG, prepared, folder, [StopIn(**when)])


def test_the_record_on_disk_is_the_one_returned(whole):
    run, folder, _ = whole
    assert Run.model_validate_json((folder / "run.json").read_text()) == run


def test_a_finished_run_is_not_run_again(whole, settings, prepared):
    run, folder, _ = whole
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob("[!.]*")}
    assert train(settings, LUNG, prepared, folder, [StopIn(epoch=1)]) == run
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob("[!.]*")} == before


def test_the_same_settings_give_the_same_figures(whole, settings, prepared, tmp_path):
    assert record(train(settings, LUNG, prepared, tmp_path / "run")) == record(whole[0])


def test_another_seed_gives_other_figures(whole, settings, prepared, tmp_path):
    other = train(settings.model_copy(update={"seed": 1}), LUNG, prepared, tmp_path / "run")
    assert other.epochs[0].train_loss != whole[0].epochs[0].train_loss


@pytest.mark.parametrize(("epoch", "step"), [(1, 1), (3, 0), (3, 1), (4, 2)])
def test_a_run_stopped_anywhere_ends_with_the_figures_of_an_uninterrupted_one(
    whole, settings, prepared, tmp_path, epoch, step
):
    interrupted(settings, prepared, tmp_path / "run", epoch=epoch, step=step)
    assert not (tmp_path / "run" / "run.json").exists()
    torch.rand(11)
    assert record(train(settings, LUNG, prepared, tmp_path / "run")) == record(whole[0])


def test_a_run_stopped_twice_ends_with_the_same_figures(whole, settings, prepared, tmp_path):
    interrupted(settings, prepared, tmp_path / "run", epoch=2)
    interrupted(settings, prepared, tmp_path / "run", epoch=4)
    assert record(train(settings, LUNG, prepared, tmp_path / "run")) == record(whole[0])


def test_dropout_differs_between_epochs_and_is_drawn_again_alike_by_a_resumed_run(whole, settings, prepared, tmp_path):
    masks = whole[2]
    assert len(masks) == 4
    assert not torch.equal(masks[0], masks[1])
    interrupted(settings, prepared, tmp_path / "run", epoch=3)
    draws = Draws()
    train(settings, LUNG, prepared, tmp_path / "run", [draws])
    assert [torch.equal(a, b) for a, b in zip(draws.masks, masks[2:], strict=True)] == [True, True]


@pytest.fixture(scope="module")
def past_its_best(prepared, tmp_path_factory):
    """An uninterrupted run whose last epochs are not its best: its settings, its record, its folder."""
    settings = run_settings(epochs=4, regularizer="dropout", learning_rate=0.01)
    folder = tmp_path_factory.mktemp("past") / "run"
    run = train(settings, LUNG, prepared, folder)
    assert run.best_epoch == 1, "choose another learning rate"
    return settings, run, folder


def test_the_last_epoch_is_kept_beside_the_best(past_its_best):
    """With save_last=True, Lightning 2.6 writes last.ckpt in the epochs only that are the best so far."""
    _, _, folder = past_its_best
    epochs = {name: torch.load(folder / f"{name}.ckpt", weights_only=True)["epoch"] for name in ("best", "last")}
    assert epochs == {"best": 0, "last": 3}
    assert sorted(path.name for path in folder.glob("*.ckpt")) == ["best.ckpt", "last.ckpt"]


def test_a_run_goes_on_after_its_last_whole_epoch_though_an_earlier_one_was_the_best(past_its_best, prepared, tmp_path):
    settings, reference, _ = past_its_best
    interrupted(settings, prepared, tmp_path / "run", epoch=4)
    draws = Draws()
    assert record(train(settings, LUNG, prepared, tmp_path / "run", [draws])) == record(reference)
    assert len(draws.masks) == 1


def test_a_run_moved_while_it_stood_still_keeps_its_best_epoch(past_its_best, prepared, tmp_path):
    """Lightning forgets the best score where the folder has another name, and the next epoch replaced the best."""
    settings, reference, _ = past_its_best
    interrupted(settings, prepared, tmp_path / "before", epoch=4)
    (tmp_path / "before").rename(tmp_path / "after")
    moved = train(settings, LUNG, prepared, tmp_path / "after")
    assert record(moved) == record(reference)
    assert list(tmp_path.iterdir()) == [tmp_path / "after"]


def test_a_run_killed_between_its_last_epoch_and_its_record_gets_its_record(whole, settings, prepared, tmp_path):
    run = train(settings, LUNG, prepared, tmp_path / "run")
    (tmp_path / "run" / "run.json").unlink()
    again = train(settings, LUNG, prepared, tmp_path / "run", [StopIn(epoch=1), StopIn(epoch=4)])
    assert again == run


def test_the_kept_epoch_is_the_first_of_the_best_in_validation(whole):
    run, folder, _ = whole
    scores = [epoch.val_metrics["auc"] for epoch in run.epochs]
    assert run.best_epoch == scores.index(max(scores)) + 1
    assert torch.load(folder / "best.ckpt", weights_only=True)["epoch"] == run.best_epoch - 1


def test_the_metrics_of_the_kept_weights_are_those_validation_saw(whole):
    run = whole[0]
    best = run.epochs[run.best_epoch - 1].val_metrics
    assert {name: run.metrics[f"val_{name}"] for name in best} == pytest.approx(best, abs=1e-6)


def test_training_leaves_the_random_state_of_the_program_as_it_was(settings, prepared, tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(settings.model_copy(update={"epochs": 1}), LUNG, prepared, tmp_path / "run")
    assert torch.equal(torch.rand(3), expected)


def test_the_scaling_of_the_input_is_that_of_the_training_images_alone(whole, prepared):
    state = torch.load(whole[1] / "best.ckpt", weights_only=True)["state_dict"]
    images = prepared.splits()["train"].images.double()
    assert state["network.scaling.mean"].item() == pytest.approx(images.mean().item(), rel=1e-5)
    assert state["network.scaling.std"].item() == pytest.approx(images.std(correction=0).item(), rel=1e-5)


def diverging(**changed):
    return run_settings(epochs=4, norm="none", optimizer="sgd", **changed)


def test_a_run_that_diverges_at_once_ends_early_with_nulls_and_no_metrics(prepared, tmp_path):
    run = train(diverging(learning_rate=1e38), LUNG, prepared, tmp_path / "run")
    assert (run.status, len(run.epochs), run.best_epoch) == ("diverged", 1, 1)
    assert run.epochs[0].train_loss is None
    assert set(run.metrics.values()) == {None}
    json.loads((tmp_path / "run" / "run.json").read_text(), parse_constant=lambda text: pytest.fail(text))


class Explode(pl.Callback):
    """Makes the weights infinite after an epoch, as one bad step would."""

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 2:
            with torch.no_grad():
                module.network.net.dense.weight.fill_(float("inf"))


def test_a_run_that_diverges_late_is_judged_with_the_best_epoch_before(prepared, tmp_path):
    run = train(diverging(), LUNG, prepared, tmp_path / "run", [Explode()])
    assert (run.status, len(run.epochs)) == ("diverged", 3)
    assert run.best_epoch < 3
    assert set(run.epochs[2].val_metrics.values()) == {None}
    best = run.epochs[run.best_epoch - 1].val_metrics
    assert run.metrics["val_auc"] == pytest.approx(best["auc"], abs=1e-6)


def test_a_diverged_run_that_was_killed_before_its_record_trains_no_further(prepared, tmp_path):
    run = train(diverging(), LUNG, prepared, tmp_path / "run", [Explode()])
    (tmp_path / "run" / "run.json").unlink()
    assert record(train(diverging(), LUNG, prepared, tmp_path / "run")) == record(run)


def test_ctrl_c_stays_a_keyboard_interrupt_and_works_a_second_time(settings, prepared, tmp_path):
    """Lightning turns it into exit status 1 and leaves SIGINT ignored."""
    before = signal.getsignal(signal.SIGINT)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(settings, LUNG, prepared, tmp_path / "run", [StopIn(epoch=2, error=KeyboardInterrupt)])
        assert signal.getsignal(signal.SIGINT) is before


def test_an_exit_by_somebody_else_stays_an_exit(settings, prepared, tmp_path):
    with pytest.raises(SystemExit) as raised:
        train(settings, LUNG, prepared, tmp_path / "run", [StopIn(epoch=1, error=SystemExit(7))])
    assert raised.value.code == 7


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", None])
def test_a_damaged_checkpoint_is_named_with_what_to_do(settings, prepared, tmp_path, content):
    folder = tmp_path / "run"
    interrupted(settings, prepared, folder, epoch=2)
    whole = (folder / "last.ckpt").read_bytes()
    (folder / "last.ckpt").write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(RunError, match=r"last\.ckpt: expected a checkpoint of this run, got: .*Remove it"):
        train(settings, LUNG, prepared, folder)
    (folder / "last.ckpt").unlink()
    assert train(settings, LUNG, prepared, folder).status == "finished"


class Payload:
    """Pickled by name: writes a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_checkpoint_to_go_on_from_is_never_unpickled(settings, prepared, tmp_path):
    folder, proof = tmp_path / "run", tmp_path / "executed"
    interrupted(settings, prepared, folder, epoch=2)
    torch.save({"state_dict": Payload(proof)}, folder / "last.ckpt")
    with pytest.raises(RunError, match=r"last\.ckpt: expected a checkpoint of this run, got: Weights only load failed"):
        train(settings, LUNG, prepared, folder)
    assert not proof.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_not_there_is_said_before_anything_is_written(prepared, tmp_path):
    with pytest.raises(ConfigError, match="device: expected one that this machine has, got 'cuda'"):
        train(run_settings(device="cuda"), LUNG, prepared, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_batch_as_large_as_the_set_trains_with_one_step_an_epoch(prepared, tmp_path):
    run = train(run_settings(epochs=1, batch_size=48), LUNG, prepared, tmp_path / "run")
    assert run.epochs[0].seconds_per_step > 0


def test_a_batch_larger_than_the_set_is_refused_with_both_numbers(prepared, tmp_path):
    with pytest.raises(ConfigError, match="batch size: expected at most 48, the number of training images, got 49"):
        train(run_settings(batch_size=49), LUNG, prepared, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_in_a_folder_another_process_works_in_is_refused(prepared, tmp_path):
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(RunError, match="another mednorm works in this folder"):
        train(run_settings(), LUNG, prepared, tmp_path / "run")


def test_what_a_killed_process_left_half_written_is_cleared_away(settings, prepared, tmp_path):
    folder = tmp_path / "run"
    interrupted(settings, prepared, folder, epoch=2)
    (folder / ".last.ckpt.123.partial").write_bytes(b"half")
    train(settings, LUNG, prepared, folder)
    assert [path.name for path in folder.glob(".*")] == [".lock"]


def test_validation_without_a_second_class_still_ends_with_the_first_epoch(prepared, tmp_path):
    (own,) = prepared.folds
    normal = [row for row in own.rows["val"] if prepared.arrays.targets[row] == 0]
    changed = replace(prepared, folds=(Fold("", {**own.rows, "val": tuple(normal)}),))
    run = train(run_settings(epochs=2), LUNG, changed, tmp_path / "run")
    assert (run.status, run.best_epoch, run.metrics["val_auc"]) == ("finished", 1, None)
    assert run.metrics["test_auc"] is not None


def test_tensorboard_gets_the_numbers_of_every_epoch(settings, prepared, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(settings.model_copy(update={"tensorboard": True, "epochs": 2}), LUNG, prepared, tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for tag, values in {
        "train_loss": [epoch.train_loss for epoch in run.epochs],
        "val_metrics/auc": [epoch.val_metrics["auc"] for epoch in run.epochs],
        "gradient_norms/conv2": [epoch.gradient_norms["conv2"] for epoch in run.epochs],
    }.items():
        scalars = events.Scalars(tag)
        assert [scalar.step for scalar in scalars] == [1, 2]
        assert [scalar.value for scalar in scalars] == pytest.approx(values, rel=1e-6)


def test_without_the_flag_no_event_file_is_written(whole):
    assert not (whole[1] / "tensorboard").exists()
