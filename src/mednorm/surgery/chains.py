"""Find which layer follows which in a network, and only where that is certain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.lazy import LazyModuleMixin

from mednorm.surgery.flow import Flow, Step, flows_of, named
from mednorm.surgery.methods import Methods

Which = Callable[[nn.Module], bool]


@dataclass(frozen=True)
class Chains:
    """Pairs of layers of which one follows the other wherever either is used.

    Attributes:
        pairs: names of both, as in ``named_modules``, in the order of the network.
        reasons: why a layer that was asked for is in no pair, by its name; a clause.
        notes: parts of the network that could not be looked into, and what was assumed.

    """

    pairs: tuple[tuple[str, str], ...]
    reasons: dict[str, str]
    notes: tuple[str, ...] = ()


_NOT_PLAIN = "is called with more than its input"
_UNSEEN = "no call of it was seen"


def is_identity(module: nn.Module) -> bool:
    """Whether a module gives its input back in every mode: ``nn.Identity``, or dropout of nothing, as MONAI has it."""
    return type(module) is nn.Identity or (isinstance(module, _DropoutNd) and module.p == 0)


def followers(
    model: nn.Module,
    first: Which,
    second: Which,
    *,
    example: Sequence[Any] | None = None,
    through: Which = is_identity,
    at_once: bool = False,
    both_modes: bool = False,
) -> Chains:
    """Find the pairs of a layer that `first` accepts and one that `second` accepts and that follows it.

    In a pair every call of the first hands its output to the second and to nothing else, and every call of the second
    takes that as its only argument. Neither has hooks, nor has a module that holds just one of them; the network does
    not read their parameters itself, nor keep them anywhere but as submodules, nor seems to use one without the other
    in a public method besides ``forward``. So the second may give way to
    ``nn.Identity()`` and the first be changed. A layer that serves at several places is in a pair only if its partner
    is beside it at each.

    The network is traced by ``torch.fx``, without running, in the mode it is in or in both. Arguments that are True or
    False by default are both; others that have a default have it, which `notes` say. What cannot be traced is watched
    while it runs on `example`, or without one is left out, apart from the blocks within it that can be traced by
    themselves. The network is left as it is, bit by bit.

    Args:
        model: where to look.
        first: accepts modules; these are not looked into.
        second: the same.
        example: positional inputs of the network.
        through: accepts modules that change nothing at present, which may stand between the two.
        at_once: ask also that nothing else happens between the two calls.
        both_modes: ask that they are a pair in training and in evaluation.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU())
        >>> found = followers(network, lambda m: isinstance(m, nn.BatchNorm2d), lambda m: isinstance(m, nn.ReLU))
        >>> found.pairs, found.reasons
        ((('2', '3'),), {'1': "it takes its input from '0' (Conv2d)"})

    """
    flows = flows_of(model, lambda m: first(m) or second(m), example, both_modes)
    return pairs_in(model, flows, first, second, through, at_once)


def pairs_in(
    model: nn.Module,
    flows: Sequence[Flow],
    first: Which,
    second: Which,
    through: Which = is_identity,
    at_once: bool = False,
) -> Chains:
    """Do as `followers` does, in flows that are known already: a pair is one in each of them."""
    found = [_pairs_in(model, flow, first, second, through, at_once) for flow in flows]
    pairs = {pair: None for chains in found for pair in chains.pairs}
    for pair in list(pairs):
        for flow, chains in zip(flows, found, strict=True):
            unused = flow.complete and all(chains.reasons.get(name) == _UNSEEN for name in pair)
            if pair not in chains.pairs and not unused:
                pairs.pop(pair, None)
    paired = {name for pair in pairs for name in pair}
    names = dict.fromkeys(name for chains in found for name in (*chains.reasons, *sum(chains.pairs, ())))
    reasons = {name: _first_reason(name, flows, found) for name in names if name not in paired}
    return Chains(tuple(pairs), reasons, tuple(dict.fromkeys(note for flow in flows for note in flow.notes)))


def _first_reason(name: str, flows: Sequence[Flow], found: Sequence[Chains]) -> str:
    """Why a layer is in no pair: in the first of the modes that says more than that it is not called."""
    given = [
        (flow.mode, chains.reasons[name]) for flow, chains in zip(flows, found, strict=True) if name in chains.reasons
    ]
    telling = [(mode, reason) for mode, reason in given if not reason.startswith(_UNSEEN)]
    if not given:
        return "what follows it in training is not what follows it in evaluation"
    mode, reason = (telling or given)[0]
    return f"{reason}, {mode}" if mode else reason


def _pairs_in(model: nn.Module, flow: Flow, first: Which, second: Which, through: Which, at_once: bool) -> Chains:
    modules = dict(model.named_modules())
    firsts = {name for name, module in modules.items() if first(module)}
    seconds = {name for name, module in modules.items() if second(module)}
    passed = {name for name, module in modules.items() if through(module)} - firsts - seconds
    ends: dict[str, list[_End]] = {}
    starts: dict[str, list[Step | None]] = {}
    for graph in flow.graphs:
        steps, users = graph.steps, _users(graph.steps)
        for place, step in enumerate(steps):
            if step.layer is None:
                continue
            if step.layer in firsts:
                end = _end(steps, users, place, seconds, passed, at_once)
                if end.reason and graph.way:
                    end = _End(None, f"{end.reason}, {graph.way}")
                ends.setdefault(step.layer, []).append(end)
            if step.layer in seconds:
                starts.setdefault(step.layer, []).append(_start(steps, place, passed))

    pairs, reasons = [], {}
    doubts = _Doubts(model, flow)
    for name, found in ends.items():
        partner = found[0].layer
        why = next((end.reason for end in found if end.reason), "")
        if not why and partner is not None:
            if {end.layer for end in found} != {partner} or len(found) != len(starts[partner]):
                why = f"{named(modules[name], name)} and {named(modules[partner], partner)} are not always together"
            why = why or doubts.about(name, partner)
        if why or partner is None:
            reasons[name] = why
        else:
            pairs.append((name, partner))
    paired = {name for pair in pairs for name in pair}
    for name, sources in starts.items():
        if name not in paired:
            reasons[name] = _why_no_first(sources, reasons, modules)
    unseen = _UNSEEN + ("" if flow.complete else ": not all of the network could be traced")
    for name in modules:
        if name in firsts | seconds and name not in paired:
            reasons.setdefault(name, unseen)
    return Chains(tuple(pairs), reasons)


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in the place of another wherever that is registered."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new


@dataclass(frozen=True)
class _End:
    """Where the output of a call goes: to one layer alone, or why not."""

    layer: str | None
    reason: str = ""


def _users(steps: list[Step]) -> list[list[int]]:
    users: list[list[int]] = [[] for _ in steps]
    for place, step in enumerate(steps):
        for source in step.inputs:
            users[source].append(place)
    return users


def _end(
    steps: list[Step], users: list[list[int]], place: int, seconds: set[str], passed: set[str], at_once: bool
) -> _End:
    if not steps[place].plain:
        return _End(None, f"it {_NOT_PLAIN}")
    here, path = place, [place]
    while True:
        takers = users[here]
        if not takers:
            return _End(None, "its output is not used")
        if len(takers) > 1:
            return _End(None, f"its output is used {len(takers)} times: {_listed([steps[t].text for t in takers])}")
        here = takers[0]
        path.append(here)
        if steps[here].layer not in passed or not steps[here].plain:
            break
    step = steps[here]
    if step.layer not in seconds:
        return _End(None, f"its output goes to {step.text}")
    if not step.plain:
        return _End(None, f"{step.text} {_NOT_PLAIN}")
    between = [steps[p].text for p in range(place, here) if p not in path and not steps[p].quiet]
    if at_once and between:
        return _End(None, f"something else happens before {step.text} is called: {_listed(between)}")
    return _End(step.layer)


def _start(steps: list[Step], place: int, passed: set[str]) -> Step | None:
    """Where the input of a call comes from; None if that is not one value."""
    step = steps[place]
    while step.plain and step.inputs:
        step = steps[step.inputs[0]]
        if step.layer not in passed:
            return step
    return None


def _why_no_first(sources: list[Step | None], reasons: dict[str, str], modules: dict[str, nn.Module]) -> str:
    for source in sources:
        if source is None:
            return f"it {_NOT_PLAIN}"
        if source.layer not in reasons or source.layer not in modules:
            return f"it takes its input from {source.text}"
    (source,) = [source for source in sources if source is not None][:1]
    return f"it follows {source.text}, but {reasons[str(source.layer)]}"


def _listed(texts: list[str]) -> str:
    return ", ".join(list(dict.fromkeys(texts))[:3]) or "never"


class _Doubts:
    """What a trace does not show, and what speaks against a pair."""

    def __init__(self, model: nn.Module, flow: Flow) -> None:
        self.modules, self.flow = dict(model.named_modules()), flow
        self.hooked = {name: module for name, module in self.modules.items() if _has_hooks(module)}
        self.kept = {id(held) for module in self.modules.values() for held in _kept_aside(module)}
        self.methods = Methods(model)
        self.places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))

    def about(self, first: str, second: str) -> str:
        """Return a reason, or nothing."""
        for name in (first, second):
            module = self.modules[name]
            what = named(module, name)
            if isinstance(module, LazyModuleMixin):
                return f"{what} is lazy and has no numbers yet"
            if name in self.flow.read:
                return f"the network itself reads the weights of {what}"
            if id(module) in self.kept:
                return f"the network keeps {what} in an attribute that is not a submodule"
            if not self.flow.complete and self.places[id(module)] > 1:
                return f"{what} is registered at several places, and not all could be traced"
        for name, module in self.hooked.items():
            inside = set(module.modules())
            if (self.modules[first] in inside) != (self.modules[second] in inside) or module in (
                self.modules[first],
                self.modules[second],
            ):
                return f"{named(module, name)} has hooks"
        return self.methods.splitting(first, second)


def _has_hooks(module: nn.Module) -> bool:
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values(), *module._backward_hooks.values())
    # Those of `freeze` only put the layer in evaluation mode, in which it is here.
    return any(getattr(hook, "__module__", None) != "mednorm.surgery.freeze" for hook in hooks)


def _kept_aside(module: nn.Module) -> Iterator[nn.Module]:
    """Modules that another holds without having registered them."""
    waiting = [value for key, value in vars(module).items() if key not in ("_modules", "_parameters", "_buffers")]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            yield value
        elif isinstance(value, list | tuple | set):
            waiting.extend(value)
        elif isinstance(value, dict):
            waiting.extend(value.values())
