"""Single figures in a sentence, looked up by a key; `docs/render.py` says how a key is written."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import BaseModel

from mednorm.results import ArmSummary, Estimate, Results
from rendering.source import PartError, Source

_VIEWS = ("metrics", "over_units", "batch_metrics", "mode_gap", "versus_none", "versus_none_over_units")
_SIGNED = ("mode_gap", "versus_none", "versus_none_over_units")


def figure(source: Source, key: str) -> str:
    """Return the figure that a key asks for.

    Raises:
        PartError: the file, the quantity or the arm is not there; the message says what is.

    """
    name, *rest = key.split()
    if not rest:
        raise PartError(f"figure {key!r}: expected FILE and what is asked of it, got one word.")
    try:
        results = source.read(name)
        digits = next((int(word[1:]) for word in rest if re.fullmatch(r"\.\d", word)), None)
        wanted = [word for word in rest if not re.fullmatch(r"\.\d", word)]
        if wanted[0] == "runs" or wanted[0].startswith(("study.", "environment.")):
            return _fact(results, wanted[0], digits)
        bare = "mean" in wanted[1:]
        quantity, *arm = [word for word in wanted if word != "mean"]
        view, _, metric = quantity.rpartition(".")
        estimate = _estimate(_arm(results, arm), view, metric)
    except PartError as error:
        raise PartError(f"figure {key!r}: {error}") from None
    if digits is None:
        digits = 1 if metric in ("epochs_to_target", "seconds_to_target") else 3
    if bare:
        estimate = Estimate(n=estimate.n, mean=estimate.mean)
    return estimate.text(digits, signed=view in _SIGNED)


def _fact(results: Results, path: str, digits: int | None) -> str:
    if path == "runs":
        return str(len(results.runs))
    value: object = results
    for word in path.split("."):
        known = dict(value) if isinstance(value, (dict, BaseModel)) else {}
        if word not in known:
            raise PartError(f"expected one of {', '.join(known) or 'nothing further'}, got {word!r}.")
        value = known[word]
    if isinstance(value, (dict, BaseModel)):
        raise PartError(f"expected one value, got several: {path} has {value!r:.80}.")
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, float) and digits is not None:
        return f"{value:.{digits}f}".replace("-", "−")
    return "–" if value is None else str(value)


def _arm(results: Results, tokens: Sequence[str]) -> ArmSummary:
    study = results.study
    wanted: dict[str, object] = {
        "norm": None,
        "regularizer": study.base_regularizer,
        "batch_size": study.base_batch_size,
        "network": study.networks[0],
        "train_share": 1.0,
    }
    for token in tokens:
        if token in study.norms and wanted["norm"] is None:
            wanted["norm"] = token
        elif token in study.regularizers:
            wanted["regularizer"] = token
        elif token in study.networks:
            wanted["network"] = token
        elif re.fullmatch(r"b\d+", token):
            wanted["batch_size"] = int(token[1:])
        elif re.fullmatch(r"t[\d.]+", token):
            wanted["train_share"] = float(token[1:])
        else:
            known = ", ".join([*study.norms, *study.regularizers, *study.networks])
            raise PartError(f"expected words of {known}, bSIZE or tSHARE, got {token!r}.")
    for arm in results.summary:
        if all(getattr(arm, key) == value for key, value in wanted.items()):
            return arm
    asked = ", ".join(f"{key} {value}" for key, value in wanted.items() if value != "")
    raise PartError(f"expected an arm that was trained, got {asked}.")


def _estimate(arm: ArmSummary, view: str, metric: str) -> Estimate:
    if view and view not in _VIEWS:
        raise PartError(f"expected a view of {', '.join(_VIEWS)}, got {view!r}.")
    known = getattr(arm, view or "metrics")
    if metric in known:
        found: Estimate = known[metric]
        return found
    own = [name for name in ArmSummary.model_fields if isinstance(getattr(arm, name), Estimate)]
    if not view and metric in own:
        field: Estimate = getattr(arm, metric)
        return field
    raise PartError(f"expected a quantity of {', '.join([*known, *([] if view else own)])}, got {metric!r}.")
