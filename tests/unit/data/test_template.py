import numpy as np
import pytest
import torch

from mednorm.data import describe, tissue
from mednorm.errors import ConfigError

SITES = ("plain", "coil", "flat", "lowfield")


@pytest.fixture(scope="module")
def images():
    return tissue()


def heights(images, split):
    return {int(item.metadata["slice"]) for item in images.split(split)}


def test_there_are_120_train_40_val_and_40_test_images_of_96_by_80(images):
    assert {split: images.load(split).images.shape for split in ("train", "val", "test")} == {
        "train": (120, 1, 96, 80),
        "val": (40, 1, 96, 80),
        "test": (40, 1, 96, 80),
    }
    assert images.classes == ("background", "grey matter", "white matter")


def test_slices_of_different_splits_are_never_neighbours(images):
    taken = {split: heights(images, split) for split in ("train", "val", "test")}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert min(abs(a - b) for a in taken[one] for b in taken[other]) == 2
    assert "one slice left out" in images.note


def test_the_note_says_that_there_is_one_head_and_no_patient(images):
    assert "one head and no patient" in images.note
    assert {item.patient for item in images.items} == {None}


def test_every_slice_is_seen_by_all_four_scanners_with_one_mask(images):
    seen = {}
    for item in images.items:
        seen.setdefault(item.metadata["slice"], []).append(item)
    assert len(seen) == 50
    for items in seen.values():
        assert tuple(item.site for item in items) == SITES
        assert all(np.shares_memory(item.mask, items[0].mask) for item in items)
        assert all(item.metadata["scanner"] == item.site for item in items)


def test_every_slice_holds_brain_and_both_tissues(images):
    for item in images.items:
        shares = np.bincount(item.mask.ravel(), minlength=3) / item.mask.size
        assert shares[1:].sum() > 0.16
        assert shares[1:].min() > 0.01


def test_the_brain_is_not_cut_off(images):
    for item in images.items:
        border = np.concatenate([item.mask[0], item.mask[-1], item.mask[:, 0], item.mask[:, -1]])
        assert not border.any()


def test_white_matter_is_brighter_than_grey_and_grey_than_the_rest_on_every_scanner(images):
    for site in SITES:
        items = [item for item in images.items if item.site == site]
        image = np.stack([item.image[0] for item in items])
        mask = np.stack([item.mask for item in items])
        rest, grey, white = (image[mask == value].mean() for value in range(3))
        assert white > 1.05 * grey > 1.5 * rest


def test_front_is_at_the_top(images):
    # In the lowest slice the cerebellum, one broad mass, lies behind the two temporal poles.
    lowest = min(images.items, key=lambda item: int(item.metadata["slice"])).mask > 0
    middle = lowest[:, 35:45].any(axis=1)
    assert lowest[:40].any()
    assert not middle[:40].any()
    assert middle[60:].any()


def test_scanners_differ_in_level_noise_and_evenness(images):
    level, noise, uneven = {}, {}, {}
    for site in SITES:
        items = [item for item in images.items if item.site == site]
        white = [item.image[0][item.mask == 2] for item in items]
        level[site] = np.mean([values.mean() for values in white])
        noise[site] = np.mean([item.image[0][:8, :8].std() for item in items]) / level[site]
        uneven[site] = np.std([values.mean() for values in white]) / level[site]
    assert level["coil"] > 1.5 * level["plain"] > 2 * level["flat"] > 2.5 * level["lowfield"]
    assert noise["lowfield"] > 3 * max(noise[site] for site in SITES if site != "lowfield")
    assert uneven["coil"] > 2 * max(uneven[site] for site in SITES if site != "coil")


def test_describe_shows_the_difference_between_sites(images):
    means = {site: found.mean[0] for site, found in describe(images).intensity_by_site.items()}
    assert sorted(means, key=means.get) == ["lowfield", "flat", "plain", "coil"]


def random_states():
    return np.random.get_state()[1].tobytes() + torch.get_rng_state().numpy().tobytes()  # noqa: NPY002


@pytest.fixture(scope="module")
def same_seed(images):
    """Made anew, with what that did to the global random states."""
    before = random_states()
    tissue.cache_clear()
    again = tissue(0)
    assert again is not images
    return again, before == random_states()


def test_a_seed_gives_the_same_images(images, same_seed):
    for item, again in zip(images.items, same_seed[0].items, strict=True):
        assert np.array_equal(item.image, again.image)


def test_simulation_leaves_the_global_random_states_alone(same_seed):
    assert same_seed[1]


def test_another_seed_gives_other_images_of_the_same_head(images):
    for item, other in zip(images.items, tissue(1).items, strict=True):
        assert not np.array_equal(item.image, other.image)
        assert np.array_equal(item.mask, other.mask)


def test_noise_differs_between_scanners_and_slices(images):
    corners = np.stack([item.image[0, :8, :8].ravel() for item in images.items])  # air, which holds noise alone
    alike = np.corrcoef(corners) - np.eye(len(corners))
    assert np.abs(alike).max() < 0.6  # 64 pixels: standard deviation 0.13


def test_the_result_is_kept_and_closed_for_writing():
    assert tissue(0) is tissue(0)
    for array in (tissue(0).items[0].image, tissue(0).items[0].mask):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_a_negative_seed_is_refused():
    with pytest.raises(ConfigError, match="tissue: expected a seed of 0 or more, got -2"):
        tissue(-2)
