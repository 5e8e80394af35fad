"""How near predictions of peak memory come: benchmarks/results/advise.json."""

from __future__ import annotations

from statistics import median

from rendering.source import measured
from rendering.tables import made, markdown


def advise() -> str:
    """Show for every network what was measured, and what was predicted of other sizes and then measured.

    Raises:
        PartError: the file is not there.

    """
    found = measured("advise", "python benchmarks/advise_memory.py")
    headers = ["network, image", "allocator", "measured", "images", "", "predicted, MB", "peak, MB", "error"]
    rows = []
    for case in found["cases"]:
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
    times = len(found["cases"][0]["unseen"][0]["peaks"])
    return markdown(headers, rows, left=3) + f"\nMedian [least, most] of {times} trainings. {made(found)}.\n"
