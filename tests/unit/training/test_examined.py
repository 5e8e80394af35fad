"""A run, or a network of one's own, ready to be examined."""

import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from torch import nn

import mednorm
from mednorm.cli.app import app
from mednorm.data import Arrays
from mednorm.errors import ConfigError, DataError, MissingExtraError, RunError
from mednorm.tasks import find_task
from mednorm.training.evaluation import evaluate_run
from mednorm.training.examined import ImageBatches, PatchBatches, loader_of_run
from mednorm.training.owned import own_model, own_model_and_loader
from mednorm.training.remedies import with_commands
from tests.examination_fixture import HOSTILE, examination
from tests.studies import write_npz, write_patients, write_volumes
from tests.unit.training.runs import volume_run, write_run

OWN = "tests.unit.training.test_examined"


def network():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def broken():
    raise ValueError("no weights here")


loader = [torch.zeros(2, 1, 8, 8)]
number = 3


def arrays(count):
    rows = torch.arange(count)
    images = rows.float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    names = tuple(map(str, range(count)))
    return Arrays(images, rows, names, tuple(f"site {row % 2}" for row in range(count)), names, (None,) * count)


@pytest.mark.parametrize(
    ("count", "size", "sizes"), [(12, 4, [4, 4, 4]), (10, 4, [4, 4, 2]), (9, 4, [4, 5]), (3, 1, [1, 1, 1])]
)
def test_every_image_comes_once_and_none_is_alone_in_its_batch(count, size, sizes):
    batches = list(ImageBatches(arrays(count), size))
    assert [len(batch["image"]) for batch in batches] == sizes
    rows = torch.cat([batch["label"] for batch in batches]).tolist()
    assert sorted(rows) == list(range(count))


def test_neighbours_are_parted_the_same_way_in_every_pass_and_keep_label_and_site():
    batches = ImageBatches(arrays(40), 8)
    first, second = ([batch["label"].tolist() for batch in batches] for _ in range(2))
    assert first == second
    assert not any(np.all(np.diff(rows) == 1) for rows in first)
    for batch in batches:
        assert torch.equal(batch["image"][:, 0, 0, 0], batch["label"].float())
        assert batch["site"] == [f"site {row % 2}" for row in batch["label"].tolist()]
        assert batch["patient"] == [str(row) for row in batch["label"].tolist()]


def test_a_run_is_examined_on_what_it_is_evaluated_on(study_folder):
    folder = study_folder / "runs" / "batch-none-b16-s1"
    model, batches, facts = loader_of_run(folder)
    seen, right = 0, 0
    model.eval()
    with torch.no_grad():
        for batch in batches:
            seen += len(batch["label"])
            right += facts.metric(model(batch["image"]), batch["label"]) * len(batch["label"])
    judged = evaluate_run(folder, None, "test")
    assert (seen, facts.images) == (judged.images, judged.images)
    assert right / seen == pytest.approx(judged.metrics["accuracy"], abs=1e-9)
    assert facts.whole is model


def test_other_data_brings_its_sites(tmp_path):
    run = write_run(tmp_path / "run", image_size=[12, 12])
    data = write_patients(tmp_path / "data")
    _, batches, facts = loader_of_run(run, str(data), "all")
    assert {site for batch in batches for site in batch["site"]} == {"north", "south"}
    assert facts.images == 36
    model, batches, _ = loader_of_run(run, str(data), "all", batch_size=9)
    assert dict(mednorm.examine(model, batches, try_step=False).probed.patients) == {"north": 8, "south": 4}
    assert [len(batch["image"]) for batch in batches] == [9] * 4


def test_the_l2_penalty_of_a_run_is_weight_decay_of_its_weights_alone(tmp_path):
    data = str(write_patients(tmp_path / "data"))
    for regularizer, expected in (("none", 0.0), ("l2", 0.02)):
        run = write_run(tmp_path / regularizer, image_size=[12, 12], regularizer=regularizer, l2=0.02)
        model, _, facts = loader_of_run(run, data, "all")
        decay = {id(p): group["weight_decay"] for group in facts.decay.param_groups for p in group["params"]}
        for parameter in model.parameters():
            assert decay[id(parameter)] == (expected if parameter.dim() > 1 else 0.0)


