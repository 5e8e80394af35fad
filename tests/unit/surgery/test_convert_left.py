"""What a conversion leaves, refuses and reports."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize, prune

import mednorm.layers as ours
from mednorm.errors import ConfigError
from mednorm.layers import accumulate
from mednorm.surgery.convert import convert
from tests.harness import bytes_of, images
from tests.processes import first_of
from tests.unit.surgery.converting import OPTIONS, RUNNING, SHAPES, WITHOUT, network, settled


def test_where_chooses_and_the_rest_is_reported():
    net = nn.Sequential(network(), network())
    report = convert(net, "batch", where=["0", "1.4"])
    assert [layer.name for layer in report.changed] == ["0.1", "0.4", "1.4"]
    assert [(layer.name, layer.reason) for layer in report.left] == [("1.1", "not asked for by `where`")]
    assert (
        convert(net, "group", where=lambda name, module: module.num_features == 7 if "4" in name else False).changed
        == ()
    )
    with pytest.raises(ConfigError, match=r"got 'decoder\.\*', which none has"):
        convert(net, "group", where="decoder.*")


class AnyRank(_BatchNorm):
    def _check_input_dim(self, input):
        pass


class Named(nn.BatchNorm2d):
    def __init__(self, channels, label):
        super().__init__(channels)
        self.label = label

    def shout(self):
        return self.label.upper()


class Doubling(nn.BatchNorm2d):
    def forward(self, input):
        return 2 * super().forward(input)


class AlwaysEvaluating(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(False)


def test_subclasses_that_behave_alike_are_converted_and_others_left():
    net = nn.Sequential(AnyRank(6), Named(6, "mine"), Doubling(6), AlwaysEvaluating(6))
    report = convert(net, "batch")
    assert [layer.name for layer in report.changed] == ["0", "1"]
    assert net[1].label == "mine"
    assert "Methods of Named are gone; its attributes stay." in report.changed[1].notes
    reason = "a subclass of BatchNorm2d that behaves differently: it defines"
    assert [layer.reason for layer in report.left] == [f"{reason} forward anew", f"{reason} train anew"]
    assert [type(module) for module in net[2:]] == [Doubling, AlwaysEvaluating]


class Slotted(nn.BatchNorm2d):
    __slots__ = ("fixed",)


class Sharded(nn.BatchNorm2d):
    __module__ = "torch.distributed.fsdp"


def left_layers():
    pruned = nn.BatchNorm2d(6)
    prune.random_unstructured(pruned, "weight", 0.5)
    parametrized = nn.BatchNorm2d(6)
    parametrize.register_parametrization(parametrized, "weight", nn.Softplus())
    patched = nn.BatchNorm2d(6)
    patched.forward = lambda x: x
    scripted = torch.jit.script(nn.BatchNorm2d(6))
    return [
        ("normalizes over the last axes", nn.LayerNorm(6)),
        ("normalizes nothing", ours.NoNorm(6)),
        ("not yet initialised: run one batch first", nn.LazyBatchNorm2d()),
        ("its weight is computed", pruned),
        ("its weight is computed", parametrized),
        ("its forward was replaced", patched),
        ("is scripted: convert before scripting", scripted),
        ("of a class that mednorm does not know", nn.RMSNorm(6)),
        ("its class has __slots__", Slotted(6)),
        ("behaves differently: it is a Sharded too", Sharded(6)),
        ("of a class that mednorm does not know", SomeonesNorm()),
    ]


class SomeonesNorm(nn.Module):
    pass


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")
def test_what_cannot_be_converted_is_left_each_with_its_reason():
    expected = left_layers()
    net = nn.ModuleList(module for _, module in expected)
    kinds = [type(module) for module in net]
    report = convert(net, "batch")
    assert report.changed == ()
    assert [type(module) for module in net] == kinds
    for (reason, module), layer in zip(expected, report.left, strict=True):
        assert reason in layer.reason
        assert layer.kind == type(module).__name__


def test_what_only_sounds_like_a_normalization_is_not_mentioned():
    class ConvNorm(nn.Sequential):
        pass

    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 2, 1))
    report = convert(nn.Sequential(ConvNorm(conv), nn.ReLU()), "batch")
    assert (report.changed, report.left) == ((), ())
    assert str(report) == "Found no normalization layer: nothing was changed."
    assert report.exact


def test_layers_of_the_kind_already_are_left_and_that_is_said_aloud():
    net = network()
    convert(net, "batch")
    before = bytes_of(net)
    report = convert(net, "batch")
    assert [layer.reason for layer in report.left] == ["is of this kind already"] * 2
    assert str(report).startswith("Nothing was changed: none of 2 layers was converted to batch.")
    assert bytes_of(net) == before


@pytest.mark.parametrize(
    ("to", "options", "message"),
    [
        ("gost", {}, "got 'gost'. Did you mean 'ghost'"),
        ("ghost", {"ghostsize": 4}, "got 'ghostsize'. Did you mean 'ghost_size'"),
        ("layer", {"num_groups": 4}, "the options of 'layer', which are none, got 'num_groups'"),
        ("ghost", {"ghost_size": 0}, "got 0"),
        ("renorm", {"r_max": 0.5}, "got 0.5"),
        ("group", {"num_groups": 0}, "got 0"),
        ("batch", {"momentum": 2}, "got 2"),
        ("torch", {"dims": 4}, "got 4"),
        ("domain", {}, "expected domains=.* got none"),
        ("group", {"fuse_activation": True}, "fuse_activation=True, got 'group'"),
        ("sync", {"process_group": "all"}, "got 'all'"),
    ],
)
def test_a_request_that_cannot_be_is_refused_and_nothing_is_changed(to, options, message):
    net = network()
    before, kinds, states = bytes_of(net), [type(m) for m in net.modules()], [set(vars(m)) for m in net.modules()]
    with pytest.raises(ConfigError, match=message):
        convert(net, to, **options)
    assert bytes_of(net) == before
    assert ([type(m) for m in net.modules()], [set(vars(m)) for m in net.modules()]) == (kinds, states)


@pytest.mark.parametrize("where", [None, "1"])
def test_a_network_within_accumulate_is_refused_and_what_waits_is_not_lost(where):
    net = nn.Sequential(nn.BatchNorm2d(6), ours.BatchNorm(6))
    with accumulate(net[1]):
        net(images(SHAPES[2]))
        with pytest.raises(
            ConfigError, match=r"got '1' \(BatchNorm\) within, whose batches that wait .* would be lost"
        ):
            convert(net, "renorm", where=where)
        assert convert(net, "renorm", inplace=False).model[1].num_batches_tracked.item() == 0
    assert [type(module) for module in net] == [nn.BatchNorm2d, ours.BatchNorm]
    assert net[1].num_batches_tracked.item() == 1


def test_a_copy_of_what_cannot_be_copied_is_refused_by_what_it_is():
    with first_of(1):
        net = nn.Sequential(ours.BatchNorm(6, process_group=dist.new_group([0])))
        with pytest.raises(ConfigError, match=r"convert: expected a network that can be copied, .*Pass inplace=True\."):
            convert(net, "renorm", inplace=False)
        assert type(net[0]) is ours.BatchNorm


def test_an_error_at_the_last_layer_leaves_the_first_as_it_was():
    net = nn.Sequential(settled(nn.BatchNorm2d(6)), nn.BatchNorm2d(6), nn.GroupNorm(2, 6))
    net[1].weight = None
    net[1].num_features = "many"
    before = bytes_of(net)
    with pytest.raises(TypeError):
        convert(net, "group")
    assert [type(module) for module in net] == [nn.BatchNorm2d, nn.BatchNorm2d, nn.GroupNorm]
    assert bytes_of(net) == before


def test_a_layer_with_an_impossible_setting_of_its_own_is_left_with_what_is_wrong():
    net = nn.Sequential(nn.BatchNorm2d(6, momentum=1.5), nn.BatchNorm2d(6))
    report = convert(net, "batch")
    assert [layer.name for layer in report.changed] == ["1"]
    assert "momentum in [0, 1] or None, got 1.5" in report.left[0].reason


def test_conversion_draws_no_random_number():
    state = torch.get_rng_state()
    for to in RUNNING + WITHOUT:
        convert(network_without_drawing(), to, **OPTIONS.get(to, {}))
    assert torch.equal(torch.get_rng_state(), state)


def network_without_drawing():
    return nn.Sequential(nn.BatchNorm2d(6), nn.BatchNorm3d(4))


def test_the_report_is_a_table_and_ready_for_json():
    net = network()
    report = convert(net, "group", where="1")
    assert str(report).splitlines() == [
        "1 layer converted to group, 1 left; outputs in evaluation DIFFER after 1 of them.",
        "  1  BatchNorm2d -> GroupNorm  DIFFERS  [1, 2]",
        "  1 layer left: not asked for by `where`",
        "  1. γ and β carried over; the running statistics did not, as GroupNorm has none: train before evaluating.",
        "  2. 6 groups: 8 do not divide 6 channels.",
    ]
    found = report.to_dict()
    assert (found["to"], found["exact"]) == ("group", False)
    assert found["changed"][0]["source"] == "BatchNorm2d"
    assert found["left"] == [{"name": "4", "kind": "BatchNorm2d", "reason": "not asked for by `where`"}]


def test_what_is_no_network_is_refused():
    with pytest.raises(ConfigError, match=r"expected a network .*, got OrderedDict"):
        convert(network().state_dict(), "batch")
