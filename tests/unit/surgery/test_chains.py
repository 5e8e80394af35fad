"""A pair is found only where one layer certainly follows the other; for all others there is a reason."""

from threading import Lock

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mednorm import BatchNorm
from mednorm.surgery.chains import followers, replace
from mednorm.surgery.freeze import freeze
from tests.unit.surgery.networks import Network, snapshot


def is_conv(module):
    return isinstance(module, nn.Conv2d)


def is_norm(module):
    return isinstance(module, _BatchNorm)


def is_relu(module):
    return isinstance(module, nn.ReLU)


def conv():
    return nn.Conv2d(3, 3, 3, padding=1)


def branching(net, x):
    """Python that depends on values, which no tracing can follow."""
    return net.norm(net.conv(x)) if float(x.sum()) > -1e9 else x


EXAMPLE = (torch.zeros(1, 3, 4, 4),)


def network(run, **layers):
    return Network(run, **{"conv": conv(), "norm": nn.BatchNorm2d(3), **layers}).eval()


# What the network does, and whether the norm certainly follows the convolution.
RUNS = {
    "one after the other": (lambda net, x: net.norm(net.conv(x)), True),
    "both twice together": (lambda net, x: net.norm(net.conv(net.norm(net.conv(x)))), True),
    "size read between": (lambda net, x: net.norm(y := net.conv(x)).reshape(y.shape[0], -1), True),
    "skip from the convolution": (lambda net, x: net.norm(y := net.conv(x)) + y, False),
    "convolution given back": (lambda net, x: (net.norm(y := net.conv(x)), y), False),
    "operation between": (lambda net, x: net.norm(net.conv(x) * 2), False),
    "in-place operation between": (lambda net, x: net.norm(net.conv(x).mul_(2)), False),
    "view changed in place": (lambda net, x: [y := net.conv(x), y[:, :1].mul_(2), net.norm(y)][-1], False),
    "sum": (lambda net, x: net.norm(net.conv(x) + x), False),
    "convolution twice": (lambda net, x: net.conv(net.norm(net.conv(x))), False),
    "norm twice": (lambda net, x: net.norm(net.norm(net.conv(x))), False),
    "norm of the input too": (lambda net, x: net.norm(net.conv(x)) + net.norm(x), False),
    "weight read": (lambda net, x: net.norm(net.conv(x)) + net.conv.weight.sum(), False),
    "statistics read": (lambda net, x: net.norm(net.conv(x)) + net.norm.running_mean.sum(), False),
    "not used": (lambda net, x: [net.norm(net.conv(x)), net.conv(x)][0], False),
}


@pytest.mark.parametrize("name", list(RUNS))
def test_a_pair_is_found_where_every_use_is_of_both(name):
    run, found = RUNS[name]
    chains = followers(network(run), is_conv, is_norm)
    assert chains.pairs == ((("conv", "norm"),) if found else ())
    assert set(chains.reasons) == (set() if found else {"conv", "norm"})
    assert all(chains.reasons.values())
    assert chains.notes == ()


@pytest.mark.parametrize("name", [name for name in RUNS if name != "size read between"])
def test_watching_the_network_run_finds_what_tracing_finds(name):
    run, found = RUNS[name]

    def untraceable(net, x):
        return run(net, x) if float(x.sum()) > -1e9 else x

    net = network(untraceable)
    before = snapshot(net)
    chains = followers(net, is_conv, is_norm, example=EXAMPLE)
    assert chains.pairs == ((("conv", "norm"),) if found else ())
    assert "watched on the example" in chains.notes[0]
    assert snapshot(net) == before


def test_without_an_example_what_cannot_be_traced_is_left_and_named():
    net = nn.Sequential(network(branching), nn.Sequential(conv(), nn.BatchNorm2d(3))).eval()
    chains = followers(net, is_conv, is_norm)
    assert chains.pairs == (("1.0", "1.1"),)
    assert set(chains.reasons) == {"0.conv", "0.norm"}
    assert "'0' (Network) could not be traced: TypeError" in chains.notes[0]


