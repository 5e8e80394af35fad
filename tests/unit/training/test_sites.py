"""The site of an image, from the manifest to the statistics that it trains and is judged and predicted with."""

import csv
from collections import OrderedDict

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn

import mednorm
from mednorm.cli.app import run as command
from mednorm.errors import ConfigError
from mednorm.guards import evaluation_mode
from mednorm.layers import BatchRenorm, DomainBatchNorm
from mednorm.study.run import undefined_arms
from mednorm.study.settings import resolve
from mednorm.tasks import find_task
from mednorm.tasks.outcomes import read_outcomes
from mednorm.training.disk import load_settings
from mednorm.training.evaluation import evaluate_run, load_network
from mednorm.training.inference import logits_of
from mednorm.training.run import train
from mednorm.training.settings import prepare
from mednorm.training.trained import TrainedRun
from tests.studies import run_settings, write_patients, write_volumes
from tests.unit.training.runs import HERE

HEART, BRAIN = find_task("heart"), find_task("brain3d")
SITES = ("north", "south")


def study(data, *norms, **changed):
    """Settings of a study of the norms on 12×12 slices, six a step."""
    small = {"data": str(data), "norms": list(norms), "seeds": [0], "batch_sizes": [6], "epochs": 1, "folds": 0}
    small |= {"regularizers": ["none"], "image_size": [12, 12], "scale_learning_rate": "none"}
    return resolve("heart", "quick", {}, small | changed)


def plans(settings):
    prepared = prepare(settings)
    return settings.runs(prepared, {}), prepared


def name_sites(manifest, site_of):
    """Write the column `site` of a manifest anew."""
    with manifest.open(newline="") as file:
        rows = [row | {"site": site_of(row)} for row in csv.DictReader(file)]
    with manifest.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return manifest


class Inputs(pl.Callback):
    """Keeps the images of each step and what the first norm will be given, computed here from the weights."""

    def __init__(self):
        self.images, self.given = [], []

    def on_train_batch_start(self, trainer, module, batch, index):
        scaling, net = module.network.scaling, module.network.net
        with torch.no_grad():
            given = batch[0]
            if hasattr(net, "conv1"):
                scaled = scaling(batch[0])
                given = nn.functional.conv2d(scaled, net.conv1.weight, net.conv1.bias).relu()
        self.images.append(batch[0])
        self.given.append(given.double())


