"""From an examination to plain values that JSON holds."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mednorm._version import __version__
from mednorm.examine import schema
from mednorm.examine.findings import SEVERITIES, Finding, Rule
from mednorm.examine.records import Gap, Layer, Probed, Seen
from mednorm.examine.rules import RULES
from mednorm.examine.wording import headline
from mednorm.population.distance import distance

if TYPE_CHECKING:
    from mednorm.examine.examination import Examination

_DIGITS = 4  # of a vector's numbers: DenseNet-121 has 40,000 channels
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


def document(found: Examination) -> dict[str, Any]:
    """Return an examination as plain values, by its schema."""
    probed, rules = found.probed, {rule.code: rule for rule in RULES}
    by_layer = found.by_layer()
    return asdict(
        schema.Document(
            schema=1,
            mednorm=__version__,
            network=probed.network,
            images=probed.images,
            batch_size=probed.batch_size,
            devices=probed.devices,
            sites=dict(probed.sites),
            patients=dict(probed.patients),
            ok=found.ok,
            worst=found.worst,
            diagnosis=headline(found),
            gap=_gap(probed.gap),
            findings=[_finding(each, rules.get(each.code)) for each in found.findings],
            layers=[_layer(layer, by_layer[layer.name], probed) for layer in probed.layers],
        )
    )


def distances(layer: Layer, seen: Seen) -> Tensor | None:
    """Return the distance of some images from a layer's running statistics, channel by channel; None without these."""
    state = layer.state
    if state.running_mean is None or state.running_var is None:
        return None
    return distance(seen.moments, state.running_mean, state.running_var, state.eps)


def layer_distance(layer: Layer, seen: Seen) -> float | None:
    """Return the median of that over the channels; NaN where it is finite in none."""
    each = distances(layer, seen)
    return None if each is None else _middle(each)


def _finding(finding: Finding, rule: Rule | None) -> schema.Found:
    return schema.Found(
        code=finding.code,
        rule=rule.name if rule else "",
        title=rule.title if rule else finding.code,
        severity=finding.severity,
        layer=finding.layer,
        site=finding.site,
        message=finding.message,
        evidence=[
            schema.Measured(each.name, _number(each.value, 6), _number(each.threshold, 6), each.unit)
            for each in finding.evidence
        ],
        remedy=finding.remedy,
        share=_number(finding.share),
    )


def _gap(gap: Gap | None) -> schema.GapSeen | None:
    if gap is None:
        return None
    running, batch = gap.metric if gap.metric is not None else (None, None)
    return schema.GapSeen(gap.batches, _number(gap.divergence, 6), _number(running, 6), _number(batch, 6))


def _layer(layer: Layer, findings: tuple[Finding, ...], probed: Probed) -> schema.LayerSeen:
    state, seen = layer.state, layer.seen
    return schema.LayerSeen(
        name=layer.name,
        kind=layer.kind,
        place=layer.place,
        channels=layer.channels,
        dtype=layer.dtype,
        severity=min((each.severity for each in findings), key=SEVERITIES.index, default=None),
        codes=list(dict.fromkeys(each.code for each in findings)),
        share=_number(probed.gap.by_layer.get(layer.name)) if probed.gap is not None else None,
        images=0 if seen is None else seen.images,
        eps=_number(state.eps),
        momentum=_number(state.momentum),
        updates=state.updates,
        skipped=state.skipped,
        initial_share=_number(state.initial_share),
        training=state.training,
        frozen=state.frozen,
        synchronized=state.synchronized,
        learns=state.learns,
        around=schema.Around(**asdict(layer.around)),
        mean=None if seen is None else _vector(seen.moments.mean),
        variance=None if seen is None else _vector(seen.moments.variance),
        running_mean=_vector(state.running_mean),
        running_var=_vector(state.running_var),
        weight=_vector(state.weight),
        bias=_vector(state.bias),
        distance=None if seen is None else _spread(distances(layer, seen)),
        noise=[] if seen is None else _noise(seen, probed),
        sites={
            site: schema.SiteAt(of_site.images, _spread(distances(layer, of_site)))
            for site, of_site in sorted(layer.sites.items())
        },
        batches_not_finite=layer.batches.not_finite if layer.batches is not None else 0,
    )


def _noise(seen: Seen, probed: Probed) -> list[schema.NoiseAt]:
    if seen.images < 2:
        return []
    sizes = sorted({*_BATCH_SIZES, probed.batch_size})
    return [
        schema.NoiseAt(
            size,
            _number(_middle(seen.noise_of_mean(size))),
            _number(_middle(seen.noise_of_variance(size))),
            _number(_middle(seen.effective_samples(size))),
        )
        for size in sizes
    ]


def _middle(values: Tensor) -> float:
    finite = values[values.isfinite()]
    return float(finite.quantile(0.5)) if len(finite) else torch.nan


def _spread(values: Tensor | None) -> schema.Spread | None:
    if values is None:
        return None
    finite = values[values.isfinite()]
    if not len(finite):
        return schema.Spread(None, None, None, None, len(values))
    low, median, high, most = finite.quantile(torch.tensor([0.05, 0.5, 0.95, 1.0], dtype=finite.dtype)).tolist()
    return schema.Spread(_number(low), _number(median), _number(high), _number(most), len(values) - len(finite))


def _vector(values: Tensor | None) -> list[float | None] | None:
    return None if values is None else [_number(value) for value in values.tolist()]


def _number(value: float | None, digits: int = _DIGITS) -> float | None:
    """Round to significant digits; None for what is no number."""
    if value is None or value - value != 0:
        return None
    return float(f"{value:.{digits}g}")
