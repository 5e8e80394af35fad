"""Why a network's normalization fails: what a pass over data shows of each layer, and the rules that judge it.

The package has the name of the function `mednorm.examine`, and Python binds a package's name to its module as soon as
any of it is imported. So the module itself is made callable, and `mednorm.examine(model, loader)` works in whatever
order things were imported.
"""

import sys
from functools import update_wrapper
from types import ModuleType
from typing import Any

from mednorm.examine.examination import Examination as Examination
from mednorm.examine.examine import examine as examine
from mednorm.examine.findings import Evidence as Evidence
from mednorm.examine.findings import Finding as Finding
from mednorm.examine.findings import Rule as Rule


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Examination:
        return examine(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
# Help and signature are the function's.
update_wrapper(sys.modules[__name__], examine, assigned=("__doc__", "__module__"), updated=())  # type: ignore[arg-type]