@pytest.fixture(scope="module")
def data(tmp_path_factory, _quick_collections):
    return write_patients(tmp_path_factory.mktemp("patients"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """One run by site: its settings, images, folder, record, and what its steps saw."""
    (plan,), prepared = plans(study(data, "domain"))
    folder, inputs = tmp_path_factory.mktemp("domain") / "run", Inputs()
    return plan, prepared, folder, train(plan, HEART, prepared, folder, [inputs]), inputs


def moved(values):
    """Running mean and variance after batches (N, C, *), from 0 and 1, by a tenth each time."""
    mean, var = 0.0, 1.0
    for batch in values:
        mean = 0.9 * mean + 0.1 * batch.mean((0, *range(2, batch.dim()))).numpy()
        var = 0.9 * var + 0.1 * batch.transpose(0, 1).flatten(1).var(1, correction=1).numpy()
    return mean, var


def last_state(folder, norm="norm1"):
    state = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    return {key.rpartition(".")[2]: value for key, value in state.items() if f".{norm}." in key}


def owner_of(arrays):
    """Which row an image is, by its pixels."""
    return {image.numpy().tobytes(): row for row, image in enumerate(arrays.images)}


def test_each_site_is_normalized_by_statistics_of_its_own_images_alone(trained):
    _, prepared, folder, _, inputs = trained
    train_set = prepared.splits()["train"]
    rows = owner_of(train_set)
    sites = [[train_set.sites[rows[image.numpy().tobytes()]] for image in images] for images in inputs.images]
    assert len(sites) == 4
    state = last_state(folder)
    for number, site in enumerate(SITES):
        chosen = [[place for place, name in enumerate(names) if name == site] for names in sites]
        batches = [given[places] for given, places in zip(inputs.given, chosen, strict=True) if places]
        mean, var = moved(batches)
        assert state["domain_batches"][number].item() == len(batches) > 0
        np.testing.assert_allclose(state["domain_mean"][number], mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(state["domain_var"][number], var, rtol=1e-4, atol=1e-6)


def test_the_pooled_statistics_are_moved_by_every_batch_as_a_whole(trained):
    _, _, folder, _, inputs = trained
    state, (mean, var) = last_state(folder), moved(inputs.given)
    assert state["num_batches_tracked"].item() == 4
    np.testing.assert_allclose(state["running_mean"], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state["running_var"], var, rtol=1e-4, atol=1e-6)


def probabilities(network, arrays, sites):
    """Of each image by itself."""
    found = []
    with evaluation_mode(network):
        for image, site in zip(arrays.images, sites, strict=True):
            with mednorm.domain(network, [site]):
                found.append(network(image[None])[0].double().softmax(0))
    return torch.stack(found).numpy()


def loaded(plan, folder, arrays):
    return load_network(folder, load_settings(folder), find_task(plan.task), arrays, len(plan.classes))


def test_every_test_image_is_judged_by_the_statistics_of_its_site(trained):
    plan, prepared, folder, run, _ = trained
    test = prepared.splits()["test"]
    assert set(test.sites) == set(SITES)
    network = loaded(plan, folder, test)
    table = read_outcomes(folder / "outcomes.csv")
    assert table.sites == test.sites
    np.testing.assert_allclose(table.probabilities, probabilities(network, test, test.sites), atol=1e-6)
    pooled = probabilities(network, test, [None] * len(test.names))
    assert (np.abs(table.probabilities - pooled) > 5e-5).all()
    assert set(run.sites) == set(SITES)


def test_a_run_judged_again_from_its_folder_has_the_metrics_of_its_record(trained):
    _, _, folder, run, _ = trained
    judged = evaluate_run(folder, None, "test", "cpu")
    assert {f"test_{name}": value for name, value in judged.metrics.items()} == pytest.approx(
        {name: run.metrics[name] for name in run.metrics if name.startswith("test_")}, abs=1e-6
    )
    ours = {site: {f"test_{name}": value for name, value in scores.items()} for site, scores in judged.sites.items()}
    for site in SITES:
        assert ours[site] == pytest.approx(run.sites[site], abs=1e-6, nan_ok=True)


def test_validation_is_by_site_as_the_judgement_of_the_kept_epoch_is(trained):
    run = trained[3]
    best = run.epochs[run.best_epoch - 1].val_metrics
    assert {name: run.metrics[f"val_{name}"] for name in best} == pytest.approx(best, abs=1e-6)


def test_a_run_that_is_asked_about_images_without_a_site_has_its_sites_and_predicts_with_the_pooled_statistics(trained):
    plan, prepared, folder, _, _ = trained
    test = prepared.splits()["test"]
    asked, network = TrainedRun(folder, "cpu"), loaded(plan, folder, test)
    built = asked.network_for(test.images[0], "a.png")
    layers = [module for module in built.modules() if isinstance(module, DomainBatchNorm)]
    assert [layer.domains for layer in layers] == [SITES, SITES]
    pooled = probabilities(network, test, [None] * len(test.names))
    np.testing.assert_allclose(torch.stack([asked(image, "a.png") for image in test.images]), pooled, atol=1e-6)
    by_site = probabilities(network, test, test.sites)
    np.testing.assert_allclose(probabilities(built, test, test.sites), by_site, atol=1e-6)


def test_the_settings_on_disk_hold_the_sites_for_normalization_by_site_alone(data, trained):
    assert load_settings(trained[2]).sites == list(SITES)
    assert 'sites = [\n    "north",\n    "south",\n]' in (trained[2] / "config.toml").read_text()
    runs, _ = plans(study(data, "batch", "domain", "renorm", "none"))
    assert {run.norm: run.sites for run in runs} == {
        "batch": None, "domain": list(SITES), "renorm": None, "none": None
    }  # fmt: skip


def test_a_site_held_out_is_judged_with_the_pooled_statistics(tmp_path):
    manifest = write_patients(tmp_path / "patients")
    data = name_sites(
        manifest,
        lambda row: {"p04": "south", "p05": "south", "p06": "west", "p07": "west"}.get(row["patient"], "north"),
    )
    (plan,), prepared = plans(study(data, "domain", holdout_site="south"))
    train(plan, HEART, prepared, tmp_path / "run")
    assert plan.sites == ["north", "south", "west"]
    north, south, west = last_state(tmp_path / "run")["domain_batches"].tolist()
    assert (south, north) == (0, 4)
    assert west > 0
    test = prepared.splits("site-south")["test"]
    assert set(test.sites) == {"south"}
    network = loaded(plan, tmp_path / "run", test)
    table = read_outcomes(tmp_path / "run" / "outcomes.csv")
    pooled = probabilities(network, test, [None] * len(test.names))
    np.testing.assert_allclose(table.probabilities, pooled, atol=1e-6)
    assert (np.abs(pooled - probabilities(network, test, ["west"] * len(test.names))) > 5e-5).all()


def test_settings_whose_sites_are_not_those_of_the_images_are_refused_before_anything_is_written(data, tmp_path):
    """The run could not be read again: its file would not say which row of the statistics is whose."""
    (plan,), prepared = plans(study(data, "domain"))
    for sites in (None, ["north"], ["south", "north"]):
        with pytest.raises(ConfigError, match=r"sites: expected those of the images, \['north', 'south'\], got"):
            train(plan.model_copy(update={"sites": sites}), HEART, prepared, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Where nobody says where images are from.


@pytest.fixture(scope="module")
def siteless(tmp_path_factory, _quick_collections):
    return write_patients(tmp_path_factory.mktemp("siteless"), site=False)


def test_without_sites_a_study_leaves_the_arm_out_with_the_reason(siteless):
    settings = study(siteless, "batch", "domain")
    prepared = prepare(settings)
    left_out = undefined_arms(settings, HEART, prepared)
    assert {arm.norm: why for arm, why in left_out.items()} == {
        "domain": "domain: expected images that say which site they are from, got none that does."
    }
    assert [run.norm for run in settings.runs(prepared, left_out)] == ["batch"]


def test_with_sites_no_arm_is_left_out(data):
    settings = study(data, "batch", "domain")
    assert undefined_arms(settings, HEART, prepare(settings)) == {}


def test_without_sites_a_study_of_that_norm_alone_is_refused(siteless):
    settings = study(siteless, "domain")
    with pytest.raises(ConfigError, match="expected an arm that can be trained, got none: domain: expected images"):
        undefined_arms(settings, HEART, prepare(settings))


def test_without_sites_a_run_is_refused_in_one_line_and_writes_nothing(siteless, tmp_path, capsys):
    options = ["--norm", "domain", "--image-size", "12,12", "--folds", "0", "--batch-size", "6", "--epochs", "1"]
    out = tmp_path / "run"
    assert command(["train", "heart", "--data", str(siteless), *options, "--out", str(out)]) != 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 1
    assert "norm: expected images that say which site they are from, for 'domain', got none that does." in lines[0]
    assert not (out / "config.toml").exists()


# Volumes.


class Mean(nn.Module):
    """Gives each image minus the mean of its site, in evaluation."""

    def __init__(self):
        super().__init__()
        self.norm = DomainBatchNorm(1, domains=SITES, eps=0)
        self.norm.domain_mean.copy_(torch.tensor([[10.0], [100.0]]))
        self.norm.running_mean.fill_(1000)
        self.norm.domain_batches.fill_(1)

    def forward(self, windows):
        return self.norm(windows)


@pytest.mark.parametrize(("site", "mean"), [("north", 10), ("south", 100), (None, 1000), ("elsewhere", 1000)])
def test_every_window_of_a_volume_is_of_the_site_of_the_volume(site, mean):
    network = nn.Sequential(OrderedDict(scaling=nn.Identity(), net=Mean())).eval()
    volume = torch.randn(1, 1, 14, 12, 9)
    for window_batch in (1, 4):
        seen = logits_of(network, volume, [8, 8, 8], window_batch, [site])
        torch.testing.assert_close(seen, volume - mean, rtol=0, atol=1e-3)
    torch.testing.assert_close(logits_of(network, volume, None, sites=[site]), volume - mean, rtol=0, atol=1e-3)


def test_images_whose_sites_nobody_gives_are_of_an_unknown_one():
    network = nn.Sequential(OrderedDict(scaling=nn.Identity(), net=Mean())).eval()
    volumes = torch.randn(2, 1, 10, 8, 8)
    for patch_size in (None, [8, 8, 8]):
        torch.testing.assert_close(logits_of(network, volumes, patch_size), volumes - 1000, rtol=0, atol=1e-3)


def test_patches_train_the_statistics_of_the_site_their_volume_is_from(tmp_path):
    manifest = write_volumes(tmp_path, ["train"] * 3 + ["val", "test", "test"])
    name_sites(manifest, lambda row: SITES[int(row["patient"][1:]) % 2])
    prepared = BRAIN.prepare(str(manifest))
    settings = run_settings(
        manifest, task="brain3d", network=f"{HERE}:bright", norm="domain", batch_size=2, epochs=1, sites=list(SITES),
        patch_size=[16, 16, 16], patches_per_volume=4, classes=list(prepared.images.classes), device="cpu",
    )  # fmt: skip
    inputs = Inputs()
    train(settings, BRAIN, prepared, tmp_path / "run", [inputs])
    volumes = prepared.splits()["train"]
    scaled = [(image - image.mean()) / image.std(correction=0) for image in volumes.images]

    def site_of(patch):
        """The whole volumes are one patch large, so that a patch is a volume."""
        away = [float((patch - each).abs().max()) for each in scaled]
        assert min(away) < 1e-4
        return volumes.sites[int(np.argmin(away))]

    state = last_state(tmp_path / "run", "net.0")
    for number, site in enumerate(SITES):
        batches = [
            torch.stack([p for p in step if site_of(p) == site]) for step in inputs.given if site in map(site_of, step)
        ]
        mean, var = moved(batches)
        assert state["domain_batches"][number].item() == len(batches) > 0
        np.testing.assert_allclose(state["domain_mean"][number], mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(state["domain_var"][number], var, rtol=1e-4)
    network = loaded(settings, tmp_path / "run", prepared.splits()["test"])
    assert [module.domains for module in network.modules() if isinstance(module, DomainBatchNorm)] == [SITES]


# How long a run is.


class Schedules(pl.Callback):
    """The clips of the first norm before each step."""

    def __init__(self):
        self.layers, self.clips = [], []

    def on_train_batch_start(self, trainer, module, batch, index):
        self.layers = [each for each in module.modules() if isinstance(each, BatchRenorm)]
        self.clips.append(tuple(clip.item() for clip in self.layers[0].clips()))


@pytest.mark.parametrize("epochs", [2, 5])
def test_renormalization_is_told_how_many_steps_the_run_has(data, tmp_path, epochs):
    (plan,), prepared = plans(study(data, "renorm", epochs=epochs))
    schedules = Schedules()
    train(plan, HEART, prepared, tmp_path / "run", [schedules])
    total, end = 4 * epochs, 0.3 * 4 * epochs  # 24 images in batches of 6; the schedule ends after 0.3 of the run
    assert [(layer.schedule, layer.total_steps) for layer in schedules.layers] == [(0.3, total)] * 2
    passed = [min(max((step - end / 8) / (end - end / 8), 0), 1) for step in range(total)]
    assert [r for r, _ in schedules.clips] == pytest.approx([1 + 2 * share for share in passed])
    assert schedules.clips[-1] == pytest.approx((3, 5))
