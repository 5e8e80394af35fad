import numpy as np
import pytest
import torch
from torch import nn

from mednorm.data import Arrays
from mednorm.tasks.scaling import StandardizeEach
from mednorm.training.patches import patch_loader


def volumes(*sizes, foreground=None):
    """Volumes in which every voxel has its own value, so that a patch says where it was cut; masks follow the value."""
    rng = np.random.default_rng(0)
    images, masks = [], []
    for size in sizes:
        values = rng.permutation(int(np.prod(size))).reshape(size)
        images.append(torch.from_numpy(values[None].astype(np.float32)))
        mask = np.zeros(size, np.int64)
        if foreground is None:
            mask = (values % 4 == 0).astype(np.int64)
        else:
            mask[foreground] = 1
        masks.append(torch.from_numpy(mask))
    unknown = (None,) * len(sizes)
    names = tuple(f"volume {number}" for number in range(len(sizes)))
    return Arrays(tuple(images), tuple(masks), names, unknown, unknown, unknown)


def drawn(arrays, *, epoch=0, seed=0, patch=(5, 5, 5), batch_size=2, steps=3, scaling=None):
    loader = patch_loader(arrays, scaling or nn.Identity(), patch, batch_size, seed, steps)
    loader.sampler.set_epoch(epoch)
    return list(loader)


def same(ours, theirs):
    pairs = [pair for batches in zip(ours, theirs, strict=True) for pair in zip(*batches, strict=True)]
    return all(torch.equal(left, right) for left, right in pairs)


def test_seed_and_epoch_alone_decide_which_patches_are_drawn():
    arrays = volumes((9, 8, 10), (9, 8, 10))
    first = drawn(arrays, seed=3, epoch=2)
    torch.rand(7)
    assert same(drawn(arrays, seed=3, epoch=2), first)
    for seed, epoch in ((3, 1), (2, 2), (4, 2)):
        assert not same(drawn(arrays, seed=seed, epoch=epoch), first)


def test_cutting_patches_leaves_the_global_generator_alone():
    """Making an iterator takes a number from it; the patches themselves, whose number varies, do not."""
    patches = patch_loader(volumes((9, 8, 10)), nn.Identity(), (5, 5, 5), 2, 0, 3).dataset
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    patches[[(0, 11), (0, 12)]]
    assert torch.equal(torch.rand(3), expected)


def test_no_two_patches_of_an_epoch_are_drawn_alike():
    batches = drawn(volumes((32, 32, 32)), batch_size=2, steps=10)
    patches = {image.numpy().tobytes() for images, *_ in batches for image in images}
    assert len(patches) == 20


def test_an_epoch_has_the_steps_asked_for_and_takes_every_volume_as_often():
    arrays = volumes((8, 8, 8), (8, 8, 8), (8, 8, 8))
    images = tuple(image + 1000 * number for number, image in enumerate(arrays.images))
    shifted = Arrays(images, arrays.targets, *_who(arrays))
    batches = drawn(shifted, batch_size=2, steps=6)
    seen = [int(image.min()) // 1000 for images, *_ in batches for image in images]
    assert [len(images) for images, *_ in batches] == [2] * 6
    assert [seen.count(number) for number in range(3)] == [4, 4, 4]


def _who(arrays):
    return arrays.names, arrays.sites, arrays.patients, arrays.spacings


def test_image_and_mask_are_cut_at_the_same_place():
    for images, masks, _ in drawn(volumes((9, 8, 10)), steps=5):
        assert torch.equal(masks, (images[:, 0] % 4 == 0).long())


def test_half_of_the_patches_are_centred_in_a_structure():
    """One voxel of 4096 is foreground: by chance none of them would be in the middle of a patch."""
    batches = drawn(volumes((16, 16, 16), foreground=(8, 7, 9)), batch_size=8, steps=40)
    centred = [int(mask[2, 2, 2]) for _, masks, _ in batches for mask in masks]
    assert len(centred) == 320
    assert 0.4 < np.mean(centred) < 0.6


def test_volumes_of_different_sizes_give_patches_of_one_size():
    batches = drawn(volumes((9, 8, 10), (5, 12, 7), (20, 6, 5)), batch_size=3, steps=4)
    for images, masks, _ in batches:
        assert (images.shape, masks.shape) == ((3, 1, 5, 5, 5), (3, 5, 5, 5))
        assert torch.equal(masks, (images[:, 0] % 4 == 0).long())


def test_a_volume_smaller_than_the_patch_is_padded_with_background_and_the_mean_on_both_sides():
    arrays = volumes((3, 3, 5))
    ((images, masks, _),) = drawn(arrays, batch_size=1, steps=1, scaling=StandardizeEach())
    values = arrays.images[0][0].double().numpy()
    expected = np.pad((values - values.mean()) / values.std(), ((1, 1), (1, 1), (0, 0)))
    np.testing.assert_allclose(images[0, 0], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(masks[0], np.pad(arrays.targets[0].numpy(), ((1, 1), (1, 1), (0, 0))))


def test_volumes_are_scaled_whole_and_not_patch_by_patch():
    arrays = volumes((12, 12, 12))
    values = arrays.images[0].double().numpy()
    scaled = np.sort(((values - values.mean()) / values.std()).ravel())
    for images, *_ in drawn(arrays, scaling=StandardizeEach(), steps=4):
        for patch in images.double().numpy():
            places = np.searchsorted(scaled, patch.ravel() - 1e-5)
            np.testing.assert_allclose(scaled[places], patch.ravel(), atol=1e-5)
            assert abs(patch.std() - 1) > 1e-3


def test_a_volume_of_background_alone_is_used_and_said_to_be_so():
    arrays = volumes((9, 9, 9))
    empty = Arrays(arrays.images, (torch.zeros(9, 9, 9, dtype=torch.long),), *_who(arrays))
    with pytest.warns(UserWarning, match="Num foregrounds 0"):
        ((images, masks, _),) = drawn(empty, batch_size=1, steps=1)
    assert (images.shape, int(masks.sum())) == ((1, 1, 5, 5, 5), 0)
