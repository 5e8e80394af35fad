"""What to do about the batch size, decided and said in one sentence."""

from __future__ import annotations

from mednorm.advise.advice import Action, Advice
from mednorm.advise.amount import readable
from mednorm.advise.fit import Measured, MemoryFit
from mednorm.advise.noise import GRAVE, MOST, Noise


def decide(
    *,
    network: str,
    device: str,
    limit: int,
    memory: MemoryFit,
    measured: tuple[Measured, ...],
    noise: Noise,
    smallest_sufficient: int | None,
    largest_that_fits: int,
    lean_largest: int | None = None,
    batch_size: int | None = None,
    images: int = 0,
) -> Advice:
    """Weigh noise against memory.

    A batch that is enough and fits is recommended, the one in use where it is one; otherwise lean activations where
    they make room; then micro-batches, or another layer where the statistics of one micro-batch say too little.

    Args:
        network: name of its class.
        device: that was measured on.
        limit: bytes.
        memory: the fit.
        measured: what it rests on.
        noise: of the layers.
        smallest_sufficient: batch, None where none is.
        largest_that_fits: batch, 0 where not even the smallest does.
        lean_largest: the same with lean activations, None where that was not tried.
        batch_size: that is used now.
        images: that the noise rests on.

    """
    least, largest = smallest_sufficient, largest_that_fits
    action: Action
    micro = 1
    if largest == 0:
        action, size = ("lean", min(lean_largest, least or 1)) if lean_largest else ("smaller", 0)
    elif least is not None and least <= largest:
        action, size = "batch", _between(batch_size, least, largest, bool(noise.layers))
    elif least is not None and lean_largest is not None and lean_largest >= least:
        action, size = "lean", least
    else:
        size = largest
        worst = noise.worst(size) if size in noise.sizes else None
        grave = size == 1 or least is None or (worst is not None and worst[1] >= GRAVE)
        action, micro = ("convert", 1) if grave or least is None else ("accumulate", -(-least // size))
    advice = Advice(
        network=network,
        device=device,
        limit=limit,
        action=action,
        smallest_sufficient=least,
        largest_that_fits=largest,
        recommended=size,
        micro_batches=micro,
        lean_largest=lean_largest,
        batch_size=batch_size,
        images=images,
        memory=memory,
        noise=noise,
        measured=measured,
        sentence="",
    )
    return advice.saying(_sentence(advice))


def _between(now: int | None, least: int, largest: int, judged: bool) -> int:
    """Keep the size in use where it is enough and fits; otherwise take the nearest, without one the smallest."""
    if now is None:
        return least if judged else largest
    return min(max(now, least), largest)


def _sentence(advice: Advice) -> str:
    limit, size, least = readable(advice.limit), advice.recommended, advice.smallest_sufficient
    if advice.action == "smaller":
        first = advice.measured[0]
        step = "one image" if first.batch_size == 1 else f"{first.batch_size} images"
        return (
            f"Take smaller images or patches: a step of {step}, the smallest there is, needs {readable(first.peak)}, "
            f"and {limit} are given."
        )
    if not advice.noise.layers:
        return (
            f"Train with {_batch(size)}: no layer takes statistics over the batch, so noise sets no least size, and up "
            f"to {advice.largest_that_fits} fit in {limit}."
        )
    if advice.action == "batch":
        kept = f"Keep {_batch(size)}" if size == advice.batch_size else f"Train with {_batch(size)}"
        enough = "any size" if least == 1 else f"{least} images"
        return (
            f"{kept}: batch statistics are good enough from {enough} on, and up to {advice.largest_that_fits} images "
            f"fit in {limit}."
        )
    if advice.action == "lean":
        fits = f"at most {advice.largest_that_fits} fit" if advice.largest_that_fits else "no batch fits"
        return (
            f'Train with {_batch(size)} and lean activations, mednorm.convert(model, "batch", lean=True) or --lean: '
            f"as it is, {fits} in {limit}, lean up to {advice.lean_largest} images."
        )
    if advice.action == "accumulate":
        return (
            f"No batch that fits is enough, {advice.largest_that_fits} of {least} images: accumulate "
            f"{advice.micro_batches} micro-batches of {size} with mednorm.accumulate, which gives the running "
            f"statistics of a batch of {advice.micro_batches * size}, while each micro-batch is still normalized by "
            "its own."
        )
    layer = "group" if size == 1 or least is None else "renorm"
    short = f"none up to {MOST} would be" if least is None else f"{least} images would be"
    return (
        f'Take another layer, mednorm.convert(model, to="{layer}"), and {_batch(size)}: no batch that fits in {limit} '
        f"is enough for batch normalization, {short}, and accumulating would still normalize each micro-batch by its "
        "own statistics."
    )


def _batch(size: int) -> str:
    return "batches of one image" if size == 1 else f"batches of {size} images"
