"""The look of each norm, the same in every chart: a colour (Okabe and Ito's, colour-blind safe), a marker, a dash."""

from __future__ import annotations

from dataclasses import dataclass

from mednorm.results import Results

# Vermilion is last of the strong ones because the page marks "worse" with it; yellow is left out: it vanishes on white.
_FIXED = {
    "none": ("#8A8A8A", "circle-open", "dot"),
    "batch": ("#0072B2", "circle", "solid"),
    "group": ("#E69F00", "square", "dash"),
    "instance": ("#009E73", "diamond", "dashdot"),
}
_OTHERS = (
    ("#CC79A7", "triangle-up", "longdash"),
    ("#56B4E9", "cross", "longdashdot"),
    ("#D55E00", "triangle-down", "dot"),
    ("#CC79A7", "x", "dashdot"),
    ("#56B4E9", "pentagon", "dash"),
    ("#D55E00", "star-diamond", "solid"),
)
CLASS_COLOURS = ("#E69F00", "#56B4E9", "#CC79A7", "#009E73", "#F0E442", "#D55E00", "#0072B2")

_DASHES = {
    "solid": "",
    "dash": "7 4",
    "dot": "2 3",
    "dashdot": "7 3 2 3",
    "longdash": "11 4",
    "longdashdot": "11 3 2 3",
}
# Outlines in a box from -5 to 5, as plotly draws its markers.
_OUTLINES = {
    "circle": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0Z",
    "square": "M-4.5-4.5h9v9h-9Z",
    "diamond": "M0-6L6 0 0 6-6 0Z",
    "triangle-up": "M0-5.5L5.5 4.5h-11Z",
    "triangle-down": "M0 5.5L5.5-4.5h-11Z",
    "cross": "M-5.5-2h3.5v-3.5h4v3.5h3.5v4h-3.5v3.5h-4v-3.5h-3.5Z",
    "x": "M-5-2.5L-2.5-5 0-2.5 2.5-5 5-2.5 2.5 0 5 2.5 2.5 5 0 2.5-2.5 5-5 2.5-2.5 0Z",
    "pentagon": "M0-5.5L5.3-1.7 3.3 4.6h-6.6L-5.3-1.7Z",
    "star-diamond": "M0-6.5L2.5-2.5 6.5 0 2.5 2.5 0 6.5-2.5 2.5-6.5 0-2.5-2.5Z",
}


@dataclass(frozen=True)
class Style:
    """How one norm is drawn."""

    colour: str
    symbol: str
    dash: str

    @property
    def filled(self) -> bool:
        """Whether the marker is filled."""
        return not self.symbol.endswith("-open")

    @property
    def outline(self) -> str:
        """The marker as an SVG path, for the legend beside the charts."""
        return _OUTLINES[self.symbol.removesuffix("-open")]

    @property
    def dasharray(self) -> str:
        """The dash as SVG says it."""
        return _DASHES[self.dash]

    def band(self, opacity: float = 0.16) -> str:
        """The colour, seen through, for the band between the lowest and the highest seed."""
        red, green, blue = (int(self.colour[i : i + 2], 16) for i in (1, 3, 5))
        return f"rgba({red},{green},{blue},{opacity})"


def styles(norms: list[str]) -> dict[str, Style]:
    """Give each norm its look: four are fixed, others take the next free one in the order given."""
    others = [norm for norm in norms if norm not in _FIXED]
    free = {norm: _OTHERS[i % len(_OTHERS)] for i, norm in enumerate(others)}
    return {norm: Style(*(_FIXED.get(norm) or free[norm])) for norm in norms}


def looks(results: Results) -> dict[str, Style]:
    """Give each norm of a study its look, in the study's order."""
    return styles(list(dict.fromkeys([*results.study.norms, *(arm.norm for arm in results.summary)])))
