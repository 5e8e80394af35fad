"""What may differ between networks beside their norm, and which of them a chart may set beside each other."""

from __future__ import annotations

from typing import NamedTuple

from mednorm.report import wording
from mednorm.results import ArmSummary, Results, Run, Study


class Condition(NamedTuple):
    """Everything an arm is made of but its norm."""

    regularizer: str
    batch_size: int
    network: str = ""
    train_share: float = 1.0

    @staticmethod
    def of(given: Run | ArmSummary) -> Condition:
        """Return the condition of a run or of an arm."""
        return Condition(given.regularizer, given.batch_size, given.network, given.train_share)

    def words(self, study: Study) -> list[str]:
        """Name it in words: regularizer and batch size, and what else is not as in the base arm."""
        named = [wording.regularizer(self.regularizer), f"batch size {self.batch_size}"]
        if self.network != base(study).network:
            named.append(self.network)
        if self.train_share != 1:
            named.append(f"{wording.share(self.train_share)} of the training {trained_on(study)}")
        return named


def base(study: Study) -> Condition:
    """Return the condition that norms are compared in, and that every other differs from."""
    return Condition(study.base_regularizer, study.base_batch_size, next(iter(study.networks), ""))


def arms_like_base(results: Results, *free: str) -> list[ArmSummary]:
    """List the arms that are as the base one in everything but their norm and the fields named."""
    wanted = base(results.study)
    kept = {field: getattr(wanted, field) for field in free}
    return [arm for arm in results.summary if Condition.of(arm)._replace(**kept) == wanted]


def several_folds(study: Study) -> bool:
    """Whether each seed was run once in each of several folds."""
    return len(study.folds) > 1


def over(study: Study) -> str:
    """Say over what runs are averaged."""
    return "seeds and folds" if several_folds(study) else "seeds"


def trained_on(study: Study) -> str:
    """Say what a share of the training data counts."""
    return "patients" if study.data.patients else "images"


def seeds_of(results: Results, arm: ArmSummary) -> int:
    """Count the seeds behind an arm: each stands for one run in every fold."""
    return len(arm.runs) // max(1, len(results.study.folds))
