"""What a network does, step by step: traced by torch.fx where that can be done, watched while it runs where not."""

from __future__ import annotations

import copy
import inspect
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

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


@dataclass
class Flow:
    """The steps of a network, or of those blocks that could be traced by themselves.

    Attributes:
        graphs: a list of steps for each.
        complete: whether these are all steps of the network, so that a layer has no calls but those seen.
        read: names of layers whose weights the network reads beside calling them.
        notes: what could not be traced.

    """

    graphs: list[list[Step]] = field(default_factory=list)
    complete: bool = True
    read: set[str] = field(default_factory=set)
    notes: tuple[str, ...] = ()


def flow_of(model: nn.Module, leaf: Callable[[nn.Module], bool], example: Sequence[Any] | None = None) -> Flow:
    """Find the steps of a network, which is left as it is.

    Args:
        model: the network.
        leaf: accepts modules that are one step; so is every layer of torch, apart from ``nn.Sequential``.
        example: positional inputs on which to watch a network that cannot be traced.

    """
    if leaf(model):
        return Flow()
    leaves = {name for name, module in model.named_modules() if name and (leaf(module) or _is_torchs(module))}
    tracing = _Tracing(model, leaves, example or ())
    if tracing.opaque and example is not None:
        from mednorm.surgery.watch import watched  # it needs `Step`, above

        tracing.flow = watched(model, leaves, example)
        others = f" Nor could {len(tracing.notes) - 1} other parts." if len(tracing.notes) > 1 else ""
        tracing.flow.notes = (f"{tracing.notes[0]}{others} The network was watched on the example instead.",)
    else:
        tracing.flow.complete = not tracing.opaque
        tracing.flow.notes = tuple(f"{note} Only the blocks within it were looked at." for note in tracing.notes)
    return tracing.flow


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

    def __init__(self, model: nn.Module, leaves: set[str], example: Sequence[Any]) -> None:
        self.flow = Flow()
        self.notes: list[str] = []
        self.opaque: set[str] = set()
        self.leaves = leaves
        self.example = example
        try:
            self.copy = _without_hooks(model)
        except Exception as error:  # whatever a user's class does when it is copied
            self.opaque.add("")
            self.notes.append(f"{named(model, '')} cannot be copied, so not traced: {_short(error)}.")
            return
        self.names = {id(module): name for name, module in self.copy.named_modules()}
        self.modules = dict(self.copy.named_modules())
        self.traced: dict[str, list[Step]] = {}
        self._trace(self.copy)
        self.flow.graphs = [self.traced[name] for name in self.modules if self._stands_alone(name)]

    def _trace(self, module: nn.Module) -> None:
        """Trace a module; if that fails, the modules in it, and then the module around those that failed."""
        failed = len(self.opaque)
        error = self._steps(module)
        if error is not None:
            for child in module.children():
                if self.names[id(child)] not in self.leaves | self.opaque | self.traced.keys():
                    self._trace(child)
            if len(self.opaque) > failed:
                error = self._steps(module)
            if error is not None and not isinstance(error, _NoForwardError):
                self.opaque.add(self.names[id(module)])
                what = named(module, self.names[id(module)])
                self.notes.append(f"{what} could not be traced: {_short(error)}.")

    def _stands_alone(self, name: str) -> bool:
        """Whether no steps but its own show what a module does."""
        parts = name.split(".") if name else []
        above = [".".join(parts[:count]) for count in range(len(parts))]
        holder = next((other for other in reversed(above) if other in self.traced or other in self.opaque), None)
        return name in self.traced and (holder is None or holder in self.opaque)

    def _steps(self, module: nn.Module) -> Exception | None:
        """Trace one module around those known to fail; return what went wrong."""
        name = self.names[id(module)]
        if inspect.getattr_static(type(module), "forward") is nn.Module.forward:  # as a ModuleList
            return _NoForwardError()
        tracer = _Tracer(self.names, self.leaves | self.opaque)
        try:
            arguments = _defaults(module, self.example if not name else ())
            graph = tracer.trace(module, concrete_args=arguments or None)
        except Exception as error:  # whatever the network's own code does when it meets what is no tensor
            return error
        self.traced[name], read = _converted(graph, self.modules, name)
        self.flow.read |= read
        return None


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


def _without_hooks(model: nn.Module) -> nn.Module:
    """Copy the modules and share their tensors, so that tracing meets no hook and leaves nothing in the network."""
    shared: dict[int, Any] = {}
    for module in model.modules():
        for key, value in vars(module).items():
            if re.fullmatch(r"_.*hooks.*", key) and isinstance(value, dict):
                shared[id(value)] = OrderedDict()
            if key == "process_group":  # a handle to other processes, which cannot be copied
                shared[id(value)] = value
            tensors = value.values() if key in ("_parameters", "_buffers") else (value,)
            shared |= {id(tensor): tensor for tensor in tensors if isinstance(tensor, Tensor)}
    copied: nn.Module = copy.deepcopy(model, shared)
    return copied


def _defaults(module: nn.Module, example: Sequence[Any]) -> dict[str, Any]:
    """What the arguments are, other than tensors: those of the example, else their defaults."""
    parameters = inspect.signature(module.forward).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    given = dict(zip([p.name for p in named if p.kind != p.KEYWORD_ONLY], example, strict=False))
    found = {p.name: given.get(p.name, p.default) for p in named}
    return {name: value for name, value in found.items() if value is not inspect.Parameter.empty and _is_plain(value)}


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


def _short(error: Exception) -> str:
    sentence = re.split(r"\.\s|\n", str(error).strip())[0].rstrip(".")
    return type(error).__name__ + (f", {sentence}" if sentence else "")
