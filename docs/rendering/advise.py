"""How near predictions of peak memory come: benchmarks/results/advise.json."""

from __future__ import annotations

import json
from statistics import median

from rendering.source import ROOT, PartError
from rendering.tables import markdown


def advise() -> str:
    """Show for every network what was measured, and what was predicted of other sizes and then measured.

    Raises:
        PartError: the file is not there.

    """
    path = ROOT / "benchmarks" / "results" / "advise.json"
    if not path.exists():
        raise PartError("benchmarks/results/advise.json is missing. Run python benchmarks/advise_memory.py.")
    measured = json.loads(path.read_text(encoding="utf-8"))
    headers = ["network, image", "allocator", "measured", "images", "", "predicted, MB", "peak, MB", "error"]
    rows = []
    for case in measured["cases"]:
        known = [each["batch_size"] for each in case["measured"]]
        for row in case["unseen"]:
            first = row is case["unseen"][0]
            rows.append(
                [
                    f"{case['network']}, {'×'.join(map(str, case['shape']))}" if first else "",
                    case["allocator"] if first else "",
                    f"{known[0]} to {known[-1]}" if first else "",
                    str(row["batch_size"]),
                    "between" if row["batch_size"] < known[-1] else "beyond",
                    f"{row['predicted'] / 1e6:.0f}",
                    f"{median(row['peaks']) / 1e6:.0f} [{min(row['peaks']) / 1e6:.0f}, {max(row['peaks']) / 1e6:.0f}]",
                    f"{row['error']:+.1%}",
                ]
            )
    machine, versions = measured["machine"], measured["versions"]
    made = ", ".join(f"{package} {version}" for package, version in versions.items())
    times, threads = len(measured["cases"][0]["unseen"][0]["peaks"]), machine["threads"]
    cores = "1 thread" if threads == 1 else f"{threads} threads"
    note = f"\nMedian [least, most] of {times} trainings. {machine['model']}, {cores}; {made}.\n"
    return markdown(headers, rows, left=3) + note
