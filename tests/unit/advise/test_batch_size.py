import gc
import sys

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from mednorm import advise_batch_size
from mednorm.advise.batch_size import fits
from mednorm.advise.fit import MemoryFit
from mednorm.advise.step import cost_of_weights, largest_images, of_size, optimizer_maker
from mednorm.errors import ConfigError, DataError
from mednorm.layers import DomainBatchNorm
from mednorm.memory import PeakMemory
from mednorm.population.batches import Batch, Batches

CPU = torch.device("cpu")
measured_here = pytest.mark.skipif(
    not sys.platform.startswith("linux") or PeakMemory(CPU).total() is None, reason="no high-water mark to reset"
)
pytestmark = measured_here


@pytest.fixture(scope="module", autouse=True)
def quick_collection():
    """Every measuring collects garbage first: keep it from going through all that was imported."""
    gc.freeze()
    yield
    gc.unfreeze()


def small(norm=nn.BatchNorm2d):
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm(4), nn.ReLU(), nn.Dropout(), nn.Conv2d(4, 2, 3))


def loader(size=10, batches=3, labels=False):
    images = torch.randn(4 * batches, 1, size, size)
    if labels:
        return list(zip(images.split(4), torch.zeros(4 * batches, size - 4, size - 4).long().split(4), strict=True))
    return list(images.split(4))


def held(network):
    """Everything of a network that could change, and the random state."""
    return (
        {name: value.clone() for name, value in network.state_dict().items()},
        [None if p.grad is None else p.grad.clone() for p in network.parameters()],
        [module.training for module in network.modules()],
        torch.get_rng_state(),
    )


def same(before, after):
    return (
        all(torch.equal(before[0][name], value) for name, value in after[0].items())
        and all((a is None and b is None) or torch.equal(a, b) for a, b in zip(before[1], after[1], strict=True))
        and before[2] == after[2]
        and torch.equal(before[3], after[3])
    )


def test_a_network_is_left_bit_identical():
    network = small()
    network(torch.randn(2, 1, 10, 10)).sum().backward()
    images, before = loader(), held(network)
    advise_batch_size(network, images, "500GB", seconds=0)
    assert same(before, held(network))


@pytest.mark.parametrize("when", [2, 5, 9])
def test_a_network_is_left_bit_identical_also_where_it_raises_in_the_middle(when):
    network, calls = small(), []

    def loss(outputs, labels):
        calls.append(1)
        if len(calls) == when:
            raise RuntimeError("broken loss")
        return cross_entropy(outputs, labels)

    images, before = loader(labels=True), held(network)
    with pytest.raises(RuntimeError, match="broken loss"):
        advise_batch_size(network, images, "500GB", loss=loss, seconds=0)
    assert same(before, held(network))


def test_a_network_is_left_bit_identical_where_the_loader_raises():
    class Breaks:
        def __iter__(self):
            yield torch.ones(4, 1, 10, 10)
            raise DataError("broken loader")

    network = small()
    before = held(network)
    with pytest.raises(DataError, match="broken loader"):
        advise_batch_size(network, Breaks(), "500GB", seconds=0)
    assert same(before, held(network))


def test_the_size_of_the_loader_is_the_one_in_use():
    advice = advise_batch_size(small(), loader(), "500GB", seconds=0)
    assert (advice.action, advice.recommended, advice.batch_size) == ("batch", 4, 4)


def test_progress_names_every_size_before_it_is_run():
    said = []
    advise_batch_size(small(), loader(), "500GB", seconds=0, progress=said.append)
    assert said[:3] == [f"noise of the layers: batch {number}" for number in (1, 2, 3)]
    assert said[3:] == ["memory: 1 image in a step", *(f"memory: {size} images in a step" for size in (2, 4, 8))]


