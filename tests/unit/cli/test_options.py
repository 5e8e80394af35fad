from pathlib import Path

import pytest

from mednorm.cli.options import numbers, shares, tell, words
from mednorm.errors import ConfigError


def test_what_is_not_given_stays_not_given():
    assert words(None) is None
    assert numbers(None, "--seeds") is None
    assert shares(None, "--train-shares") is None


def test_shares_are_numbers_with_or_without_a_fraction():
    assert shares("0.1, 0.3,1", "--train-shares") == [0.1, 0.3, 1.0]


@pytest.mark.parametrize("text", ["", "a", "0.1,", "0,1;0,3", "10%"])
def test_what_is_no_share_is_named_with_its_option(text):
    with pytest.raises(ConfigError) as raised:
        shares(text, "--train-shares")
    assert str(raised.value) == f"--train-shares: expected numbers such as 0.1,0.3,1, got {text!r}."


def test_words_are_cut_at_commas_and_trimmed():
    assert words("none, batch ,group") == ["none", "batch", "group"]
    assert words("left ventricle,wall") == ["left ventricle", "wall"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2,8,32", [2, 8, 32]), ("0..4", [0, 1, 2, 3, 4]), ("7", [7]), (" 1, 2", [1, 2]), ("4..4", [4])],
)
def test_numbers_are_listed_or_given_as_a_range_with_both_ends(text, expected):
    assert numbers(text, "--seeds") == expected


def test_a_range_that_runs_backwards_is_empty_and_refused_by_the_settings(capsys):
    from mednorm.cli.app import run

    assert numbers("4..0", "--seeds") == []
    assert run(["study", "tissue", "--seeds", "4..0"]) == 2
    assert "options: seeds: list should have at least 1 item" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "a", "1,a", "1.5", "0..", "..4", "0..2..4", "1 2"])
def test_what_is_no_whole_number_is_named_with_its_option(text):
    with pytest.raises(ConfigError) as raised:
        numbers(text, "--seeds")
    assert str(raised.value) == f"--seeds: expected whole numbers such as 2,8,32 or 0..4, got {text!r}."


def test_a_path_is_told_on_one_line_whatever_its_length_and_brackets(capsys):
    path = Path("a[/b]" + "c" * 300 + "[red]")
    tell("Page", path)
    assert capsys.readouterr().out == f"Page     {path}\n"
