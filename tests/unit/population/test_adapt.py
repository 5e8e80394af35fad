"""A network that was trained at one site gets used to another, without labels, or is left as it was."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import Tensor, nn

import mednorm
from mednorm import Moments, adapt, recalibrate
from mednorm.errors import ConfigError, DataError
from mednorm.population.judge import entropy_of
from tests.harness import bytes_of
from tests.processes import first_of
from tests.unit.population.networks import Broken, everything_of

METHODS = pytest.mark.parametrize("method", ["statistics", "mix", "tent"])


def blobs(count: int, seed: int, dims: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Images of noise, every other one with a bright blob somewhere; whether there is one; and where."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.stack(torch.meshgrid(*[torch.arange(12.0)] * dims, indexing="ij"))
    centre = 3 + 6 * torch.rand(count, dims, *[1] * dims, generator=generator)
    blob = (-(grid - centre).square().sum(1) / 6).exp()
    has = torch.arange(count) % 2
    blob = blob * has.view(-1, *[1] * dims)
    noise = torch.randn(count, 1, *[12] * dims, generator=generator)
    return 0.4 * noise + 2 * blob.unsqueeze(1), has, (blob > 0.5).long()


def elsewhere(images: Tensor) -> Tensor:
    """The same as another scanner shows them."""
    return 3 * images + 2


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    return float((outputs.argmax(1) == labels).float().mean())


def dice(outputs: Tensor, labels: Tensor) -> float:
    found = outputs.argmax(1)
    return float(2 * (found * labels).sum() / (found + labels).sum())


def trained(network: nn.Module, images: Tensor, labels: Tensor, weight: Tensor | None = None) -> nn.Module:
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for step in range(50):
        batch = torch.arange(32 * step, 32 * step + 32) % len(images)
        loss = nn.functional.cross_entropy(network(images[batch]), labels[batch], weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    return network


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    )


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    images, has, _ = blobs(256, 0)
    return trained(build(), images, has)


@pytest.fixture(scope="module")
def segmenter() -> nn.Module:
    """In 3-D, with an answer for each voxel."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv3d(1, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU(), nn.Dropout(0.2), nn.Conv3d(6, 2, 3, padding=1)
    )
    images, _, where = blobs(64, 0, dims=3)
    return trained(network, images, where, torch.tensor([1.0, 20.0]))


@pytest.fixture
def network(classifier) -> nn.Module:
    return copy.deepcopy(classifier).train()


