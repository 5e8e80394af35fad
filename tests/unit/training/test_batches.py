import pytest
import torch

from mednorm.data import Arrays
from mednorm.training.batches import EpochBatches, evaluation_loader, training_loader


def drawn(size, batch_size, seed, epoch, steps=None):
    batches = EpochBatches(size, batch_size, seed, steps)
    batches.set_epoch(epoch)
    return list(batches)


def arrays(count):
    numbers = torch.arange(count)
    names = tuple(map(str, range(count)))
    unknown = (None,) * count
    return Arrays(numbers.float().view(-1, 1, 1, 1), numbers * 10, names, unknown, unknown, unknown)


def test_the_order_depends_on_seed_and_epoch_alone():
    first = drawn(50, 8, 3, 2)
    torch.rand(7)
    assert drawn(50, 8, 3, 2) == first


@pytest.mark.parametrize(("seed", "epoch"), [(3, 1), (2, 2), (4, 2)])
def test_another_seed_or_epoch_gives_another_order(seed, epoch):
    assert drawn(50, 8, seed, epoch) != drawn(50, 8, 3, 2)


def test_neither_seeds_nor_epochs_share_an_order():
    orders = {str(drawn(30, 30, seed, epoch)) for seed in range(5) for epoch in range(20)}
    assert len(orders) == 100


def test_drawing_an_order_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    drawn(50, 8, 0, 0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("size", "batch_size"), [(50, 8), (48, 8), (7, 3)])
def test_no_image_comes_twice_in_an_epoch_and_the_incomplete_batch_is_left_out(size, batch_size):
    batches = drawn(size, batch_size, 0, 4)
    seen = [row for batch in batches for row in batch]
    assert [len(batch) for batch in batches] == [batch_size] * (size // batch_size)
    assert len(set(seen)) == len(seen) == size // batch_size * batch_size
    assert set(seen) <= set(range(size))


def test_every_image_is_seen_in_some_epoch_though_each_leaves_some_out():
    seen = {row for epoch in range(30) for batch in drawn(10, 4, 0, epoch) for row in batch}
    assert seen == set(range(10))


def test_a_batch_as_large_as_the_set_is_the_set():
    (batch,) = drawn(5, 5, 0, 0)
    assert sorted(batch) == [0, 1, 2, 3, 4]


def test_more_steps_than_the_images_fill_take_every_image_again_in_a_new_order():
    batches = drawn(6, 4, 0, 0, steps=9)
    assert [len(batch) for batch in batches] == [4] * 9
    seen = [row for batch in batches for row in batch]
    rounds = [seen[start : start + 6] for start in range(0, 36, 6)]
    assert [sorted(each) for each in rounds] == [list(range(6))] * 6
    assert len({tuple(each) for each in rounds}) > 1


def test_a_batch_larger_than_the_images_repeats_some_of_them():
    (batch,) = drawn(3, 8, 0, 0, steps=1)
    assert sorted(batch.count(row) for row in range(3)) == [2, 3, 3]


def test_the_first_steps_are_the_same_however_many_follow():
    assert drawn(6, 4, 2, 1, steps=9)[:1] == drawn(6, 4, 2, 1)


def test_training_batches_keep_each_image_with_its_target_and_its_row():
    batches = list(training_loader(arrays(20), 6, seed=1))
    assert [len(images) for images, *_ in batches] == [6, 6, 6]
    for images, targets, rows in batches:
        assert torch.equal(images.flatten().long() * 10, targets)
        assert torch.equal(images.flatten().long(), rows)


def test_evaluation_takes_every_image_once_in_order():
    batches = list(evaluation_loader(arrays(10), batch_size=4))
    assert [images.flatten().tolist() for images, *_ in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert torch.cat([targets for _, targets, _ in batches]).tolist() == list(range(0, 100, 10))
    assert torch.cat([rows for *_, rows in batches]).tolist() == list(range(10))


def test_volumes_of_different_sizes_are_evaluated_one_at_a_time_in_order():
    volumes = tuple(torch.full((1, side, 4, 4), float(side)) for side in (3, 5, 4))
    masks = tuple(torch.full((side, 4, 4), side) for side in (3, 5, 4))
    unknown = (None,) * 3
    batches = list(evaluation_loader(Arrays(volumes, masks, ("a", "b", "c"), unknown, unknown, unknown)))
    assert [rows.tolist() for *_, rows in batches] == [[0], [1], [2]]
    for (image, mask, _), volume, truth in zip(batches, volumes, masks, strict=True):
        assert torch.equal(image, volume[None])
        assert torch.equal(mask, truth[None])
