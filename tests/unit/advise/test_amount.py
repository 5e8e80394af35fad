import pytest

from mednorm.advise.amount import bytes_of, readable
from mednorm.errors import ConfigError


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("8GB", 8 * 10**9),
        ("8 gb", 8 * 10**9),
        (" 8GiB ", 8 * 2**30),
        ("8G", 8 * 2**30),
        ("0.5TB", 5 * 10**11),
        ("512MiB", 2**29),
        ("100 kB", 100_000),
        ("4096", 4096),
        ("4096B", 4096),
        (2**30, 2**30),
        (1.5e9, 1_500_000_000),
    ],
)
def test_an_amount_is_read_as_it_is_written(written, expected):
    assert bytes_of(written) == expected


@pytest.mark.parametrize("written", ["8 bananas", "", "GB", "-8GB", "8GBB", "1e9", "8,5GB", True, None, float("nan")])
def test_what_is_no_amount_is_refused_with_what_came(written):
    with pytest.raises(ConfigError) as caught:
        bytes_of(written)
    assert str(caught.value) == f"memory: expected an amount such as '8GB', '512MiB' or bytes, got {written!r}."


@pytest.mark.parametrize("written", ["0GB", 0, -5])
def test_an_amount_of_nothing_is_refused(written):
    with pytest.raises(ConfigError, match=f"above 0, got {written!r}"):
        bytes_of(written)


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0, "0 B"), (999, "999 B"), (999_960, "1.0 MB"), (123_456_789, "123 MB"), (8e9, "8.0 GB"), (2.5e13, "25.0 TB")],
)
def test_an_amount_is_said_in_the_unit_that_fits(size, expected):
    assert readable(size) == expected
