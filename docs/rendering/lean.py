"""What lean activations save and cost: benchmarks/results/lean.json."""

from __future__ import annotations

from rendering.source import measured
from rendering.tables import markdown

_WHO = {
    "torch": "PyTorch",
    "torch lean": "PyTorch, lean",
    "mednorm": "`mednorm`, fused",
    "mednorm lean": "`mednorm`, fused, lean",
}


def lean() -> str:
    """Show every network with what is kept, the peak and the time of a step.

    Raises:
        PartError: the file is not there.

    """
    found = measured("lean", "python benchmarks/lean_memory.py")
    headers = ["network, input", "", "kept, MiB", "of PyTorch's", "peak, MiB", "step, ms", "time, lean to not"]
    rows = []
    for case in found["cases"]:
        ratio = case["ratio"]
        cost = f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
        for peer, kept in case["bytes"].items():
            rows.append(
                [
                    f"{case['network']}, {'×'.join(map(str, case['shape']))}" if peer == "torch" else "",
                    _WHO[peer],
                    f"{kept / 2**20:.1f}",
                    f"{kept / case['bytes']['torch']:.0%}",
                    f"{case['peak'][peer] / 2**20:.1f}",
                    f"{case['milliseconds'][peer]['median']:.0f}",
                    cost if peer == "mednorm lean" else "",
                ]
            )
    machine, versions = found["machine"], found["versions"]
    made = ", ".join(f"{package} {version}" for package, version in versions.items())
    rounds = found["cases"][0]["rounds"]
    same = sum(all(case["same_bits"].values()) for case in found["cases"])
    return markdown(headers, rows, left=2) + (
        f"\n{machine['model']}, {machine['threads']} threads, {machine['allocator']} allocator; {made}; "
        f"medians [quartiles] of {rounds} rounds. Lean gradients are the ordinary ones, bit for bit, in {same} of "
        f"{len(found['cases'])} networks.\n"
    )