def test_blocks_within_a_network_that_cannot_be_traced_are_traced_by_themselves():
    blocks = nn.ModuleList([nn.Sequential(conv(), nn.BatchNorm2d(3)), nn.Sequential(conv(), nn.BatchNorm2d(3))])
    net = Network(lambda net, x: net.blocks[int(x.sum() > 0)](x), blocks=blocks).eval()
    assert followers(net, is_conv, is_norm).pairs == (("blocks.0.0", "blocks.0.1"), ("blocks.1.0", "blocks.1.1"))


def test_a_block_that_was_not_reached_on_the_example_is_left():
    blocks = nn.ModuleList([nn.Sequential(conv(), nn.BatchNorm2d(3)), nn.Sequential(conv(), nn.BatchNorm2d(3))])
    net = Network(lambda net, x: net.blocks[int(x.sum() > 0)](x), blocks=blocks).eval()
    chains = followers(net, is_conv, is_norm, example=EXAMPLE)
    assert chains.pairs == (("blocks.0.0", "blocks.0.1"),)
    assert chains.reasons == dict.fromkeys(("blocks.1.0", "blocks.1.1"), "no call of it was seen")


@pytest.mark.parametrize(
    ("between", "found"),
    [(nn.Identity(), True), (nn.Dropout(0.0), True), (nn.Dropout(0.5), False), (nn.ReLU(), False)],
    ids=["identity", "dropout of nothing", "dropout", "relu"],
)
def test_what_changes_nothing_in_any_mode_may_stand_between(between, found):
    net = nn.Sequential(conv(), between, nn.BatchNorm2d(3)).eval()
    assert followers(net, is_conv, is_norm).pairs == ((("0", "2"),) if found else ())


def test_a_use_of_what_stands_between_is_a_use_of_the_first():
    net = network(lambda net, x: net.norm(y := net.between(net.conv(x))) + y, between=nn.Identity())
    assert followers(net, is_conv, is_norm).pairs == ()


def test_an_activation_shared_by_two_places_is_in_no_pair():
    net = network(lambda net, x: net.relu(net.relu(net.norm(x)) + x), relu=nn.ReLU())
    chains = followers(net, is_norm, is_relu)
    assert chains.pairs == ()
    assert chains.reasons["norm"] == "'norm' (BatchNorm2d) and 'relu' (ReLU) are not always together"


def test_at_once_asks_that_nothing_happens_in_between():
    def run(net, x):
        y = net.norm(x)
        x.mul_(2)
        return net.conv(y)

    assert followers(network(run), is_norm, is_conv).pairs == (("norm", "conv"),)
    chains = followers(network(run), is_norm, is_conv, at_once=True)
    assert chains.pairs == ()
    assert chains.reasons["norm"] == "something else happens before 'conv' (Conv2d) is called: mul"


@pytest.mark.parametrize("where", ["conv", "norm", "inner"])
def test_hooks_that_see_between_the_two_keep_them_apart(where):
    net = Network(lambda net, x: net.norm(net.inner(x)), inner=nn.Sequential(conv()), norm=nn.BatchNorm2d(3)).eval()
    hooked = {"conv": net.inner[0], "norm": net.norm, "inner": net.inner}[where]
    hooked.register_forward_hook(lambda module, args, output: None)
    chains = followers(net, is_conv, is_norm)
    assert chains.pairs == ()
    assert "has hooks" in chains.reasons["norm"]


def test_hooks_on_what_holds_both_and_those_of_freeze_do_not_matter():
    net = nn.Sequential(conv(), nn.BatchNorm2d(3)).eval()
    net.register_forward_hook(lambda module, args, output: None)
    freeze(net)
    assert followers(net, is_conv, is_norm).pairs == (("0", "1"),)


