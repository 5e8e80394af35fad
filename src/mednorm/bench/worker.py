"""The process of a peer: `python -m mednorm.bench.worker`. Lines of JSON come in, one line of JSON answers each."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from mednorm.bench.cases import MissingPeerError, Subject, build

Answer = dict[str, Any]


class Session:
    """Answers requests; holds the subject that is measured."""

    def __init__(self) -> None:
        self._subject: Subject | None = None

    def answer(self, request: Answer) -> Answer:
        """Do what is asked: `{"do": "prepare" | "round" | "facts" | "about", …}`."""
        do: Callable[[Answer], Answer] = {
            "prepare": self._prepare,
            "round": self._round,
            "facts": self._facts,
            "about": self._about,
        }[request.pop("do")]
        try:
            return do(request)
        except (MissingPeerError, ImportError) as missing:
            return {"missing": _line(missing)}
        except Exception as error:  # said in the results, and the other peers go on
            return {"missing": f"{type(error).__name__}: {_line(error)}"}

    def _prepare(self, request: Answer) -> Answer:
        self._subject = None  # what the last case held is free before this one is built
        self._subject = build(request["part"], request["of"], request["name"])
        return {}

    def _round(self, request: Answer) -> Answer:
        assert self._subject is not None
        return self._subject.round(request["seconds"])

    def _facts(self, request: Answer) -> Answer:
        assert self._subject is not None
        return self._subject.facts(Path(request["shared"]))

    def _about(self, request: Answer) -> Answer:
        import torch

        from mednorm import kernels
        from mednorm.allocator import serving_library

        served_by = Path(serving_library() or "unknown").name
        info = getattr(kernels, "info", None)
        return {
            "threads": torch.get_num_threads(),
            "cuda": torch.cuda.is_available(),
            "served_by": served_by,
            "kernels": str(info() if info else "aten"),
        }


def main() -> None:
    """Answer until the input ends."""
    if os.environ.get("MEDNORM_BENCH_TUNED"):
        from mednorm.allocator import tune_allocator

        tune_allocator()
    if not os.environ.get("KERAS_BACKEND"):  # MONAI would import TensorFlow for its TensorBoard, which takes memory
        sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no answer
    session = Session()
    for line in sys.stdin:
        print(json.dumps(session.answer(json.loads(line))), file=answers, flush=True)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


if __name__ == "__main__":
    main()
