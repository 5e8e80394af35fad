"""Peak memory is predicted within a tenth at batch sizes that were not measured; the benchmark runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "advise.json"


def check(written):
    """Pass if every prediction is of a size that the fit does not know, and follows from the fit."""
    for case in written["cases"]:
        fitted, known = case["memory"], {each["batch_size"] for each in case["measured"]}
        assert len(known) >= 4
        for row in case["unseen"]:
            assert row["batch_size"] not in known
            line = fitted["fixed"] + fitted["per_image"] * row["batch_size"]
            assert row["predicted"] == pytest.approx(max(fitted["floor"], line), abs=1)
            assert row["error"] == pytest.approx(row["predicted"] / median(row["peaks"]) - 1, abs=1e-9)


@pytest.mark.slow
def test_the_benchmark_of_advice_predicts_and_measures(tmp_path):
    out = tmp_path / "advise.json"
    command = [sys.executable, ROOT / "benchmarks" / "advise_memory.py", "--smoke", "--out", out]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    written = json.loads(out.read_text(encoding="utf-8"))
    (case,) = written["cases"]
    assert (case["network"], case["allocator"]) == ("the article's CNN", "tuned")
    check(written)
    assert all(abs(row["error"]) <= 0.2 for row in case["unseen"])


def test_the_peak_of_three_networks_is_predicted_within_ten_percent_at_a_size_that_was_not_measured():
    written = json.loads(RESULTS.read_text(encoding="utf-8"))
    cases = {(case["network"], case["allocator"]) for case in written["cases"]}
    assert len(cases) == 6
    assert len({network for network, _ in cases}) == 3
    check(written)
    for case in written["cases"]:
        largest = max(each["batch_size"] for each in case["measured"])
        within = [row for row in case["unseen"] if row["batch_size"] < largest]
        beyond = [row for row in case["unseen"] if row["batch_size"] > largest]
        assert len(within) == 1
        assert len(beyond) == 2
        assert abs(within[0]["error"]) <= 0.1, case["network"]
        least, most = (-0.1, 0.5) if case["allocator"] == "default" else (-0.15, 0.15)
        assert all(least <= row["error"] <= most for row in beyond), case["network"]  # up to three times the largest
