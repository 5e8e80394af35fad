"""The rules that say why a network's normalization fails, one a file, in the order of their codes."""

from __future__ import annotations

from mednorm.examine.findings import Rule
from mednorm.examine.rules.mn001_gap import RULE as MN001
from mednorm.examine.rules.mn002_lag import RULE as MN002
from mednorm.examine.rules.mn003_small_batch import RULE as MN003
from mednorm.examine.rules.mn004_site_shift import RULE as MN004
from mednorm.examine.rules.mn005_dead_channels import RULE as MN005
from mednorm.examine.rules.mn006_not_finite import RULE as MN006
from mednorm.examine.rules.mn007_dropout_before import RULE as MN007
from mednorm.examine.rules.mn008_useless_bias import RULE as MN008
from mednorm.examine.rules.mn009_weight_decay import RULE as MN009
from mednorm.examine.rules.mn010_updates import RULE as MN010
from mednorm.examine.rules.mn011_freezing import RULE as MN011
from mednorm.examine.rules.mn012_epsilon import RULE as MN012
from mednorm.examine.rules.mn013_unsynchronized import RULE as MN013
from mednorm.examine.rules.mn014_averaged_variance import RULE as MN014

RULES: tuple[Rule, ...] = (
    MN001,
    MN002,
    MN003,
    MN004,
    MN005,
    MN006,
    MN007,
    MN008,
    MN009,
    MN010,
    MN011,
    MN012,
    MN013,
    MN014,
)

__all__ = ["RULES"]
