"""Every arm of a study as a table, what the study says of itself, and how it was made."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mednorm.results import ArmSummary, Results

HEADERS = {
    "en": ("norm", "regularizer", "batch", "test {}", "{} against none", "epochs to target", "ms per step"),
    "zh": ("归一化", "正则化", "批量大小", "测试 {}", "{} 与不归一化之差", "达到目标所需轮数", "每步毫秒"),
}

# Only where a study has several of them.
FURTHER = {
    "en": {"network": "network", "train_share": "training share"},
    "zh": {"network": "网络", "train_share": "训练数据占比"},
}

SPLITS = {
    "en": {"train": "train", "val": "val", "test": "test"},
    "zh": {"train": "训练", "val": "验证", "test": "测试"},
}

# Put together from words, Chinese has a space that it does not write.
_BETWEEN_CHARACTERS = re.compile(r"(?<=[\u4e00-\u9fff]) (?=[\u4e00-\u9fff])")


def markdown(headers: Sequence[str], rows: Iterable[Sequence[str]], left: int, right: int = 0) -> str:
    """Write a Markdown table whose first `left` and last `right` columns are words and whose others are numbers."""
    numbers = len(headers) - left - right
    lines = ["| " + " | ".join(headers) + " |", "|" + " --- |" * left + " ---: |" * numbers + " --- |" * right]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return _BETWEEN_CHARACTERS.sub("", "\n".join(lines) + "\n")


def table(results: Results, language: str) -> str:
    """Show every arm of a study."""
    metrics = results.headline_metrics()
    *names, test, difference, epochs, step = HEADERS[language]
    short = [name.removeprefix("test_") for name in metrics]
    several = [key for key in FURTHER[language] if len({getattr(arm, key) for arm in results.summary}) > 1]
    names += [FURTHER[language][key] for key in several]
    headers = [*names, *(test.format(name) for name in short), difference.format(short[0]), epochs, step]
    return markdown(
        headers, (_row(arm, metrics, several, len(results.study.seeds)) for arm in results.summary), left=len(names)
    )


def sentences(results: Results) -> str:
    """Show what a study says of itself."""
    return "\n".join(f"- {statement.text}" for statement in results.statements) + "\n"


def headlines(results: Results) -> str:
    """Show what a study says of quality, and whatever it could distinguish."""
    chosen = [s for s in results.statements if s.topic == "quality" or s.verdict in ("better", "worse")]
    return "\n".join(f"- {statement.text}" for statement in chosen) + "\n"


def cautions(results: Results) -> str:
    """Show what a study says its numbers cannot carry."""
    return "\n".join(f"- {s.text}" for s in results.statements if s.topic in ("data", "caution")) + "\n"


def facts(results: Results, language: str) -> str:
    """Say how the figures were made."""
    made = results.environment
    words = SPLITS[language]
    images = ", ".join(f"{count} {words[split]}" for split, count in results.study.data.images.items())
    minutes = sum(run.seconds for run in results.runs) / 60
    command = re.sub(r" --out \S+", "", re.sub(r"( --(?:data|config) )\S*/(?=[^/\s])", r"\1", made.command))
    if language == "zh":
        return (
            f"`{command}`：{len(results.runs)} 次训练，图像 {images}，种子 {_list(results.study.seeds)}，"
            f"训练 {minutes:.1f} 分钟（{made.processor}，{made.threads} 线程，torch {made.packages['torch']}）。\n"
        )
    return (
        f"`{command}`: {len(results.runs)} runs on {images} images, seeds {_list(results.study.seeds)}, "
        f"{minutes:.1f} minutes of training ({made.processor}, {made.threads} thread{'s' * (made.threads > 1)}, "
        f"torch {made.packages['torch']}).\n"
    )


def _row(arm: ArmSummary, metrics: list[str], several: list[str], seeds: int) -> list[str]:
    reached = arm.epochs_to_target
    epochs = "–" if reached.mean is None else f"{reached.mean:.1f} ({reached.n}/{seeds})"
    step = arm.seconds_per_step.mean
    return [
        arm.norm,
        arm.regularizer,
        str(arm.batch_size),
        *(f"{arm.train_share:.0%}" if key == "train_share" else arm.network for key in several),
        *(arm.metrics[name].text(3) for name in metrics),
        arm.versus_none[metrics[0]].text(3, signed=True) if arm.versus_none else "–",
        epochs,
        "–" if step is None else f"{step * 1e3:.1f}",
    ]


def _list(values: list[int]) -> str:
    return json.dumps(values).strip("[]")


def made(found: Mapping[str, Any]) -> str:
    """Say which machine and versions a benchmark was made with."""
    machine, versions = found["machine"], found["versions"]
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    return (
        f"{machine['model']}, {threads}; {', '.join(f'{package} {version}' for package, version in versions.items())}"
    )
