"""A norm has one name, and every place that names norms names them all."""

import importlib.util
import typing
from pathlib import Path

from mednorm.cli import options
from mednorm.study import speaker
from mednorm.tasks.networks import NORMS
from mednorm.training.settings import Norm

WORDS = Path(__file__).resolve().parents[3] / "docs" / "rendering" / "words.py"


def rendered_words():
    spec = importlib.util.spec_from_file_location("words_of_the_pages", WORDS)
    words = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(words)
    return words


def test_every_norm_of_the_settings_is_built_spoken_of_rendered_and_offered():
    names = list(typing.get_args(Norm))
    assert len(names) == len(set(names)) > 5
    assert list(NORMS) == names
    assert sorted(speaker.NAMES) == sorted(names)
    assert options.NORMS.split(", ") == names
    rendered = rendered_words().NORMS
    assert sorted(rendered) == sorted(names)
    for words in (speaker.NAMES.values(), *([each[to] for each in rendered.values()] for to in ("en", "zh"))):
        assert len(set(words)) == len(names), "two norms of one name"