def test_volumes_come_as_patches_for_the_part_behind_the_scaling(tmp_path):
    run = volume_run(tmp_path / "run", patch_size=[8, 8, 8], patches_per_volume=3)
    data = write_volumes(tmp_path, ["test", "test", "test"])
    model, batches, facts = loader_of_run(run, str(data), "all")
    assert facts.whole.get_submodule("net") is model
    found = list(batches)
    assert sum(len(batch["image"]) for batch in found) >= 9
    assert {tuple(batch["image"].shape[1:]) for batch in found} == {(1, 8, 8, 8)}
    again = list(batches)
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(found, again, strict=True))
    outputs = model(found[0]["image"])
    assert 0 <= facts.metric(outputs, found[0]["label"]) <= 1


@pytest.mark.parametrize(("patients", "expected"), [(("p", "p"), {"p"}), (("p", None), {"p", "volume 1"})])
def test_the_patches_of_a_volume_are_of_its_patient_or_where_none_is_named_of_the_volume(patients, expected):
    volumes = Arrays(torch.zeros(2, 1, 4, 4, 4), torch.zeros(2), ("volume 0", "volume 1"), "AA", patients, (None,) * 2)
    rows = torch.tensor([0, 1, 1])
    (batch,) = PatchBatches([(torch.zeros(3, 1, 2, 2, 2), torch.zeros(3), rows)], volumes)
    assert batch["patient"] == [patients[row] or f"volume {row}" for row in rows.tolist()]
    assert set(batch["patient"]) == expected


def test_a_folder_that_is_no_run_is_said(tmp_path):
    with pytest.raises(RunError, match="expected the folder of a run"):
        loader_of_run(tmp_path)


def test_ones_own_network_comes_with_its_weights(tmp_path):
    trained = network()
    nn.init.constant_(trained[1].running_mean, 3.0)
    torch.save(trained.state_dict(), tmp_path / "plain.pt")
    torch.save({"state_dict": {f"model.{k}": v for k, v in trained.state_dict().items()}}, tmp_path / "lightning.ckpt")
    for name in ("plain.pt", "lightning.ckpt"):
        loaded = own_model(f"{OWN}:network", tmp_path / name).state_dict()
        assert all(torch.equal(value, loaded[key]) for key, value in trained.state_dict().items())


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


def test_weights_that_would_have_to_be_unpickled_are_refused(tmp_path):
    torch.save(Evil(), tmp_path / "evil.pt")
    with pytest.raises(RunError, match=r"evil\.pt: expected tensors saved by torch\.save"):
        own_model(f"{OWN}:network", tmp_path / "evil.pt")


def test_weights_of_another_network_or_none_are_said(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, message in (
        ("other.pt", "expected the weights of Sequential"),
        ("list.pt", "expected a state_dict, got a list"),
        ("none.pt", "expected a file of weights, found none"),
    ):
        with pytest.raises(RunError, match=message):
            own_model(f"{OWN}:network", tmp_path / name)


@pytest.mark.skipif("safetensors" in sys.modules, reason="safetensors is there")
def test_safetensors_that_cannot_be_read_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    (tmp_path / "w.safetensors").write_bytes(b"")
    with pytest.raises(MissingExtraError, match="pip install safetensors"):
        own_model(f"{OWN}:network", tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("number", "model .*:number: expected a function, got a int"),
        ("broken", "calling it without arguments raised ValueError: no weights here"),
        ("loader", "expected a torch.nn.Module, got a list"),
        ("netwrok", "expected a factory 'netwrok' .* Did you mean 'network'"),
    ],
)
def test_what_is_no_network_is_said(name, message):
    with pytest.raises(ConfigError, match=message):
        own_model(f"{OWN}:{name}")


def test_ones_own_network_sees_ones_own_loader():
    model, batches, metric = own_model_and_loader(f"{OWN}:network", None, f"{OWN}:loader", None, None, None)
    assert isinstance(model, nn.Sequential)
    assert torch.equal(batches[0], loader[0])
    assert metric is None


def test_ones_own_network_sees_the_images_of_a_task_scaled_as_the_task_does(tmp_path):
    data = str(write_npz(tmp_path / "tiny.npz"))
    _, batches, metric = own_model_and_loader(f"{OWN}:network", None, data, "lung", "test", 5)
    images = torch.cat([batch["image"] for batch in batches])
    task = find_task("lung")
    found = task.image_set(data, None, 0)
    train = task.load(found, found.split("train"), None).images.double()
    test = task.load(found, found.split("test"), None).images.double()
    expected = (test - train.mean()) / train.std(correction=0)
    assert images.double().mean() == pytest.approx(float(expected.mean()), abs=1e-6)
    assert images.double().std() == pytest.approx(float(expected.std()), rel=1e-5)
    assert metric(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1])) == 0.5


