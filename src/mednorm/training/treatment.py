"""Treat a trained run: what its findings recommend is done to a copy, which is written beside it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from mednorm.data import Split
from mednorm.errors import ConfigError, RunError
from mednorm.examine.examination import Examination
from mednorm.examine.examine import examine
from mednorm.files import make_folder, whole_folder, write_atomically
from mednorm.population.adapt import Method, adapt
from mednorm.population.recalibrate import recalibrate
from mednorm.population.report import RecalibrationReport
from mednorm.training.disk import read_weights
from mednorm.training.examined import RunFacts, loader_of_run
from mednorm.training.settings import Device

# What new running statistics mend. Anything else asks for other layers, or another training.
RECALIBRATED = ("MN001", "MN002", "MN006", "MN007", "MN014")
ADAPTED = "MN004"
TREATED = (*RECALIBRATED, ADAPTED)
RECORD = "treatment.json"


@dataclass(frozen=True)
class Treatment:
    """What was done to a run.

    Attributes:
        folder: of the new run; None where there was nothing to treat, or the change was not kept.
        codes: of the rules it was done for.
        site: that the network was adapted to; None for all images.
        report: what was changed; None where there was nothing to treat.
        before: the examination that it rests on.
        after: of the same images with the new network; None without one. One that was adapted to a site is for that
            site: where others differ from it, MN004 names these.
        left: codes of findings that other statistics do not mend.

    """

    folder: Path | None
    codes: tuple[str, ...]
    site: str | None
    report: RecalibrationReport | None
    before: Examination
    after: Examination | None
    left: tuple[str, ...]

    @property
    def not_found(self) -> tuple[str, ...]:
        """Codes that were asked for and that the examination did not find."""
        return tuple(code for code in self.codes if code not in self.before.by_code())

    def sites(self) -> dict[str, tuple[float, float]]:
        """Return how far each site is from the running statistics before and after, in σ: median over the layers."""
        if self.after is None:
            return {}
        views = self.before.by_site(), self.after.by_site()
        return {
            site: (median(views[0][site].distance.values()), median(views[1][site].distance.values()))
            for site in views[0]
            if views[0][site].distance and views[1][site].distance
        }

    def to_dict(self) -> dict[str, Any]:
        """Return what the record on disk says, ready for JSON."""
        return {
            "schema": 1,
            "codes": list(self.codes),
            "not_found": list(self.not_found),
            "site": self.site,
            "sites": {site: {"before": before, "after": after} for site, (before, after) in self.sites().items()},
            "left": list(self.left),
            "report": None if self.report is None else self.report.to_dict(),
            "gap": {"before": _gap(self.before), "after": _gap(self.after)},
            "findings": {"before": _codes(self.before), "after": _codes(self.after)},
        }


def treat_run(
    folder: Path,
    data: str | None,
    split: Split | Literal["all"],
    out: Path,
    *,
    fix: Sequence[str] | None = None,
    site: str | None = None,
    method: Method | None = None,
    validate: Split | None = None,
    batch_size: int | None = None,
    device: Device = "auto",
    progress: Callable[[int], None] | None = None,
) -> Treatment:
    """Examine a run on some images, and give a copy of it the statistics that mend what was found.

    A site that is far from the others (MN004) is adapted to, by its images alone; anything else that new statistics
    mend is by all images. Labels are not used, but for `validate`.

    Args:
        folder: the run's folder; it is left as it is.
        data: a .npz, a manifest.csv or its folder; None for the run's own.
        split: "train", "val", "test", or "all" for every image.
        out: folder of the new run, with its weights, its settings and the record of the treatment.
        fix: codes of the rules to treat; by default those that were found.
        site: to adapt to; by default the one that is farthest off.
        method: of `mednorm.adapt`, for MN004; "statistics" unless given.
        validate: labelled images of this split, on which the metric may not get worse.
        batch_size: by default the training's.
        device: "auto" for a GPU where there is one, "cpu" or "cuda".
        progress: called with the number of batches that are done, in each of several stages.

    Raises:
        RunError: not a run, or `out` is there already.
        ConfigError: a code that new statistics do not mend, MN004 without a site to adapt to, or a method without one.
        DataError: the data cannot be used.

    """
    if out.exists():
        raise RunError(f"{out}: expected no such folder, as a new run is written there. Choose another --out.")
    if fix is not None:
        fix = [code.strip().upper() for code in fix if code.strip()]
    _check(fix, site, batch_size)
    make_folder(out.parent)
    load = partial(loader_of_run, folder, data, batch_size=batch_size, device=device)
    network, loader, facts = load(split)
    look = partial(
        examine,
        optimizer=facts.decay,
        metric=facts.metric,
        batch_size=facts.settings.batch_size,
        progress=progress,
    )
    before = look(network, loader)
    found = before.by_code()
    codes = tuple(fix or (code for code in found if code in TREATED and _matters(before, code)))
    left = tuple(code for code in found if code not in TREATED and _matters(before, code))
    if not codes:
        return Treatment(None, (), None, None, before, None, left)
    site = _site(before, site) if ADAPTED in codes or site is not None else None
    if site is None and method is not None:
        raise ConfigError(
            f"--method: expected a site to adapt to, got none, as {ADAPTED} is not among {', '.join(codes)}. Name it "
            "with --site, or leave --method out."
        )
    images: Iterable[Any] = loader if site is None else load(split, site=site)[1]
    held_out = None if validate is None else load(validate, site=site)[1]
    metric = None if held_out is None else facts.metric
    if site is None:
        report = recalibrate(network, images, validation=held_out, metric=metric, progress=progress)
    else:
        report = adapt(network, images, method or "statistics", held_out=held_out, metric=metric, progress=progress)
    if not report.kept:
        return Treatment(None, codes, site, report, before, None, left)
    after = look(network, loader, try_step=False)
    done = Treatment(out, codes, site, report, before, after, left)
    _write(done, folder, facts, out)
    return done


def _check(fix: Sequence[str] | None, site: str | None, batch_size: int | None) -> None:
    known = f"--fix: expected codes among {', '.join(TREATED)}, which other running statistics mend"
    if fix is not None and not fix:
        raise ConfigError(f"{known}, got none. Leave it out to treat what is found.")
    unknown = [code for code in fix or () if code not in TREATED]
    if unknown:
        raise ConfigError(f"{known}, got {unknown[0]!r}. mednorm examine --explain {unknown[0]} says what mends it.")
    if site is not None and fix and ADAPTED not in fix:
        raise ConfigError(f"--site: expected {ADAPTED} in --fix, which adapts to a site, got {', '.join(fix)}.")
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"--batch-size: expected at least 1, got {batch_size}.")


def _matters(examination: Examination, code: str) -> bool:
    """Tell whether a rule found more than what is merely useless."""
    return any(finding.severity != "info" for finding in examination.by_code()[code])


def _site(examination: Examination, wanted: str | None) -> str:
    known = examination.by_site()
    if wanted is not None:
        if wanted not in known:
            got = f"{', '.join(known)}" if known else "images without sites"
            raise ConfigError(f"--site: expected a site of the images, got {wanted!r}; there are {got}.")
        return wanted
    found = [finding for finding in examination.by_code().get(ADAPTED, ()) if finding.site is not None]
    if not found:
        raise ConfigError(
            f"--fix {ADAPTED}: expected a site that is far from the others, found none. Name it with --site."
        )
    farthest = max(found, key=lambda finding: finding.evidence[0].value)
    assert farthest.site is not None
    return farthest.site


def _write(done: Treatment, folder: Path, facts: RunFacts, out: Path) -> None:
    _, epoch = read_weights(folder / "best.ckpt")
    weights = {f"network.{key}": value.cpu() for key, value in facts.whole.state_dict().items()}
    buffer = io.BytesIO()
    torch.save({"state_dict": weights, "epoch": epoch - 1}, buffer)
    record = done.to_dict() | {"of": folder.name}
    with whole_folder(out) as new:
        write_atomically(new / RECORD, json.dumps(record, indent=1))
        write_atomically(new / "best.ckpt", buffer.getvalue())
        write_atomically(new / "config.toml", (folder / "config.toml").read_text(encoding="utf-8"))


def _gap(examination: Examination | None) -> dict[str, Any] | None:
    gap = None if examination is None else examination.probed.gap
    return None if gap is None else {"divergence": gap.divergence, "metric": gap.metric}


def _codes(examination: Examination | None) -> list[str] | None:
    return None if examination is None else list(examination.by_code())
