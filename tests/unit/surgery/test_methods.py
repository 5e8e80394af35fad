"""Methods besides `forward` that use one layer of a pair without the other."""

import functools

import pytest
from torch import nn

from mednorm.surgery.methods import Methods


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.act = nn.BatchNorm2d(2), nn.ReLU()
        self.body = nn.Sequential(nn.Conv2d(1, 2, 1), self.norm, self.act)

    def forward(self, x):
        return self.body(x)


def decorated(function):
    @functools.wraps(function)
    def run(*args):
        return function(*args)

    return run


class Calling(Base):
    def embed(self, x):
        return self.act(x)


class Handing(Base):
    @property
    def layer(self):
        return self.norm


class Nested(Base):
    @decorated
    def embed(self, xs):
        return [(lambda x: self.norm(x))(x) for x in xs]


class Forwarding(Base):
    def embed(self, x):
        return self.norm.forward(x)


class Together(Base):
    def embed(self, x):
        return self.act(self.norm(x))


class Whole(Base):
    def embed(self, x):
        return self.body(x)


class Setting(Base):
    def init_weights(self):
        nn.init.ones_(self.norm.weight)
        self.norm.eps = 1e-3


class Building(Base):
    def rebuild(self):
        self.norm = nn.BatchNorm2d(2)


class Hidden(Base):
    def _embed(self, x):
        return self.norm(x)


class Inheriting(Calling):
    pass


class Overriding(Calling):
    def embed(self, x):
        return self.body(x)


@pytest.mark.parametrize("kind", [Calling, Handing, Nested, Forwarding, Inheriting])
def test_a_method_that_uses_one_without_the_other_is_named(kind):
    reason = Methods(nn.Sequential(kind())).splitting("0.norm", "0.act")
    method = "layer" if kind is Handing else "embed"
    alone, other = ("'0.act'", "'0.norm'") if issubclass(kind, Calling) else ("'0.norm'", "'0.act'")
    assert reason == f"'0' ({kind.__name__}) has a method {method!r} that seems to use {alone} without {other}"


@pytest.mark.parametrize("kind", [Base, Together, Whole, Setting, Building, Hidden, Overriding])
def test_methods_that_use_both_or_neither_are_no_doubt(kind):
    assert Methods(nn.Sequential(kind())).splitting("0.norm", "0.act") == ""


def test_the_way_to_a_layer_through_a_part_of_the_network_counts():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.act = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)), nn.ReLU()

        def features(self, x):
            return self.stem(x)

    assert "has a method 'features' that seems to use 'stem.1' without 'act'" in (
        Methods(Outer()).splitting("stem.1", "act")
    )