def test_a_layer_kept_in_a_list_beside_the_submodules_is_in_no_pair():
    net = network(lambda net, x: net.norms[0](net.conv(x)))
    net.norms = [net.norm]
    chains = followers(net, is_conv, is_norm)
    assert chains.pairs == ()
    assert "an attribute that is not a submodule" in chains.reasons["norm"]


def test_a_norm_that_is_called_with_a_mask_is_in_no_pair():
    net = network(lambda net, x: net.norm(net.conv(x), x[:, 0] > 0), norm=BatchNorm(3))
    chains = followers(net, is_conv, is_norm)
    assert chains.reasons["conv"] == "'norm' (BatchNorm) is called with more than its input"
    assert chains.reasons["norm"] == "it is called with more than its input"


class Doubling(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = conv(), nn.BatchNorm2d(3)

    def forward(self, x, double=False):
        y = self.conv(x)
        return self.norm(2 * y if double else y)


def test_a_switch_is_looked_at_both_ways_unless_the_example_has_it():
    net = Doubling().eval()
    chains = followers(net, is_conv, is_norm)
    assert chains.pairs == ()
    assert chains.reasons["conv"] == "its output goes to mul, with double=True"
    assert followers(net, is_conv, is_norm, example=EXAMPLE).pairs == ()
    assert followers(net, is_conv, is_norm, example=(*EXAMPLE, False)).pairs == (("conv", "norm"),)
    assert followers(net, is_conv, is_norm, example=(*EXAMPLE, True)).pairs == ()


class Switched(nn.Module):
    """Two switches that part the pair together, and one that no tracing can follow."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = conv(), nn.BatchNorm2d(3)

    def forward(self, x, a=False, b=False, check=False):
        y = self.conv(x)
        if check and float(y.sum()) > 0:
            return y
        return self.norm(y + x if a and b else y)


def test_switches_are_turned_together_too_and_what_cannot_be_traced_then_is_said_once():
    net = Switched().eval()
    assert followers(net, is_conv, is_norm).reasons["conv"] == "its output goes to add, with a=True, b=True"
    chains = followers(net, is_conv, is_norm, example=(*EXAMPLE, False))
    assert chains.pairs == (("conv", "norm"),)
    (note,) = chains.notes
    assert note.startswith("the network (Switched) could not be traced with check=True, so that was not seen: TypeErr")


def test_of_many_switches_it_is_said_that_not_every_choice_was_traced():
    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = conv(), nn.BatchNorm2d(3)

        def forward(self, x, a=False, b=False, c=True, d=False):
            y = self.conv(x)
            return y if a and b and not c and d else self.norm(y)

    chains = followers(Many(), is_conv, is_norm)
    assert chains.reasons["norm"].endswith("with a=True, b=True, c=False, d=True")
    assert chains.notes == (
        "the network (Many) was traced with each of a=True, b=True, c=False, d=True alone and all together.",
    )


def test_what_other_arguments_were_taken_to_be_is_said_once_for_both_modes():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = conv(), nn.BatchNorm2d(3)

        def forward(self, x, scale=None, power=2):
            y = self.conv(x)
            return self.norm(y if scale is None else y * scale)

    chains = followers(Scaled(), is_conv, is_norm, both_modes=True)
    assert chains.pairs == (("conv", "norm"),)
    assert chains.notes == (
        "the network (Scaled) was traced with scale=None, power=2, the defaults: what it does with other values was "
        "not seen.",
    )


# What the network does, and whether the norm follows the convolution in evaluation, and in both modes.
MODES = {
    "skip in training": (lambda net, x: (net.norm(y := net.conv(x)), y if net.training else None), True, False),
    "norm without in training": (lambda net, x: net.norm(x if net.training else net.conv(x)), True, False),
    "both in training alone": (lambda net, x: net.norm(net.conv(x)) if net.training else x, False, True),
    "untraceable in training": (
        lambda net, x: net.norm(net.conv(x)) if not net.training or x.sum() > 0 else x,
        True,
        False,
    ),
}


@pytest.mark.parametrize("name", list(MODES))
@pytest.mark.parametrize("mixed", [False, True])
def test_a_pair_in_both_modes_is_one_wherever_either_is_called_in_each(name, mixed):
    run, alone, both = MODES[name]
    net = network(run)
    net.norm.train(mixed)
    before = snapshot(net)
    assert followers(net, is_conv, is_norm).pairs == ((("conv", "norm"),) if alone else ())
    chains = followers(net, is_conv, is_norm, both_modes=True)
    assert chains.pairs == ((("conv", "norm"),) if both else ())
    assert both or "in training mode" in chains.reasons["conv"]
    assert snapshot(net) == before


def test_a_layer_with_another_partner_in_training_is_in_no_pair():
    net = network(lambda net, x: (net.norm if net.training else net.other)(net.conv(x)), other=nn.BatchNorm2d(3))
    chains = followers(net, is_conv, is_norm, both_modes=True)
    assert chains.pairs == ()
    assert chains.reasons["conv"] == "what follows it in training is not what follows it in evaluation"


def test_a_network_that_cannot_be_traced_in_training_alone_is_watched_for_that():
    run, _, _ = MODES["untraceable in training"]
    chains = followers(network(run), is_conv, is_norm, example=EXAMPLE, both_modes=True)
    assert chains.pairs == (("conv", "norm"),)
    assert chains.notes[0].startswith("the network (Network) could not be traced in training mode: TraceError")
    assert chains.notes[0].endswith(
        "The network was watched on the example instead, in evaluation mode: paths that it did not take there were not "
        "seen."
    )


def test_a_module_registered_under_two_names_is_one_and_is_replaced_at_both():
    net = network(lambda net, x: net.alias(net.conv(x)))
    net.alias = net.norm
    assert followers(net, is_conv, is_norm).pairs == (("conv", "norm"),)
    new = nn.Identity()
    replace(net, net.norm, new)
    assert net.norm is new
    assert net.alias is new


def test_a_network_that_keeps_its_last_features_is_left_as_it_was():
    def run(net, x):
        net.last = net.norm(net.conv(x))
        net.seen.append(net.last)
        return net.last

    net = network(run)
    net.last, net.seen = None, []
    before = snapshot(net)
    assert followers(net, is_conv, is_norm).pairs == (("conv", "norm"),)
    assert snapshot(net) == before
    assert (net.last, net.seen) == (None, [])


def test_a_class_that_cannot_be_copied_is_named_instead_of_traced():
    net = network(lambda net, x: net.norm(net.conv(x)))
    net.reading = (line for line in ())
    chains = followers(net, is_conv, is_norm)
    assert chains.pairs == ()
    assert "the network (Network) cannot be copied, so not traced: TypeError" in chains.notes[0]
    assert followers(net, is_conv, is_norm, example=EXAMPLE).pairs == (("conv", "norm"),)


def test_watching_leaves_the_example_the_hooks_and_the_random_numbers_alone():
    def run(net, x):
        return branching(net, x.add_(torch.rand_like(x)))

    net, example = network(run), EXAMPLE[0].clone()
    before, state = snapshot(net), torch.get_rng_state()
    followers(net, is_conv, is_norm, example=(example,))
    assert snapshot(net) == before
    assert torch.equal(example, EXAMPLE[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_an_error_while_watching_leaves_no_hook_behind():
    def run(net, x):
        branching(net, x)
        raise ZeroDivisionError

    net = network(run)
    before = snapshot(net)
    with pytest.raises(ZeroDivisionError):
        followers(net, is_conv, is_norm, example=EXAMPLE)
    assert snapshot(net) == before


def test_a_handle_to_other_processes_which_cannot_be_copied_is_no_hindrance():
    net = network(lambda net, x: net.norm(net.conv(x)), norm=BatchNorm(3))
    net.norm.process_group = Lock()
    assert followers(net, is_conv, is_norm).pairs == (("conv", "norm"),)
