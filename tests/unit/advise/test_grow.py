import pytest
import torch

from mednorm.advise.fit import Measured
from mednorm.advise.grow import grow

MB = 10**6


class Machine:
    """Takes so many MB for a batch, and remembers which it was asked to run."""

    def __init__(self, fixed, per_image, seconds=0.0, fails=lambda size: None):
        self.fixed, self.per_image, self.seconds, self.fails, self.run = fixed, per_image, seconds, fails, []

    def peak(self, size):
        return round((self.fixed + self.per_image * size) * MB)

    def __call__(self, size):
        self.run.append(size)
        if (error := self.fails(size)) is not None:
            raise error
        return Measured(size, self.peak(size), self.per_image * size * MB, self.seconds)


@pytest.mark.parametrize("limit", [150, 160, 170, 200, 320, 800, 5000, 100_000])
def test_no_size_beyond_the_first_is_run_whose_peak_is_above_the_limit(limit):
    machine = Machine(100, 10)
    grow(machine, limit * MB, 100 * MB, seconds=60)
    assert machine.run[0] == 1
    assert all(machine.peak(size) <= limit * MB for size in machine.run)


def test_the_second_size_waits_for_room_for_twice_the_rise_of_the_first():
    machine = Machine(100, 10)
    assert [len(grow(machine, limit * MB, 100 * MB, 60)[0]) for limit in (125, 126)] == [1, 2]


def test_after_four_sizes_those_are_run_whose_double_fits():
    machine = Machine(100, 10)
    _, fitted = grow(machine, 800 * MB, 100 * MB, seconds=60)
    assert machine.run == [1, 2, 4, 8, 16, 32]
    assert fitted.per_image == pytest.approx(10 * MB)
    grow(few := Machine(100, 10), 200 * MB, 100 * MB, seconds=60)
    assert few.run == [1, 2, 4, 8]


def test_time_ends_the_measuring_after_four_sizes():
    machine = Machine(100, 10, seconds=100.0)
    grow(machine, 10**12, 100 * MB, seconds=60)
    assert machine.run == [1, 2, 4, 8]


def test_a_network_that_refuses_one_image_is_begun_with_two():
    machine = Machine(100, 10, fails=lambda size: ValueError("Expected more than 1 value") if size == 1 else None)
    found, _ = grow(machine, 10**12, 100 * MB, seconds=60)
    assert found[0].batch_size == 2


def test_a_network_that_refuses_two_images_as_well_says_why():
    machine = Machine(100, 10, fails=lambda size: ValueError(f"refuses {size}"))
    with pytest.raises(ValueError, match="refuses 2"):
        grow(machine, 10**12, 100 * MB, seconds=60)


def test_a_size_that_runs_out_of_memory_ends_the_measuring():
    machine = Machine(100, 10, fails=lambda size: torch.OutOfMemoryError("none left") if size == 8 else None)
    found, fitted = grow(machine, 10**12, 100 * MB, seconds=60)
    assert [each.batch_size for each in found] == [1, 2, 4]
    assert fitted.at(8) == pytest.approx(180 * MB)


def test_nothing_is_predicted_where_the_first_size_runs_out_of_memory():
    machine = Machine(100, 10, fails=lambda size: torch.OutOfMemoryError("none left"))
    assert grow(machine, 10**12, 100 * MB, seconds=60) == ((), None)
