import numpy as np
import pytest
import torch

from mednorm.errors import ConfigError, RunError
from mednorm.training import trained
from mednorm.training.trained import TrainedRun, flat
from tests.unit.training.runs import HERE, volume_run, write_run

ALL = "so the statistics of all sites together serve; known are"


def test_probabilities_are_the_softmax_of_what_the_weights_say(tmp_path):
    run = TrainedRun(write_run(tmp_path / "run", classes=["a", "b", "c"]))
    image = torch.tensor([[0.0, 0, 0, 0], [0, 0, 3, 9]])[None]
    scaled = (image[0] - image.mean()) / image.std(correction=0)
    logits = torch.stack([0 * scaled, 8 * scaled - 4, 16 * scaled - 16])
    torch.testing.assert_close(run(image, "a.png"), logits.softmax(0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("norm", ["none", "batch", "group", "instance", "layer"])
def test_a_network_of_the_package_is_loaded_whatever_its_norm(tmp_path, norm):
    folder = write_run(tmp_path / "run", network="unet", norm=norm)
    run = TrainedRun(folder)
    chances = run(torch.randn(1, 16, 24), "a.png")
    torch.testing.assert_close(chances.sum(0), torch.ones(16, 24))
    stored = torch.load(folder / "best.ckpt", weights_only=True)["state_dict"]
    loaded = run.network_for(torch.zeros(1, 16, 24), "a.png").state_dict()
    assert {f"network.{name}" for name in loaded} == set(stored)
    assert all(torch.equal(value, stored[f"network.{name}"]) for name, value in loaded.items())


def by_site(tmp_path, site):
    """A run with statistics of two sites, of which Lund's images are ten times as bright."""
    folder = write_run(tmp_path / "run", norm="domain", sites=["Basel", "Lund"])
    stored = torch.load(folder / "best.ckpt", weights_only=True)
    weights = stored["state_dict"]
    (mean,) = [name for name in weights if name.endswith("domain_mean")]
    weights[mean.replace("domain_mean", "domain_var")][1] = 100.0
    weights[mean.replace("domain_mean", "domain_batches")].fill_(5)
    torch.save(stored, folder / "best.ckpt")
    return TrainedRun(folder, site=site)


@pytest.mark.parametrize("site", ["Basel", "Lund", None, "Bern"])
def test_a_run_by_site_predicts_with_the_statistics_of_the_site_that_is_said(tmp_path, site):
    run = by_site(tmp_path, site)
    image = torch.randn(1, 8, 8)
    scaled = (image[0] - image.mean()) / image.std(correction=0) / (10 if site == "Lund" else 1)
    expected = torch.stack([0 * scaled, 8 * scaled - 4]).softmax(0)
    torch.testing.assert_close(run(image, "a.png"), expected, rtol=1e-3, atol=1e-3)
    told = {None: "which site it is from is not said", "Bern": "no image of 'Bern' was trained on"}.get(site)
    assert run.sites_told() == (() if told is None else (f"{told}, {ALL} Basel, Lund",))


def test_a_site_is_refused_for_a_run_that_does_not_tell_sites_apart(tmp_path):
    with pytest.raises(ConfigError, match="got 'Lund' for one with 'batch'"):
        TrainedRun(write_run(tmp_path / "run"), site="Lund")


def test_the_network_is_left_in_its_mode_and_its_statistics_stay(tmp_path):
    run = TrainedRun(write_run(tmp_path / "run"))
    network = run.network_for(torch.zeros(1, 8, 8), "a.png")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert network.training
    run(torch.randn(1, 8, 8), "a.png")
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert run.network_for(torch.zeros(1, 8, 8), "b.png") is network


@pytest.mark.parametrize(
    ("made", "axes"),
    [
        (lambda folder: write_run(folder), 2),
        (lambda folder: write_run(folder, axes=3), 3),
        (lambda folder: write_run(folder, image_size=[8, 8]), 2),
        (lambda folder: volume_run(folder), 3),
    ],
)
def test_the_axes_come_from_the_settings_or_the_weights(tmp_path, made, axes):
    run = TrainedRun(made(tmp_path / "run"))
    assert run.axes == axes
    run.check_axes("fits", (8, 9, 10)[:axes])
    run.check_axes("unknown", None)
    with pytest.raises(RunError, match=rf"scan: expected {axes}-D images.*got a {5 - axes}-D image of size \(8, 9"):
        run.check_axes("scan", (8, 9, 10)[: 5 - axes])


def test_the_grid_is_that_of_the_settings_whatever_the_samples_show(tmp_path):
    """Samples of volumes are slices; a size was once taken from them."""
    slices, volumes = write_run(tmp_path / "run", image_size=[28, 30]), volume_run(tmp_path / "volumes")
    for folder in (slices, volumes):
        np.savez(folder / "samples.npz", image=np.zeros((6, 1, 9, 7), np.float32))
    assert list(TrainedRun(slices).grid.size) == [28, 30]
    assert TrainedRun(volumes).grid.size is None


def test_other_channels_are_counted(tmp_path):
    run = TrainedRun(write_run(tmp_path / "run", channels=2))
    with pytest.raises(RunError, match=r"colour\.png: expected 2 channels, .* got 3\."):
        run(torch.zeros(3, 8, 8), "colour.png")


def test_a_network_of_another_kind_of_image_is_named_with_the_image(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "config.toml").write_text((folder / "config.toml").read_text().replace(f"{HERE}:bright", "unet"))
    run = TrainedRun(folder)
    with pytest.raises(RunError, match=r"a\.png: expected an image that the run's network fits"):
        run(torch.zeros(1, 16, 16), "a.png")
    with pytest.raises(RunError, match=r"b\.png: unet: expected every side .* multiple of 8, got \(9, 16\)"):
        run(torch.zeros(1, 9, 16), "b.png")


def test_an_output_of_nan_is_counted_and_named(tmp_path):
    folder = write_run(tmp_path / "run")
    content = torch.load(folder / "best.ckpt", weights_only=True)
    content["state_dict"]["network.net.1.bias"][1] = torch.nan
    torch.save(content, folder / "best.ckpt")
    with pytest.raises(RunError, match=r"a\.png: expected finite outputs, got NaN or inf in 64 of 128 numbers"):
        TrainedRun(folder)(torch.zeros(1, 8, 8), "a.png")


def test_a_full_gpu_is_said_in_one_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(trained, "logits_of", full)
    with pytest.raises(
        RunError, match=r"a\.png: expected room in the memory of the GPU, got too little for \(1, 8, 8\)"
    ):
        TrainedRun(write_run(tmp_path / "run"))(torch.zeros(1, 8, 8), "a.png")


def test_a_folder_without_settings_weights_or_classes_is_named(tmp_path):
    with pytest.raises(RunError, match=r"found no config\.toml"):
        TrainedRun(tmp_path)
    folder = write_run(tmp_path / "run")
    (folder / "best.ckpt").rename(folder / "kept")
    with pytest.raises(RunError, match=r"best\.ckpt: no such file"):
        TrainedRun(folder)
    (folder / "kept").rename(folder / "best.ckpt")
    (folder / "config.toml").write_text(
        (folder / "config.toml")
        .read_text()
        .replace("classes", "# classes", 1)
        .replace('    "background",\n    "1",\n]', "")
    )
    with pytest.raises(RunError, match=r"config\.toml: expected the names of the classes, got none"):
        TrainedRun(folder)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="got 'cuda'"):
        TrainedRun(write_run(tmp_path / "run"), "cuda")


def test_a_volume_of_one_slice_is_a_slice():
    assert [flat(size) for size in ((4, 5, 1), (4, 5), (4, 1, 5), (4, 5, 2))] == [(4, 5), (4, 5), (4, 1, 5), (4, 5, 2)]


def test_intensities_that_the_training_never_saw_are_told_and_others_are_not(tmp_path):
    """The scaling of a run on X-rays as it is before it is fitted: mean 0, standard deviation 1."""
    run = TrainedRun(write_run(tmp_path / "run", task="lung", network="classifier", classes=["normal", "ill"]))
    usual = torch.randn(1, 16, 16)
    assert run.doubts(usual, "a.png") == ()
    (told,) = run.doubts(usual + 62, "a.png")
    assert told.startswith("intensities 62 standard deviations from those of the training")


def test_a_network_that_scales_each_image_by_itself_has_no_doubts_of_intensities(tmp_path):
    assert TrainedRun(write_run(tmp_path / "run")).doubts(torch.randn(1, 16, 16) + 1e4, "a.png") == ()