def test_memory_below_what_weights_need_is_refused_before_anything_runs():
    network = small()
    network.register_forward_hook(lambda *_: pytest.fail("the network was run"))
    with pytest.raises(ConfigError, match=r"memory: expected more than .* got 1\.0 MB"):
        advise_batch_size(network, loader(), "1MB")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"memory": "8 bananas"}, r"memory: expected an amount such as '8GB', .* got '8 bananas'"),
        ({"optimizer": "lion"}, "optimizer: expected one of adam, adamw, sgd, got 'lion'"),
        ({"batch_size": 0}, "batch_size: expected at least 1 image or None, got 0"),
        ({"enough": 0}, "enough: expected a noise above 0 σ, got 0"),
        ({"limit": 0}, "expected a limit of at least 1 batch or None, got 0"),
        ({"loss": cross_entropy}, "loss: expected batches with labels, got none"),
    ],
)
def test_a_mistake_is_named_with_what_came(arguments, expected):
    with pytest.raises(ConfigError, match=expected):
        advise_batch_size(small(), loader(), **arguments)


def test_an_optimizer_that_is_made_is_refused_with_what_to_pass():
    network = small()
    with pytest.raises(ConfigError, match=r"got SGD\. Pass such as torch\.optim\.SGD"):
        advise_batch_size(network, loader(), optimizer=torch.optim.SGD(network.parameters(), 0.1))


def test_a_network_without_weights_that_learn_is_refused():
    with pytest.raises(ConfigError, match="expected a network that learns"):
        advise_batch_size(small().requires_grad_(False), loader(), "500GB")


def test_what_is_no_network_is_refused_by_its_kind():
    with pytest.raises(ConfigError, match=r"expected a torch\.nn\.Module, got function"):
        advise_batch_size(cross_entropy, loader())


def test_a_network_that_refuses_one_image_is_measured_from_two_on():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4), nn.Flatten())
    network.append(nn.Linear(4, 2))
    advice = advise_batch_size(network, loader(), "500GB", seconds=0)
    assert [each.batch_size for each in advice.measured] == [2, 4, 8, 16]


def test_a_network_with_statistics_of_sites_is_told_them():
    images = [{"image": torch.randn(4, 1, 10, 10), "site": ["A", "B", "A", "B"]} for _ in range(2)]
    network = small(lambda channels: DomainBatchNorm(channels, domains=["A", "B"]))
    assert advise_batch_size(network, images, "500GB", seconds=0).measured[3].batch_size == 8


def test_images_labels_and_sites_come_again_where_a_batch_has_fewer():
    batch = Batch((torch.arange(3.0)[:, None],), {"y": torch.tensor([5, 6, 7])}, ("A", None, "B"))
    taken = of_size(batch, 5)
    assert taken.inputs[0][:, 0].tolist() == [0, 1, 2, 0, 1]
    assert taken.labels["y"].tolist() == [5, 6, 7, 5, 6]
    assert taken.sites == ("A", None, "B", "A", None)


def test_the_largest_images_of_the_first_batches_are_taken():
    sizes = [8, 12, 10]
    batch = largest_images(Batches([torch.zeros(1, 1, size, size) for size in sizes]))
    assert batch.inputs[0].shape[-1] == 12


@pytest.mark.parametrize(("name", "states"), [("adam", 2), ("adamw", 2), ("sgd", 1)])
def test_the_state_of_an_optimizer_is_what_it_is_counted_as(name, states):
    network = nn.Linear(100, 50)
    optimizer = optimizer_maker(name)(network.parameters())
    network(torch.randn(2, 100)).sum().backward()
    optimizer.step()
    kept = [x for state in optimizer.state.values() for x in state.values() if torch.is_tensor(x) and x.dim()]
    gradients = [parameter.grad for parameter in network.parameters()]
    assert cost_of_weights(network, states) == sum(4 * tensor.numel() for tensor in (*kept, *gradients))


@pytest.mark.parametrize(("error", "largest"), [(None, 114), (0.01, 114), (-0.2, 100), (0.2, 100)])
def test_the_margin_is_at_least_that_by_which_the_check_was_off(error, largest):
    assert fits(MemoryFit(0.0, 1e6, 0.0, error=error), 120e6) == largest