def seen(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(network).eval()(images)


SITE = elsewhere(blobs(96, 1)[0])
TEST, LABELS, _ = blobs(200, 2)


# --- what it is for ---------------------------------------------------------------------------------------------------


@METHODS
def test_a_gain_of_three_and_an_offset_are_taken_out(network, method):
    home, lost = accuracy(seen(network, TEST), LABELS), accuracy(seen(network, elsewhere(TEST)), LABELS)
    assert home > 0.95
    assert lost < home - 0.3
    report = adapt(network, SITE.split((40, 56)), method, prior=4)
    assert accuracy(seen(network, elsewhere(TEST)), LABELS) > home - 0.05
    assert report.layers[0].before > 1
    assert report.layers[0].after < 0.3
    assert report.kept


def test_statistics_are_those_that_recalibration_gives(network):
    twin = copy.deepcopy(network)
    adapt(network, SITE.split((40, 56)))
    recalibrate(twin, SITE.split((40, 56)))
    assert bytes_of(network) == bytes_of(twin)


def test_all_layers_at_once_is_a_choice(network):
    twin = copy.deepcopy(network)
    adapt(network, SITE.split((40, 56)), order="batch")
    recalibrate(twin, SITE.split((40, 56)), "batch")
    assert bytes_of(network) == bytes_of(twin)


def test_segmentation_in_3d_gets_used_to_the_site_by_certainty(segmenter):
    network = copy.deepcopy(segmenter)
    images, _, where = blobs(24, 3, dims=3)
    home, lost = (dice(seen(network, each), where) for each in (images, elsewhere(images)))
    report = adapt(network, elsewhere(images).split(8), "tent")
    assert home > 0.5 > 2 * lost
    assert dice(seen(network, elsewhere(images)), where) > home - 0.05
    assert report.learned == ("1.weight", "1.bias")


# --- mixing -----------------------------------------------------------------------------------------------------------


def test_mixing_weighs_means_and_variances_by_the_images_they_stand_for():
    layer = nn.BatchNorm2d(2)
    layer.running_mean.copy_(torch.tensor([1.0, -1]))
    layer.running_var.copy_(torch.tensor([4.0, 0.5]))
    source = layer.running_mean.clone(), layer.running_var.clone()
    images = 3 + torch.randn(6, 2, 8, 8)
    adapt(nn.Sequential(layer), images.split(4), "mix", prior=18)
    target = Moments.of(images.double())
    torch.testing.assert_close(layer.running_mean, (0.75 * source[0] + 0.25 * target.mean).float())
    torch.testing.assert_close(layer.running_var, (0.75 * source[1] + 0.25 * target.unbiased_variance).float())


def test_mixing_with_a_prior_of_no_image_is_the_sites_own_statistics(network):
    twin = copy.deepcopy(network)
    adapt(network, SITE.split(48), "mix", prior=0)
    adapt(twin, SITE.split(48), "statistics")
    assert bytes_of(network) == bytes_of(twin)


def test_layers_behind_see_what_the_mixed_ones_before_them_give(classifier, network):
    adapt(network, SITE.split(48), "mix", prior=len(SITE))
    reached = seen(network[:5], SITE).double().mean((0, 2, 3))
    torch.testing.assert_close(network[5].running_mean, ((classifier[5].running_mean + reached) / 2).float())


def test_mixing_by_site_weighs_by_the_images_of_that_site():
    layer = mednorm.DomainBatchNorm(1, domains=["Basel", "Lund"])
    x = torch.cat([torch.full((2, 1, 4, 4), 4.0), torch.full((6, 1, 4, 4), 8.0)]) + 0.1 * torch.randn(8, 1, 4, 4)
    adapt(nn.Sequential(layer), [{"image": x, "site": ["Basel"] * 2 + ["Lund"] * 6}], "mix", prior=2)
    assert layer.domain_mean[:, 0].tolist() == pytest.approx([4 * 2 / 4, 8 * 6 / 8], abs=0.05)
    assert layer.running_mean.item() == pytest.approx(7 * 8 / 10, abs=0.05)


# --- entropy ----------------------------------------------------------------------------------------------------------


def test_tent_moves_weights_and_biases_of_norms_and_their_statistics_and_nothing_else(network):
    before = everything_of(network)
    report = adapt(network, SITE.split(48), "tent", lr=0.01)
    after = everything_of(network)
    changed = {name for name, value in after["bytes"].items() if value != before["bytes"][name]}
    statistics = ("running_mean", "running_var")
    assert changed == {f"{layer}.{key}" for layer in (1, 5) for key in ("weight", "bias", *statistics)}
    assert set(report.learned) == {f"{layer}.{key}" for layer in (1, 5) for key in ("weight", "bias")}
    for what in before.keys() - {"bytes"}:
        assert before[what] == after[what], what


def test_tent_makes_predictions_more_certain_than_statistics_alone(network):
    twin = copy.deepcopy(network)
    adapt(twin, SITE.split(48))
    adapt(network, SITE.split(48), "tent", lr=0.01, epochs=5)
    certain, plain = (entropy_of(seen(each, SITE), None, "test").mean() for each in (network, twin))
    assert certain < 0.9 * plain


def test_tent_is_one_step_of_adam_on_the_entropy_with_the_statistics_of_the_batch(network):
    twin = copy.deepcopy(network)
    twin.train()[3].eval()
    parameters = [twin[1].weight, twin[1].bias, twin[5].weight, twin[5].bias]
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    probabilities = twin(SITE).softmax(1)
    (-(probabilities * probabilities.log()).sum(1)).mean().backward()
    optimizer.step()
    adapt(network, [SITE], "tent", lr=0.02)
    for layer in (1, 5):
        torch.testing.assert_close(network[layer].weight, twin[layer].weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(network[layer].bias, twin[layer].bias, rtol=1e-5, atol=1e-6)


def test_tent_leaves_what_is_frozen(network):
    mednorm.freeze(network, statistics=False, affine=True, where="1")
    mednorm.freeze(network, where="5")
    with pytest.raises(ConfigError, match="layers with γ and β that are not frozen, got none"):
        adapt(network, SITE.split(48), "tent")
    mednorm.unfreeze(network, "5")
    first = network[1].weight.clone()
    assert adapt(network, SITE.split(48), "tent").learned == ("5.weight", "5.bias")
    assert torch.equal(network[1].weight, first)
    assert not network[1].weight.requires_grad


def test_tent_goes_where_one_class_swallows_the_others_and_is_refused(network):
    before = everything_of(network)
    with pytest.raises(ConfigError, match=r"'tent', got 100\.0 % of one class \(50\.0 % with the site's"):
        adapt(network, (-SITE).split(48), "tent", held_out=[TEST])  # in which blobs are dark
    assert everything_of(network) == before


def test_rolling_back_tent_gives_every_bit_back(network):
    before = bytes_of(network)
    adapt(network, SITE.split(48), "tent").rollback()
    assert bytes_of(network) == before


@pytest.mark.parametrize("at_pass", [1, 2, 3, 4, 5])
def test_a_loader_that_raises_while_tent_learns_leaves_everything_as_it_was(network, at_pass):
    network[0].weight.grad = torch.ones_like(network[0].weight)
    network[5].bias.requires_grad_(False)
    loader = Broken(list(SITE.split(24)), OSError("disk"), at_pass)
    before = everything_of(network)
    with pytest.raises(OSError, match="disk"):
        adapt(network, loader, "tent")
    assert loader.passes == at_pass
    assert network[0].weight.grad is before["gradients"]["0.weight"]
    gradients = before.pop("gradients")
    after = everything_of(network)
    assert after.pop("gradients").keys() == gradients.keys()
    assert after == before


@pytest.mark.parametrize(
    ("logits", "activation", "wanted"),
    [
        ([[0.0, 0.0, 0.0]], None, 1.0986123),  # ln 3
        ([[0.0]], None, 0.6931472),  # ln 2
        ([[0.0, 100.0]], "sigmoid", 0.3465736),  # one uncertain, one certain
        ([[50.0, -50.0]], None, 0.0),
    ],
)
def test_entropy_is_that_of_the_classes_or_of_each_question(logits, activation, wanted):
    assert entropy_of(torch.tensor(logits), activation, "adapt").item() == pytest.approx(wanted, abs=1e-6)


# --- guards -----------------------------------------------------------------------------------------------------------


@METHODS
def test_images_that_are_not_scaled_as_the_network_expects_are_refused(network, method):
    before = everything_of(network)
    with pytest.raises(DataError, match=r"drift_limit=10 σ of what .* got \d\.\d+e\+03 σ at layer '1'"):
        adapt(network, (1000 * SITE).split(48), method)
    assert everything_of(network) == before
    assert adapt(network, (1000 * SITE).split(48), method, drift_limit=None).layers[0].drift > 100


def test_entropy_that_takes_the_network_too_far_is_not_blamed_on_the_images_alone(network):
    before = everything_of(network)
    with pytest.raises(DataError, match=r"Or did γ and β learn too far\? Then lower lr\."):
        adapt(network, SITE.split(48), "tent", lr=50.0, epochs=5, drift_limit=2.0)
    assert everything_of(network) == before


def test_a_drift_is_measured_behind_layers_that_are_adapted_already(network):
    first, second = adapt(network, SITE.split(48)).layers
    assert first.drift == first.before > 1
    assert second.drift < 0.3 < second.before


def test_held_out_images_show_what_it_did_for_certainty_and_for_the_metric(network):
    held_out = [(elsewhere(TEST)[:150], LABELS[:150]), (elsewhere(TEST)[150:], LABELS[150:])]
    logits = seen(network, elsewhere(TEST))
    report = adapt(network, SITE.split(48), held_out=held_out, metric=accuracy)
    assert report.metric == pytest.approx(
        [accuracy(each, LABELS) for each in (logits, seen(network, elsewhere(TEST)))], abs=1e-6
    )
    assert report.entropy[0] == pytest.approx(entropy_of(logits, None, "test").mean().item(), rel=1e-5)
    assert report.majority[0] == pytest.approx(logits.argmax(1).bincount(minlength=2).max().item() / 200)
    assert report.kept
    assert f"  metric: {report.metric[0]:.3f} before, {report.metric[1]:.3f} after\n" in str(report)
    assert report.to_dict()["entropy"] == report.entropy


@METHODS
def test_an_adaptation_that_makes_the_metric_worse_is_undone(network, method):
    before = everything_of(network)
    report = adapt(network, (-SITE).split(48), method, held_out=[(TEST, LABELS)], metric=accuracy)
    assert report.metric[1] < report.metric[0]
    assert not report.kept
    assert everything_of(network) == before


def test_without_labels_held_out_images_show_certainty_alone_and_decide_nothing(network):
    report = adapt(network, SITE.split(48), held_out=[elsewhere(TEST)])
    assert report.metric is None
    assert report.entropy is not None
    assert report.kept


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "bn"}, "'statistics', 'mix' or 'tent', got 'bn'"),
        ({"order": "parallel"}, "expected 'sequential' or 'batch', got 'parallel'"),
        ({"prior": -1}, "at least 0, got -1"),
        ({"epochs": 0}, "at least 1, got 0"),
        ({"lr": 0.0}, "expected lr above 0, got 0.0"),
        ({"activation": "relu"}, "'softmax', 'sigmoid' or None, got 'relu'"),
        ({"drift_limit": 0}, "above 0 or None, got 0"),
        ({"metric": accuracy}, "expected held_out=… with the images"),
        ({"metric": "dice", "held_out": []}, "adapt: expected metric to be a function of outputs and labels, got"),
        ({"loader": None}, "such as a DataLoader or a list, got NoneType"),
        ({"method": "tent", "model": nn.Sequential(nn.BatchNorm2d(1, affine=False))}, "γ and β that are not frozen"),
    ],
)
def test_bad_input_is_an_error_that_says_what_came(arguments, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        adapt(**{"model": build(), "loader": [torch.randn(4, 1, 12, 12)]} | arguments)


@METHODS
@pytest.mark.parametrize(("returned", "got"), [("0.9", "'0.9'"), (torch.zeros(2, 1), "a Tensor of shape (2, 1)")])
def test_a_metric_of_no_single_number_is_refused_and_the_network_is_as_it_was(network, method, returned, got):
    before = everything_of(network)
    with pytest.raises(ConfigError, match=rf"adapt: .* to return one number for a batch, got {re.escape(got)}"):
        adapt(network, SITE.split(48), method, held_out=[(TEST, LABELS)], metric=lambda *_: returned)
    assert everything_of(network) == before


def test_outputs_that_are_no_logits_are_refused_by_tent():
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(1)

        def forward(self, x):
            return {"logits": self.norm(x)}

    with pytest.raises(ConfigError, match=re.escape("to give logits (N, classes, *), got dict")):
        adapt(Several(), [torch.randn(4, 1, 12, 12)], "tent")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tent_refuses_to_learn_in_half_precision_before_an_image_is_read(network, dtype):
    network.to(dtype)
    loader, before = Broken(list(SITE.to(dtype).split(48)), OSError("disk"), at_pass=99), copy.deepcopy(network)
    with pytest.raises(ConfigError, match=f"γ and β that learn in float32 or float64, got {dtype} in layer '1'"):
        adapt(network, loader, "tent")
    assert loader.passes == 0
    assert all(torch.equal(*each) for each in zip(network.buffers(), before.buffers(), strict=True))
    assert all(torch.equal(*each) for each in zip(network.parameters(), before.parameters(), strict=True))
    assert adapt(network, loader).kept


def test_norms_in_float32_learn_within_a_network_of_half_precision(network):
    class Widened(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x.float()).to(x.dtype)

    network.half()
    for place in (1, 5):
        network[place] = Widened(8)
    report = adapt(network, SITE.half().split(48), "tent", drift_limit=None)
    assert report.learned == ("1.weight", "1.bias", "5.weight", "5.bias")
    assert all(network[place].bias.isfinite().all() and network[place].bias.any() for place in (1, 5))


def test_tent_in_several_processes_is_refused(network):
    with first_of(2), pytest.raises(ConfigError, match="γ and β learn in one process"):
        adapt(network, [SITE], "tent", process_group="world")
