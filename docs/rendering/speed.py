"""Tables of what `mednorm bench` measured, from benchmarks/results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rendering import words
from rendering.source import PartError, measured
from rendering.tables import markdown

Record = Mapping[str, Any]
Peer = Mapping[str, Any] | None

_NAMES = {
    "torch": "PyTorch",
    "torch-inplace": "PyTorch, ReLU in place",
    "torch-compile": "`torch.compile`",
    "keras-tensorflow": "Keras, TensorFlow",
    "keras-jax": "Keras, JAX",
    "mednorm": "mednorm",
    "mednorm lean": "mednorm, lean",
    "mednorm folded": "mednorm, folded",
    "none": "no normalization",
}
_ALLOCATORS = {"default": "glibc as it comes", "tuned": "glibc after `tune_allocator`", "tcmalloc": "tcmalloc"}


def record(part: str) -> Record:
    """Read the results of a part.

    Raises:
        PartError: there are none, or those of a run that did not finish.

    """
    read: Record = measured(part, f"mednorm bench {part} --out with that file")
    if not read.get("finished"):
        raise PartError(f"benchmarks/results/{part}.json is of a run that did not finish: run it again, it goes on.")
    return read


def layers() -> str:
    """Show every layer at every shape as multiples of the floor, one table an allocator."""
    read = record("layers")
    parts = []
    for allocator, said in _ALLOCATORS.items():
        ids = [
            name
            for name, peer in _every_peer(read).items()
            if peer["allocator"] == allocator and not (allocator != "default" and peer["name"].startswith("keras"))
        ]
        if ids:
            ours = next((name for name in ids if _every_peer(read)[name]["name"] == "mednorm"), ids[0])
            headers = ["shape", "floor, ms", *(_name(_every_peer(read)[name]) for name in ids)]
            rows = []
            for case in read["cases"]:
                floor = case["peers"].get(ours)
                ratios = [_ratio(case["peers"].get(name), "ratio") for name in ids]
                rows.append([case["name"], _median(floor, "floor", 2), *ratios])
            parts.append(f"With {said}:\n\n" + markdown(headers, rows, left=1))
    return "\n".join(parts) + _made(read)


def steps() -> str:
    """Show what a training step takes, and how far losses and gradients are from PyTorch's."""
    headers = [
        "network and batch",
        "",
        "allocator",
        "step, ms",
        "of PyTorch's as installed",
        "peak, MB",
        "kept for backward, MB",
        "loss",
        "gradient against PyTorch's",
        "in float64",
        "against float64",
    ]
    read = record("steps")
    rows = []
    for case in read["cases"]:
        named = f"{case['network']}, {'×'.join(map(str, case['shape']))}"
        for peer in case["peers"].values():
            apart = ("gradient_difference", "gradient_difference_float64", "gradient_error")
            rows.append(
                [
                    named,
                    _name(peer),
                    peer["allocator"],
                    _ratio(peer, "milliseconds", 0),
                    _ratio(peer, "relative"),
                    f"{peer['peak_memory_mb']:.0f}",
                    f"{peer['live_bytes'] / 2**20:.0f}",
                    f"{peer['loss']:.6f}",
                    *(f"{peer[key]:.0e}" if key in peer else "–" for key in apart),
                ]
            )
            named = ""
    return markdown(headers, rows, left=3) + _made(read)


def allocators() -> str:
    """Show time and memory of a layer's and a network's step with each allocator."""
    headers = ["step", "", "allocator", "ms", "of the first", "peak, MB", "pages cleared"]
    read = record("allocators")
    rows = []
    for case in read["cases"]:
        named = case["name"] if "network" in case else f"BN and ReLU, {case['name']}"
        for peer in case["peers"].values():
            rows.append(
                [
                    named,
                    _name(peer),
                    peer["allocator"],
                    _ratio(peer, "milliseconds", 1),
                    _ratio(peer, "relative"),
                    f"{peer['peak_memory_mb']:.0f}",
                    f"{peer['page_faults']['median']:.0f}",
                ]
            )
            named = ""
    return markdown(headers, rows, left=3) + _made(read)


def inference() -> str:
    """Show evaluation: layers as multiples of a copy, networks in milliseconds."""
    read = record("inference")
    rows = []
    for case in read["cases"]:
        named = case["name"]
        for peer in case["peers"].values():
            rows.append([named, _name(peer), _ratio(peer, "milliseconds"), _ratio(peer, "ratio")])
            named = ""
    return markdown(["", "", "ms", "of copying x"], rows, left=2) + _made(read)


