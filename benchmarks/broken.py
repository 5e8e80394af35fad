"""What `mednorm.examine` says first of networks that were broken on purpose, and of healthy ones.

The networks are those of tests/unit/examine: small, trained on images made here, 2-D and 3-D. Writes
benchmarks/results/broken.json.

    python benchmarks/broken.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mednorm import __version__, examine  # noqa: E402
from tests.unit.examine import broken_a, broken_b  # noqa: E402
from tests.unit.examine.healthy import HEALTHY  # noqa: E402
from tests.unit.examine.networks import accuracy  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "broken.json"


def main() -> None:
    """Examine every network and write what was found."""
    broken = []
    for case in sorted((*broken_a.BROKEN, *broken_b.BROKEN), key=lambda case: case.code):
        network, loader = case.build()
        first = examine(network, loader, metric=accuracy, **case.told).findings[0]
        broken.append({"name": case.name, "expected": case.code, "code": first.code, "severity": first.severity})
        print(json.dumps(broken[-1], ensure_ascii=False), flush=True)
    healthy = []
    for well in HEALTHY:
        network, loader = well.build()
        found = examine(network, loader, metric=accuracy)
        worst = {
            code: min(each, key=lambda f: "error warning info".index(f.severity)).severity
            for code, each in found.by_code().items()
        }
        healthy.append({"name": well.name, "found": worst})
        print(json.dumps(healthy[-1], ensure_ascii=False), flush=True)
    about = {"mednorm": __version__}
    text = json.dumps({"about": about, "broken": broken, "healthy": healthy}, indent=1, ensure_ascii=False)
    RESULTS.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
