"""The batch family at every batch size, and frozen against moving statistics in fine-tuning."""

from __future__ import annotations

from mednorm.results import Results
from mednorm.study.summary import estimate
from rendering import words
from rendering.source import measured
from rendering.tables import markdown


def family(results: Results, language: str) -> str:
    """Show the main metric of every norm at every batch size, with its difference to batch normalization."""
    metric = f"test_{results.study.main_metric}"
    sizes = sorted({arm.batch_size for arm in results.summary})
    first, mean, difference = words.FAMILY[language]
    name = words.metric(results.study.main_metric, language)
    headers = [first, *(title for size in sizes for title in (mean.format(name, size), difference))]
    shown = []
    for norm in results.study.norms:
        cells = [words.NORMS[norm][language]]
        for size in sizes:
            ours, theirs = (_by_seed(results, which, size, metric) for which in (norm, "batch"))
            cells.append(estimate(ours.values()).text(3) if ours else "–")
            apart = [ours[seed] - theirs[seed] for seed in ours if norm != "batch" and seed in theirs]
            cells.append(estimate(apart).text(3, signed=True) if apart else "–")
        shown.append(cells)
    return markdown(headers, shown, left=1)


def fine_tuning(language: str) -> str:
    """Show benchmarks/results/fine_tuning.json.

    Raises:
        PartError: it is not there.

    """
    runs = measured("fine_tuning", "python benchmarks/fine_tuning.py")["runs"]
    arms = list(dict.fromkeys((run["batch_size"], run["arm"]) for run in runs))
    untouched = {run["seed"]: run for run in runs if run["arm"] == "not fine-tuned"}
    shown = []
    for size, arm in arms:
        if arm == "not fine-tuned" and size != arms[0][0]:
            continue
        chosen = [run for run in runs if (run["batch_size"], run["arm"]) == (size, arm)]
        cells = ["–" if arm == "not fine-tuned" else str(size), words.ARMS[arm][language]]
        for where in ("new", "old"):
            cells.append(estimate([run[where] for run in chosen]).text(3))
            gained = estimate([run[where] - untouched[run["seed"]][where] for run in chosen])
            cells.append("–" if arm == "not fine-tuned" else gained.text(3, signed=True))
        shown.append(cells)
    return markdown(list(words.FINE_TUNING[language]), shown, left=2)


def _by_seed(results: Results, norm: str, size: int, metric: str) -> dict[int, float]:
    found = {run.seed: run.metrics[metric] for run in results.runs if (run.norm, run.batch_size) == (norm, size)}
    return {seed: value for seed, value in found.items() if value is not None}