def test_ones_own_network_sees_patches_of_volumes_scaled_whole(tmp_path):
    data = str(write_volumes(tmp_path, ["train"] * 2 + ["val", "test"]))
    _, batches, metric = own_model_and_loader(f"{OWN}:network", None, data, "brain3d", "all", 3, (8, 8, 8))
    found = list(batches)
    assert [len(batch["image"]) for batch in found] == [3] * 6  # four patches of each of four volumes, filled up
    assert len({patient for batch in found for patient in batch["patient"]}) == 4
    task = find_task("brain3d")
    volumes = task.load(images := task.image_set(data, None, 0), images.items, None).images
    scaled = [((volume - volume.mean()) / volume.std(correction=0)) for volume in volumes]
    for patch in found[0]["image"]:
        assert any(torch.allclose(patch, window, atol=1e-4) for window in windows(scaled, 8))
    assert 0 <= metric(torch.randn(3, 2, 8, 8, 8), found[0]["label"]) <= 1


def windows(volumes, size):
    """Every cube of that size."""
    for volume in volumes:
        cubes = volume.unfold(1, size, 1).unfold(2, size, 1).unfold(3, size, 1)
        yield from cubes.permute(1, 2, 3, 0, 4, 5, 6).flatten(0, 2)


def test_data_without_a_way_to_read_it_is_a_mistake(tmp_path):
    with pytest.raises(ConfigError, match="got no data"):
        own_model_and_loader(f"{OWN}:network", None, None, None, "test", None)
    with pytest.raises(ConfigError, match=r"got --data x\.npz alone"):
        own_model_and_loader(f"{OWN}:network", None, "x.npz", None, "test", None)
    with pytest.raises(ConfigError, match="Leave --task out"):
        own_model_and_loader(f"{OWN}:network", None, f"{OWN}:loader", "lung", None, None)
    with pytest.raises(ConfigError, match=r"expected a size such as 96,96,96 for --task brain3d, got none"):
        own_model_and_loader(f"{OWN}:network", None, "x", "brain3d", "test", None)
    with pytest.raises(ConfigError, match=r"--patch-size: expected none for --task lung, got \[8, 8\]"):
        own_model_and_loader(f"{OWN}:network", None, "x.npz", "lung", "test", None, [8, 8])
    with pytest.raises(ConfigError, match="Leave --split out"):
        own_model_and_loader(f"{OWN}:network", None, f"{OWN}:loader", None, "test", None)
    with pytest.raises(ConfigError, match="Leave --patch-size out"):
        own_model_and_loader(f"{OWN}:network", None, f"{OWN}:loader", None, None, None, [8, 8])
    with pytest.raises(DataError):
        own_model_and_loader(f"{OWN}:network", None, str(tmp_path / "x.npz"), "lung", "test", None)


def test_what_new_statistics_mend_is_mended_by_a_command_that_can_be_pasted():
    found = examination()
    run = Path("runs/a run")
    remedies = {each.code: each.remedy for each in with_commands(found, run, "x y/manifest.csv", "test").findings}
    start = "mednorm treat 'runs/a run' --data 'x y/manifest.csv' --split test --fix"
    assert remedies["MN004"] == f"{start} MN004 --site B"
    assert remedies["MN001"] == f"{start} MN001"
    assert remedies["MN003"] == 'mednorm.convert(model, to="renorm")'
    own = {each.code: each.remedy for each in with_commands(found, run, None, "all").findings}
    assert own["MN004"] == "mednorm treat 'runs/a run' --fix MN004 --site B"


def test_statistics_of_a_runs_own_data_are_taken_from_its_training_images():
    own = {each.code: each.remedy for each in with_commands(examination(), Path("run"), None, "test").findings}
    assert own["MN001"] == "mednorm treat run --split train --fix MN001"
    assert own["MN004"] == "mednorm treat run --split test --fix MN004 --site B"


def test_that_command_is_one_the_parser_takes():
    finding = with_commands(examination(hostile=True), Path("run"), "data", "val").findings[0]
    words = shlex.split(finding.remedy)
    parameters = typer.main.get_command(app).commands["treat"].make_context("mednorm", words[2:]).params
    assert (parameters["site"], parameters["split"], parameters["fix"]) == (HOSTILE, "val", "MN004")
