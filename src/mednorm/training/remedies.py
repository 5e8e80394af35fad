"""What mends a run, as commands: a run has a folder and its data has a path, which a finding alone does not know."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from mednorm.data import Split
from mednorm.examine.examination import Examination
from mednorm.examine.findings import Finding
from mednorm.training.treatment import ADAPTED, TREATED


def with_commands(found: Examination, run: Path, data: str | None, split: Split | str) -> Examination:
    """Return an examination of a run in which what new statistics mend is mended by `mednorm treat`.

    Args:
        found: of the run.
        run: its folder.
        data: that it was examined on; None for its own.
        split: likewise.

    """

    def commanded(finding: Finding) -> Finding:
        if finding.code not in TREATED:
            return finding
        command = ["mednorm", "treat", str(run), *(("--data", data) if data is not None else ())]
        # New statistics of all are those of the training: test images that were in them would judge themselves.
        of = "train" if data is None and finding.code != ADAPTED else split
        command += ["--split", of] if of != "all" else []
        command += ["--fix", finding.code]
        if finding.code == ADAPTED and finding.site is not None:
            command += ["--site", finding.site]
        return replace(finding, remedy=shlex.join(command))

    return replace(found, findings=tuple(map(commanded, found.findings)))
