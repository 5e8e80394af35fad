"""What `mednorm.examine` found, seen by rule, by layer and by site."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mednorm.errors import MissingExtraError
from mednorm.examine.document import document, layer_distance
from mednorm.examine.findings import SEVERITIES, Finding, Severity
from mednorm.examine.records import Probed
from mednorm.examine.wording import text
from mednorm.files import write_atomically

if TYPE_CHECKING:
    from rich.console import Console

_INSTALL = 'pip install "mednorm[study]"'


@dataclass(frozen=True)
class SiteView:
    """How far the images of one site are from what the layers expect.

    Attributes:
        images: how many there were.
        distance: of each layer with running statistics, the median over its channels of `population.distance`.
        worst: the layer of the largest; None where no layer has running statistics.
        patients: whose they are; None where none is named.

    """

    images: int
    distance: Mapping[str, float]
    worst: str | None
    patients: int | None = None


@dataclass(frozen=True)
class Examination:
    """What a pass over data shows of a network's normalization, and what the rules say of it.

    Attributes:
        probed: what was measured.
        findings: the diagnosis first.

    Example:
        >>> found = Examination(Probed("UNet", (), 12, 4, 1, {}, None), ())
        >>> found.ok, found.worst
        (True, None)
        >>> print(found)
        UNet has no normalization layer that takes statistics over the batch: there is nothing to examine.

    """

    probed: Probed
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether no finding is an error."""
        return self.worst != "error"

    @property
    def worst(self) -> Severity | None:
        """The gravest severity; None where nothing was found."""
        return worst_of(self.findings)

    def by_code(self) -> dict[str, tuple[Finding, ...]]:
        """Return the findings of each rule that has some, the diagnosis first."""
        codes = dict.fromkeys(finding.code for finding in self.findings)
        return {code: tuple(each for each in self.findings if each.code == code) for code in codes}

    def by_layer(self) -> dict[str, tuple[Finding, ...]]:
        """Return the findings of each layer, also of those without any, in the order of the network."""
        return {
            layer.name: tuple(finding for finding in self.findings if finding.layer == layer.name)
            for layer in self.probed.layers
        }

    def by_site(self) -> dict[str, SiteView]:
        """Return how far each named site is from the running statistics."""
        return {site: self._site(site, images) for site, images in sorted(self.probed.sites.items())}

    def _site(self, site: str, images: int) -> SiteView:
        distances = {
            layer.name: distance
            for layer in self.probed.layers
            if site in layer.sites and (distance := layer_distance(layer, layer.sites[site])) is not None
        }
        worst = max(distances, key=distances.__getitem__, default=None)
        return SiteView(images, distances, worst, self.probed.patients.get(site))

    def show(self, console: Console | None = None) -> None:
        """Print the diagnosis, and a table of the findings with what mends them.

        Raises:
            MissingExtraError: Rich is not installed; `print` needs nothing.

        """
        try:
            from mednorm.examine.show import show
        except ModuleNotFoundError:
            raise MissingExtraError(f"show: needs Rich, which is not installed. Print it, or run: {_INSTALL}") from None
        show(self, console)

    def __str__(self) -> str:
        """The diagnosis, and the findings with what mends them, as plain text."""
        return text(self)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON: docs/reference/examination.md."""
        return document(self)

    def to_json(self, path: Path | str | None = None) -> str:
        """Return all of it as JSON, and write it to a file if one is given.

        Numbers that are NaN or infinite are null, as JSON has no such numbers. A file is there whole or not at all.

        Raises:
            RunError: the file's folder cannot be made.

        """
        written = json.dumps(self.to_dict(), allow_nan=False, separators=(",", ":")) + "\n"
        if path is not None:
            write_atomically(Path(path), written)
        return written

    def save_html(self, path: Path | str) -> Path:
        """Write one page that shows all of it: the layers, their distributions, the sites and the remedies.

        It needs no network and no other file.

        Returns:
            The file written.

        Raises:
            MissingExtraError: Plotly or Jinja is not installed.
            RunError: the file cannot be written there.

        """
        try:
            from mednorm.report.examination import write_examination
        except ModuleNotFoundError:
            raise MissingExtraError(f"save_html: needs Plotly and Jinja. Run: {_INSTALL}") from None
        return write_examination(self.to_dict(), Path(path))


def worst_of(findings: tuple[Finding, ...]) -> Severity | None:
    """Return the gravest severity of some findings; None where there are none."""
    return min((finding.severity for finding in findings), key=SEVERITIES.index, default=None)