def statistics() -> str:
    """Show moving and frozen statistics beside those of the batch."""
    read = record("statistics")
    rows = []
    for case in read["cases"]:
        named, batch = case["name"], case["peers"]["BatchNorm+tuned"]["milliseconds"]["median"]
        for peer in case["peers"].values():
            of_batch = f"{peer['milliseconds']['median'] / batch:.2f}"
            rows.append([named, _name(peer), _ratio(peer, "milliseconds"), of_batch, _ratio(peer, "ratio")])
            named = ""
    return markdown(["", "", "ms", "of `BatchNorm`", "of the floor"], rows, left=2) + _made(read)


def family() -> str:
    """Show every layer of the family relative to PyTorch's batch normalization, and the floor."""
    read = record("family")
    headers = ["layer", *(case["name"] for case in read["cases"])]
    first = [case["peers"][case["reference"]] for case in read["cases"]]
    rows = [
        ["`torch.nn.BatchNorm`", *(_median(peer, "milliseconds", 1) + " ms" for peer in first)],
        ["the floor", *(f"{1 / peer['ratio']['median']:.2f}" for peer in first)],
    ]
    for name, peer in _every_peer(read).items():
        if peer["name"] != "torch":
            rows.append([_name(peer), *(_ratio(case["peers"].get(name), "relative") for case in read["cases"])])
    return markdown(headers, rows, left=1) + _made(read)


def startup() -> str:
    """Show how long programs take to start."""
    read = record("startup")
    (case,) = read["cases"]
    rows = [[f"`{name}`", _ratio(peer, "milliseconds", 0)] for name, peer in case["peers"].items()]
    return markdown(["", "ms"], rows, left=1) + _made(read)


def brief(language: str) -> str:
    """Show in a few rows what the whole tables say: layers and steps, the same allocator for both sides."""
    headers, floors, layer, step = words.SPEED[language]
    rows = []
    for case in record("layers")["cases"]:
        ours, theirs, installed = (case["peers"].get(name) for name in ("mednorm+tuned", "torch+tuned", "torch"))
        cells = [_ratio(peer, "ratio") for peer in (ours, theirs, installed)]
        rows.append([layer.format(case["name"]), *(floors.format(cell) for cell in cells)])
    read = record("steps")
    for case in read["cases"]:
        ours, theirs, installed = (case["peers"].get(name) for name in ("mednorm+tuned", "torch+tuned", "torch"))
        cells = [_ratio(peer, "milliseconds", 0) for peer in (ours, theirs, installed)]
        rows.append([step.format(case["name"]), *(f"{cell} ms" for cell in cells)])
    return markdown(list(headers), rows, left=1) + f"\n{_machine(read)}\n"


SHOWN: dict[str, Callable[[], str]] = {
    "layers": layers,
    "family": family,
    "steps": steps,
    "statistics": statistics,
    "inference": inference,
    "startup": startup,
    "allocators": allocators,
}


def _every_peer(read: Record) -> dict[str, Any]:
    return {name: peer for case in read["cases"] for name, peer in case["peers"].items()}


def _name(peer: Mapping[str, Any]) -> str:
    first, _, every = peer["name"].partition(" ")
    if peer["name"] in _NAMES:
        return _NAMES[peer["name"]]
    return f"`{first}`" + (f", k = {every}" if every else "")


def _median(peer: Peer, key: str, digits: int) -> str:
    return "–" if peer is None or key not in peer else f"{peer[key]['median']:.{digits}f}"


def _ratio(peer: Peer, key: str, digits: int = 2) -> str:
    if peer is None or key not in peer:
        return "–"
    median, low, high = (f"{peer[key][end]:.{digits}f}" for end in ("median", "low", "high"))
    return f"{median} [{low}, {high}]"


def _made(read: Record) -> str:
    """Say where, by what and over how many rounds, and what is missing and why."""
    reasons: dict[str, list[str]] = {}
    for case in read["cases"]:
        for peer, reason in case["missing"].items():
            reasons.setdefault(reason, []).append(peer)
    missing = "".join(
        f" Not measured: {', '.join(dict.fromkeys(peers))} ({reason})." for reason, peers in reasons.items()
    )
    return f"\n{_machine(read)}; medians [quartiles] of {read['cases'][0]['rounds']} rounds.{missing}\n"


def _machine(read: Record) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in read["versions"].items())
    return f"{read['machine']['model']}, {read['machine']['threads']} threads; {versions}"
