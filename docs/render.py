"""Fill the rendered parts of README and docs from real output and committed results.

A part stands between `<!-- render: NAME -->` and `<!-- end -->`. Run `make docs` after changing an example or a file
under docs/results; `tests/docs` fails when a page says something else than its source.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from mednorm.results import ArmSummary, Results, read_results

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "README.zh-CN.md", "docs/results/README.md")
PART = re.compile(r"(<!-- render: (?P<name>[\w -]+) -->\n).*?(<!-- end -->)", re.DOTALL)

HEADERS = {
    "en": ("norm", "regularizer", "batch", "test {}", "{} against none", "epochs to target", "ms per step"),
    "zh": ("归一化", "正则化", "批量大小", "测试 {}", "{} 与不归一化之差", "达到目标所需轮数", "每步毫秒"),
}

SPLITS = {
    "en": {"train": "train", "val": "val", "test": "test"},
    "zh": {"train": "训练", "val": "验证", "test": "测试"},
}


def example(name: str) -> str:
    """Show a program and what it prints."""
    path = ROOT / "examples" / f"{name}.py"
    shown = subprocess.run([sys.executable, path], capture_output=True, text=True, check=True).stdout
    code = path.read_text(encoding="utf-8").split("\n\n", 1)[1]
    return f"```python\n{code.strip()}\n```\n\n```text\n{shown.strip()}\n```\n"


def table(results: Results, language: str) -> str:
    """Show every arm of a study."""
    metrics = results.headline_metrics()
    *names, test, difference, epochs, step = HEADERS[language]
    short = [name.removeprefix("test_") for name in metrics]
    headers = [*names, *(test.format(name) for name in short), difference.format(short[0]), epochs, step]
    lines = ["| " + " | ".join(headers) + " |", "|" + " --- |" * 3 + " ---: |" * (len(metrics) + 3)]
    lines += ["| " + " | ".join(_row(arm, metrics)) + " |" for arm in results.summary]
    return "\n".join(lines) + "\n"


def sentences(results: Results) -> str:
    """Show what a study says of itself."""
    return "\n".join(f"- {statement.text}" for statement in results.statements) + "\n"


def headlines(results: Results) -> str:
    """Show what a study says of quality, and whatever it could distinguish."""
    chosen = [s for s in results.statements if s.topic == "quality" or s.verdict in ("better", "worse")]
    return "\n".join(f"- {statement.text}" for statement in chosen) + "\n"


def facts(results: Results, language: str) -> str:
    """Say how the figures were made."""
    made = results.environment
    words = SPLITS[language]
    images = ", ".join(f"{count} {words[split]}" for split, count in results.study.data.images.items())
    minutes = sum(run.seconds for run in results.runs) / 60
    command = re.sub(r" --out \S+", "", re.sub(r"(?<= --data )\S*/", "", made.command))
    if language == "zh":
        return (
            f"`{command}`：{len(results.runs)} 次训练，图像 {images}，种子 {_list(results.study.seeds)}，"
            f"训练 {minutes:.1f} 分钟（{made.processor}，{made.threads} 线程，torch {made.packages['torch']}）。\n"
        )
    return (
        f"`{command}`: {len(results.runs)} runs on {images} images, seeds {_list(results.study.seeds)}, "
        f"{minutes:.1f} minutes of training ({made.processor}, {made.threads} threads, "
        f"torch {made.packages['torch']}).\n"
    )


def parts() -> dict[str, Callable[[], str]]:
    """Return everything that can be rendered, by name."""
    known: dict[str, Callable[[], str]] = {"quickstart": lambda: example("quickstart")}
    for path in sorted((ROOT / "docs" / "results").glob("*.json")):
        results = read_results(path)
        for language in HEADERS:
            known[f"{path.stem} table {language}"] = lambda r=results, lang=language: table(r, lang)  # type: ignore[misc]
            known[f"{path.stem} facts {language}"] = lambda r=results, lang=language: facts(r, lang)  # type: ignore[misc]
        known[f"{path.stem} headlines"] = lambda r=results: headlines(r)  # type: ignore[misc]
        known[f"{path.stem} sentences"] = lambda r=results: sentences(r)  # type: ignore[misc]
    return known


def rendered(text: str) -> str:
    """Return a page with its parts filled anew."""
    known = parts()
    return PART.sub(lambda part: part[1] + known[part["name"]]() + part[3], text)


def main() -> None:
    """Fill every page."""
    for page in PAGES:
        path = ROOT / page
        path.write_text(rendered(path.read_text(encoding="utf-8")), encoding="utf-8")


def _row(arm: ArmSummary, metrics: list[str]) -> list[str]:
    reached = arm.epochs_to_target
    epochs = "–" if reached.mean is None else f"{reached.mean:.1f} ({reached.n}/{len(arm.runs)})"
    step = arm.seconds_per_step.mean
    return [
        arm.norm,
        arm.regularizer,
        str(arm.batch_size),
        *(arm.metrics[name].text(3) for name in metrics),
        arm.versus_none[metrics[0]].text(3, signed=True) if arm.versus_none else "–",
        epochs,
        "–" if step is None else f"{step * 1e3:.1f}",
    ]


def _list(values: list[int]) -> str:
    return json.dumps(values).strip("[]")


if __name__ == "__main__":
    main()
