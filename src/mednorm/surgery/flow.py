"""What a network does, step by step: traced by torch.fx where that can be done, watched while it runs where not."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from torch import fx, nn

from mednorm.surgery.copying import without_hooks

_FEW = 3  # switches of which every choice is traced: 8 ways
# What these give says nothing of the values of a tensor, which may change.
_SHAPES = {"shape", "dtype", "device", "ndim", "size", "dim", "numel", "is_floating_point"}


@dataclass(frozen=True)
class Step:
    """One call of a layer, or one operation beside the layers.

    Attributes:
        layer: name of the layer called; None for an operation.
        text: what to call it in a message.
        inputs: places, in the list of steps, of those whose results it takes.
        plain: whether it takes one value and nothing else.
        quiet: whether it computes nothing: an input, a weight that is read, the size of a tensor.

    """

    layer: str | None
    text: str
    inputs: tuple[int, ...] = ()
    plain: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class Graph:
    """The steps of one way through a network or block, and which way that is where there are several."""

    steps: list[Step]
    way: str = ""


@dataclass
class Flow:
    """The steps of a network, or of those blocks that could be traced by themselves.

    Attributes:
        graphs: the steps for each, and for each way through it that its arguments choose.
        complete: whether these are all steps of the network, so that a layer has no calls but those seen.
        read: names of layers whose weights the network reads beside calling them.
        notes: what could not be traced, and what was assumed.
        mode: the mode this is in, where several were looked at.

    """

    graphs: list[Graph] = field(default_factory=list)
    complete: bool = True
    read: set[str] = field(default_factory=set)
    notes: tuple[str, ...] = ()
    mode: str = ""


def flows_of(
    model: nn.Module,
    leaf: Callable[[nn.Module], bool],
    example: Sequence[Any] | None = None,
    both_modes: bool = False,
) -> list[Flow]:
    """Find the steps of a network, which is left as it is.

    Args:
        model: the network.
        leaf: accepts modules that are one step; so is every layer of torch, apart from ``nn.Sequential``.
        example: positional inputs on which to watch a network that cannot be traced.
        both_modes: look at the network in training and in evaluation, not just in the mode it is in.

    Returns:
        A flow for each mode.

    """
    if leaf(model):
        return [Flow()]
    leaves = {name for name, module in model.named_modules() if name and (leaf(module) or _is_torchs(module))}
    looked_for = {name for name, module in model.named_modules() if leaf(module)}
    modes: list[bool | None] = [None]
    if both_modes:
        modes += [mode for mode in (True, False) if {module.training for module in model.modules()} != {mode}]
    tracings = [_Tracing(model, leaves, looked_for, example or (), mode) for mode in modes]
    opaque = [tracing for tracing in tracings if tracing.opaque]
    flows = [tracing.flow for tracing in tracings if not tracing.opaque or example is None]
    failed = [f"{what}: {why}." for what, why in tracings[0].failures]
    for tracing in tracings[1:]:
        new = [failure for failure in tracing.failures if failure not in tracings[0].failures]
        failed += [f"{what} {tracing.flow.mode}: {why}.{_others(new)}" for what, why in new[:1]]
    if opaque and example is not None:
        from mednorm.surgery.watch import watched  # it needs `Step`, above

        flows.append(watched(model, leaves, example))
        left_out = _listed(_defaults(model, example))
        flows[-1].notes = (
            f"{failed[0]}{_others(failed)} The network was watched on the example instead, in evaluation mode"
            f"{f' and with {left_out}' if left_out else ''}: paths that it did not take there were not seen.",
        )
    elif opaque:
        flows[0].notes += tuple(f"{failure} Only the blocks within it were looked at." for failure in failed)
    return flows


def named(module: nn.Module | None, name: str) -> str:
    """What to call a module in a message."""
    return f"'{name}' ({type(module).__name__})" if name else f"the network ({type(module).__name__})"


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith(("torch.nn", "torch.ao.nn", "torch.jit")) and not isinstance(
        module, _CONTAINERS
    )


_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


class _NoForwardError(Exception):
    """A module that is not there to be called."""


class _Tracing:
    """The tracing of one network, from the whole down to the parts that can be traced."""

    def __init__(
        self,
        model: nn.Module,
        leaves: set[str],
        looked_for: set[str],
        example: Sequence[Any],
        training: bool | None,
    ) -> None:
        self.flow = Flow(mode={None: "", True: "in training mode", False: "in evaluation mode"}[training])
        self.failures: list[tuple[str, str]] = []
        self.opaque: set[str] = set()
        self.leaves, self.looked_for = leaves, looked_for
        self.example = example
        try:
            self.copy = without_hooks(model)
        except Exception as error:  # whatever a user's class does when it is copied
            self.opaque.add("")
            self.failures.append((f"{named(model, '')} cannot be copied, so not traced", _short(error)))
            self.flow.complete = False
            return
        if training is not None:
            for module in self.copy.modules():  # not by train(), which a user's class may have made do more
                module.training = training
        self.names = {id(module): name for name, module in self.copy.named_modules()}
        self.modules = dict(self.copy.named_modules())
        self.traced: dict[str, list[Step]] = {}
        self._trace(self.copy)
        self.flow.complete = not self.opaque
        for name in [name for name in self.modules if self._stands_alone(name)]:
            self.flow.graphs.append(Graph(self.traced[name]))
            if self.looked_for & {self.names[id(module)] for module in self.modules[name].modules()}:
                self.flow.graphs += self._other_ways(name)

    def _trace(self, module: nn.Module) -> None:
        """Trace a module; if that fails, the modules in it, and then the module around those that failed."""
        failed = len(self.opaque)
        error = self._attempt(module)
        if error is not None:
            for child in module.children():
                if self.names[id(child)] not in self.leaves | self.opaque | self.traced.keys():
                    self._trace(child)
            if len(self.opaque) > failed:
                error = self._attempt(module)
            if error is not None and not isinstance(error, _NoForwardError):
                self.opaque.add(self.names[id(module)])
                what = named(module, self.names[id(module)])
                self.failures.append((f"{what} could not be traced", _short(error)))

    def _stands_alone(self, name: str) -> bool:
        """Whether no steps but its own show what a module does."""
        parts = name.split(".") if name else []
        above = [".".join(parts[:count]) for count in range(len(parts))]
        holder = next((other for other in reversed(above) if other in self.traced or other in self.opaque), None)
        return name in self.traced and (holder is None or holder in self.opaque)

    def _attempt(self, module: nn.Module) -> Exception | None:
        """Trace one module around those known to fail; return what went wrong."""
        name = self.names[id(module)]
        if inspect.getattr_static(type(module), "forward") is nn.Module.forward:  # as a ModuleList
            return _NoForwardError()
        try:
            self.traced[name] = self._steps(module, {})
        except Exception as error:  # whatever the network's own code does when it meets what is no tensor
            return error
        return None

    def _steps(self, module: nn.Module, changed: dict[str, Any]) -> list[Step]:
        """Trace one module with what its arguments are, some of them changed."""
        name = self.names[id(module)]
        example = self.example if not name else ()
        arguments = {**_given(module, example), **_defaults(module, example), **changed}
        graph = _Tracer(self.names, self.leaves | self.opaque).trace(module, concrete_args=arguments or None)
        steps, read = _converted(graph, self.modules, name)
        self.flow.read |= read
        return steps

    def _other_ways(self, name: str) -> Iterator[Graph]:
        """Trace a module with its switches, arguments that are True or False by default, the other way too."""
        module = self.modules[name]
        defaults = _defaults(module, self.example if not name else ())
        switches = {key: not value for key, value in defaults.items() if isinstance(value, bool)}
        failed: list[set[str]] = []
        for keys in _choices(list(switches)):
            changed = {key: switches[key] for key in keys}
            way = f"with {_listed(changed)}"
            try:
                yield Graph(self._steps(module, changed), way)
            except Exception as error:  # as above
                if not any(fewer <= set(keys) for fewer in failed):
                    self._note(
                        f"{named(module, name)} could not be traced {way}, so that was not seen: {_short(error)}."
                    )
                failed.append(set(keys))
        if len(switches) > _FEW:
            self._note(f"{named(module, name)} was traced with each of {_listed(switches)} alone and all together.")
        others = _listed({key: value for key, value in defaults.items() if key not in switches})
        if others:
            self._note(
                f"{named(module, name)} was traced with {others}, the defaults: what it does with other values was "
                "not seen."
            )

    def _note(self, text: str) -> None:
        self.flow.notes += (text,)


def _choices(names: list[str]) -> list[tuple[str, ...]]:
    """Which switches to turn: every choice of a few, of more each alone and all."""
    if len(names) > _FEW:
        return [*((name,) for name in names), tuple(names)]
    return [some for count in range(1, len(names) + 1) for some in combinations(names, count)]


class _Tracer(fx.Tracer):
    """A tracer for which modules have the names they have in the whole network."""

    proxy_buffer_attributes = True

    def __init__(self, names: dict[int, str], leaves: set[str]) -> None:
        super().__init__()
        self.names, self.leaves = names, leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self.leaves

    def path_of_module(self, mod: nn.Module) -> str:
        if id(mod) not in self.names:
            raise NameError(f"it calls a {type(mod).__name__} that is not registered as a submodule")
        return self.names[id(mod)]


def _defaults(module: nn.Module, example: Sequence[Any]) -> dict[str, Any]:
    """What the arguments that an example leaves out are by default, where that is no tensor."""
    signature = inspect.signature(module.forward).parameters.values()
    parameters = [p for p in signature if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    given = [p.name for p in parameters if p.kind != p.KEYWORD_ONLY][: len(example)]
    return {p.name: p.default for p in parameters if p.name not in given and _is_plain(p.default)}


def _given(module: nn.Module, example: Sequence[Any]) -> dict[str, Any]:
    """What the arguments are that an example has, other than tensors."""
    parameters = inspect.signature(module.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return {name: value for name, value in zip(names, example, strict=False) if _is_plain(value)}


def _listed(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _converted(graph: fx.Graph, modules: dict[str, nn.Module], root: str) -> tuple[list[Step], set[str]]:
    places = {node: place for place, node in enumerate(graph.nodes)}
    steps, read = [], set()
    for node in graph.nodes:
        target, name = node.target, getattr(node.target, "__name__", str(node.target))
        layer = target if node.op == "call_module" else None
        text = named(modules[target], target) if node.op == "call_module" else name.strip("_")
        if node.op in ("placeholder", "output"):
            text = ("the input" if node.op == "placeholder" else "the output") + f" of {named(modules[root], root)}"
        if node.op == "get_attr":
            read.add(".".join([*([root] if root else []), *target.split(".")[:-1]]))
        about = node.args[1] if target is getattr else target if node.op == "call_method" else None
        quiet = about in _SHAPES or node.op in ("placeholder", "get_attr")
        inputs = () if quiet else tuple(places[other] for other in node.all_input_nodes)
        values = [*node.args, *(value for key, value in node.kwargs.items() if key == "input")]
        plain = len(values) == len(node.args) + len(node.kwargs) == 1 and isinstance(values[0], fx.Node)
        steps.append(Step(layer, text, inputs, plain, quiet))
    return steps, read


def _others(failed: Sequence[Any]) -> str:
    return f" Nor could {len(failed) - 1} other parts." if len(failed) > 1 else ""


def _short(error: Exception) -> str:
    sentence = re.split(r"\.\s|\n", str(error).strip())[0].rstrip(".")
    return type(error).__name__ + (f", {sentence}" if sentence else "")
