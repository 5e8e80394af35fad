"""What a pass measures agrees with float64 NumPy on the very values that reached the layers."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import nn

from mednorm import BatchNorm
from mednorm.examine.pooling import per_sample
from mednorm.examine.recorder import Recorder
from mednorm.examine.records import Patients
from mednorm.guards import evaluation_mode
from mednorm.population.batches import Batches, call
from tests.unit.examine.looking import head, inputs_of, volume_network

SITES = ("Basel", "Lund", None)


def batches_2d(sizes=(4, 3, 1, 4)):
    images = [3 + 2 * torch.randn(n, 1, 12, 10) for n in sizes]
    return Batches([{"image": x, "site": [SITES[(n + len(x)) % 3] for n in range(len(x))]} for x in images])


def batches_3d():
    return Batches([{"image": 100 + torch.randn(n, 1, 6, 5, 4), "site": ["Basel"] * n} for n in (2, 3, 1)])


def record(network, batches):
    with evaluation_mode(network), Recorder(network) as recorder:
        for batch in batches:
            call(network, batch)
            recorder.end(batch.size, batch.sites)
    return recorder


def assert_moments(moments, values, rtol=1e-5):
    """Compare to values (n, C) in float64."""
    assert moments.mean.dtype == torch.float64
    assert moments.count.tolist() == [len(values)] * values.shape[1]
    scale = np.abs(values).max() + 1e-30
    np.testing.assert_allclose(moments.mean, values.mean(0), atol=rtol * scale)
    np.testing.assert_allclose(moments.variance, values.var(0), rtol=rtol, atol=rtol * 1e-3 * scale**2)
    np.testing.assert_allclose(moments.minimum, values.min(0), rtol=rtol, atol=rtol * scale)
    np.testing.assert_allclose(moments.maximum, values.max(0), rtol=rtol, atol=rtol * scale)


def assert_seen(seen, images):
    """Compare to images (N, C, S) in float64."""
    assert seen.images == len(images)
    assert_moments(seen.moments, np.moveaxis(images, 1, 2).reshape(-1, images.shape[1]))
    assert_moments(seen.of_means, images.mean(2))
    assert_moments(seen.of_variances, images.var(2))


@pytest.mark.parametrize(("network", "batches"), [(head, batches_2d), (volume_network, batches_3d)])
def test_statistics_of_all_images_and_of_each_sites_are_those_of_numpy(network, batches):
    network, batches = network(), batches()
    recorder, reached = record(network, batches), inputs_of(network, batches)
    sites = np.array([site or "" for batch in batches for site in batch.sites])
    assert list(recorder.calls) == list(reached)
    for name, parts in reached.items():
        images = np.concatenate(parts)
        assert_seen(recorder.seen(name), images)
        assert recorder.sites(name).keys() == set(sites) - {""}
        for site, seen in recorder.sites(name).items():
            assert_seen(seen, images[sites == site])


@pytest.mark.parametrize(("network", "batches"), [(head, batches_2d), (volume_network, batches_3d)])
def test_statistics_of_batches_are_those_of_numpy(network, batches):
    network, batches = network(), batches()
    recorder = record(network, batches)
    for name, parts in inputs_of(network, batches).items():
        values = [np.moveaxis(part, 1, 2).reshape(-1, part.shape[1]) for part in parts]
        found = recorder.batches(name)
        assert_moments(found.of_means, np.stack([value.mean(0) for value in values]))
        several = [value.var(0, ddof=1) for value in values if len(value) > 1]
        assert_moments(found.of_variances, np.stack(several))
        assert found.not_finite == 0


def test_a_layer_that_is_called_twice_sees_both_calls_of_an_image_as_one_image():
    layer = nn.BatchNorm2d(1)
    network = nn.Sequential(layer, nn.ReLU(), layer)
    batches = Batches([torch.randn(3, 1, 8, 8), torch.randn(2, 1, 8, 8)])
    recorder, reached = record(network, batches), inputs_of(network, batches)["0"]
    assert recorder.calls == {"0": 2}
    images = np.concatenate([np.concatenate([reached[0], reached[1]], 2), np.concatenate([reached[2], reached[3]], 2)])
    assert_seen(recorder.seen("0"), images)
    assert_moments(recorder.batches("0").of_means, np.stack([part.mean((0, 2)) for part in reached]))


def test_the_slices_of_a_volume_are_one_image():
    network = nn.Sequential(nn.Flatten(0, 1), nn.BatchNorm2d(2))
    x = torch.randn(3, 5, 2, 6, 6)
    seen = record(network, Batches([{"image": x, "site": ["A", "B", "A"]}]))
    images = x.double().transpose(1, 2).flatten(2).numpy()
    assert_seen(seen.seen("1"), images)
    assert_seen(seen.sites("1")["A"], images[[0, 2]])


def test_patients_are_counted_at_each_site_and_an_image_of_none_is_one_of_its_own():
    network = head()
    with evaluation_mode(network), Recorder(network) as recorder:
        for sites, patients in (("AAB", ("p", "q", "p")), ("ABB", ("p", None, None)), ("CCC", ())):
            network(torch.randn(3, 1, 12, 10))
            recorder.end(3, list(sites), patients)
    whose = {"A": Patients.of([2, 1]), "B": Patients.of([1, 1, 1])}
    assert recorder.patients() == whose
    assert {site: seen.patients for site, seen in recorder.sites("1").items()} == {**whose, "C": None}


def test_samples_that_belong_to_no_image_count_each_for_itself():
    class Boxes(nn.Module):
        def __init__(self):
            super().__init__()
            self.whole, self.part = nn.BatchNorm2d(1), nn.BatchNorm1d(64)

        def forward(self, x):
            return self.part(torch.cat([self.whole(x), x[:1]]).flatten(1))

    network = Boxes()
    batches = Batches([{"image": torch.randn(n, 1, 8, 8), "site": ["A"] * n} for n in (2, 3)])
    recorder, reached = record(network, batches), inputs_of(network, batches)
    assert_seen(recorder.seen("part"), np.concatenate(reached["part"]))
    assert_seen(recorder.sites("whole")["A"], np.concatenate(reached["whole"]))
    assert recorder.sites("part") == {}
    assert_moments(recorder.batches("part").of_means, np.stack([part.mean((0, 2)) for part in reached["part"]]))


def test_a_call_without_values_shows_nothing():
    class Found(nn.Module):
        def __init__(self):
            super().__init__()
            self.whole, self.part = nn.BatchNorm2d(1), nn.BatchNorm2d(1)

        def forward(self, x):
            return self.whole(x).sum() + self.part(x[: len(x) - 2]).sum()  # as many objects as there are

    x = [torch.randn(n, 1, 8, 8) for n in (2, 4)]
    recorder = record(Found(), Batches(x))
    assert recorder.batches("part").of_means.count.tolist() == [1]
    assert recorder.seen("whole").images == 6
    assert_seen(recorder.seen("part"), x[1][:2].double().flatten(2).numpy())


def test_an_image_that_is_not_finite_is_left_out_and_its_batch_counted():
    network = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2))
    good, bad = torch.randn(3, 2, 6, 6), torch.randn(3, 2, 6, 6)
    bad[1, 0, 2, 2] = torch.nan
    recorder = record(network, Batches([good, bad]))
    images = torch.cat([good, bad])[[0, 1, 2, 3, 5]].double().flatten(2).numpy()
    assert_seen(recorder.seen("0"), images)
    assert recorder.batches("0").not_finite == recorder.batches("1").not_finite == 1
    assert_moments(recorder.batches("0").of_means, good.double().mean((0, 2, 3))[None].numpy())


def test_what_a_mask_leaves_out_does_not_count():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = BatchNorm(2)

        def forward(self, x):
            return self.norm(x, mask=x[:, 0] > 0)

    x = torch.randn(4, 2, 8, 8)
    recorder = record(Masked(), Batches([x]))
    kept = np.moveaxis(x.double().numpy(), 1, 3)[x[:, 0].numpy() > 0]
    assert_moments(recorder.seen("norm").moments, kept)


def test_a_layer_that_only_some_batches_reach_knows_of_those_alone():
    class Either(nn.Module):
        def __init__(self):
            super().__init__()
            self.few, self.many = nn.BatchNorm2d(1), nn.BatchNorm2d(1)

        def forward(self, x):
            return (self.few if len(x) < 3 else self.many)(x)

    x = [torch.randn(n, 1, 6, 6) for n in (2, 4, 2)]
    recorder = record(Either(), Batches(x))
    assert list(recorder.calls) == ["few", "many"]
    assert_seen(recorder.seen("few"), torch.cat([x[0], x[2]]).double().flatten(2).numpy())
    assert_seen(recorder.seen("many"), x[1].double().flatten(2).numpy())
    assert recorder.batches("many").of_means.count.tolist() == [1]


@pytest.mark.parametrize("shape", [(3, 4, 2, 2), (3, 4, 40, 3), (5, 4), (2, 4, 9, 9, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_each_sample_is_measured_by_itself_also_in_channels_last(shape, dtype):
    x = (10 + torch.randn(shape)).to(dtype)
    if len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    found, values = per_sample(x), x.double().reshape(*shape[:2], -1)
    torch.testing.assert_close(found.mean.double(), values.mean(2), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.variance.double(), values.var(2, correction=0), rtol=1e-5, atol=1e-6)
    assert found.count.tolist() == [[values.shape[2]] * shape[1]] * shape[0]


def test_what_is_kept_does_not_grow_with_the_data():
    def held(batches):
        recorder, seen, total = record(head(), batches_2d((4,) * batches)), set(), 0
        waiting = [value for key, value in vars(recorder).items() if key != "layers"]
        while waiting:
            value = waiting.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            total += value.nbytes if isinstance(value, torch.Tensor) else sys.getsizeof(value)
            parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
            fields = (getattr(value, name) for name in getattr(value, "__dataclass_fields__", ()))
            waiting += [*parts, *fields]
        return total

    assert held(2) == held(20) > 1000


def test_hooks_are_gone_after_an_exception():
    network = head()
    with pytest.raises(RuntimeError, match="midway"), Recorder(network):
        raise RuntimeError("midway")
    assert not any(module._forward_pre_hooks for module in network.modules())
