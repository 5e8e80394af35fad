"""Fill the rendered parts of README and docs from real output and committed results.

A *part* fills the lines between `<!-- render: NAME -->` and `<!-- end -->`:

| name | what it shows |
| --- | --- |
| `quickstart` | examples/quickstart.py and what it prints |
| `example NAME`, `snippet NAME` | examples/NAME.py, docs/snippets/NAME.py, and what it prints |
| `tasks`, `presets`, `networks` | what the package knows, as tables |
| `benchmark keras`, `benchmark lean`, `benchmark advise` | benchmarks/results/keras.json, lean.json, advise.json |
| `benchmark layers` | what `mednorm bench layers` wrote to benchmarks/results/layers.json; so family, steps, statistics, inference, startup, allocators |
| `speed en` | the same in short, layers and steps |
| `clinic` | benchmarks/results/clinic.json |
| `rules index`, `rules broken`, `rules healthy` | the rules of an examination; benchmarks/results/broken.json |
| `function FILE NAME` | a function of a program |
| `fine_tuning en` | benchmarks/results/fine_tuning.json |
| `FILE table en` | every arm of docs/results/FILE.json |
| `FILE facts en` | how the figures were made |
| `FILE claims en`, `FILE claims en GROUP …` | every quantity that a claim of the article is measured by; GROUP is speed, overfitting, gradients, sizes or regularizers |
| `FILE sizes en` | batch and group normalization at each batch size, in both modes of evaluation |
| `FILE sites en` | every norm at each hospital |
| `FILE family en` | every norm at each batch size, and its difference to batch normalization |
| `FILE sentences`, `FILE headlines`, `FILE cautions` | the study's own sentences: all; of quality and whatever it could distinguish; what its numbers cannot carry |

`zh` stands for `en` in Chinese pages. A *figure* stands inside a sentence, between `<!-- f: KEY -->` and `<!-- /f -->` on one
line, and not at the beginning of that line, where Markdown would take the rest of it for HTML. Nothing of it is seen but the figure:

    BN reaches <!-- f: lung-claims test_auc batch b32 -->0.928 [0.909, 0.946]<!-- /f --> on the test images.

| key | figure |
| --- | --- |
| `FILE QUANTITY NORM …` | the quantity of an arm. After the norm any of: a regularizer, `bSIZE`, `tSHARE`, a network; the base unless given |
| `FILE VIEW.QUANTITY NORM …` | the same in a view: over_units, batch_metrics, mode_gap, versus_none, versus_none_over_units |
| `FILE study.PATH`, `FILE environment.PATH`, `FILE runs` | a fact, such as `study.data.images.test`; the number of runs |
| `… mean` | without the interval |
| `… .2` | with two decimals |

Run `make docs` after changing an example or a file under docs/results; `tests/docs` fails when a page says something else than
its source. `--results DIR` looks for results in DIR first (`DIR/FILE.json`, or `DIR/FILE/results.json`), and `--out DIR` writes pages
there instead of in their places: both for trying pages out on results that are not to be committed.
"""  # noqa: E501

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from rendering import benchmarks, claims, clinic, code, family, figures, rules, speed, tables
from rendering.source import RESULTS, ROOT, PartError, Source

_TWINS = (
    "README",
    "docs/faq",
    "docs/concepts/batch-normalization",
    "docs/concepts/conventions",
    "docs/concepts/small-batches",
)
PAGES = (
    *(f"{page}{language}.md" for page in _TWINS for language in ("", ".zh-CN")),
    "docs/how-to/batch-size.md",
    "docs/how-to/keras.md",
    "docs/how-to/memory.md",
    "docs/how-to/own-network.md",
    "docs/how-to/recalibrate.md",
    "docs/how-to/speed.md",
    "docs/how-to/which-layer.md",
    "docs/reference/tasks.md",
    "docs/results/README.md",
    "docs/rules/README.md",
    "docs/tutorials/clinic.md",
)
PART = re.compile(r"(<!-- render: (?P<name>[^>\n]+?) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)
FIGURE = re.compile(
    r"(?P<before>^[\s>*+-]*)?(<!-- f: (?P<key>[^>\n]+?) -->)(?P<body>[^\n]*?)(<!-- /f -->)", re.MULTILINE
)
LANGUAGES = ("en", "zh")

_BY_LANGUAGE: dict[str, Callable[..., str]] = {
    "table": tables.table,
    "facts": tables.facts,
    "claims": claims.claims,
    "sizes": claims.sizes,
    "sites": claims.sites,
    "family": family.family,
}
_WHOLE = {"sentences": tables.sentences, "headlines": tables.headlines, "cautions": tables.cautions}
_PROGRAMS = {"example": "examples", "snippet": "docs/snippets"}
_CODE = {"tasks": code.tasks, "presets": code.presets, "networks": code.networks, "clinic": clinic.clinic}
_RULES = {"index": rules.index, "broken": rules.broken, "healthy": rules.healthy}


def part(source: Source, name: str) -> str:
    """Return the content of a part.

    Raises:
        PartError: no part of that name, or one whose file is missing.

    """
    first, *rest = name.split()
    if name == "quickstart":
        return code.program("examples", name)
    if first in _PROGRAMS and len(rest) == 1:
        return code.program(_PROGRAMS[first], rest[0])
    if name in _CODE:
        return _CODE[name]()
    if first == "rules" and len(rest) == 1 and rest[0] in _RULES:
        return _RULES[rest[0]]()
    if first == "function" and len(rest) == 2:
        return clinic.function(*rest)
    if first == "fine_tuning" and len(rest) == 1 and rest[0] in LANGUAGES:
        return family.fine_tuning(rest[0])
    kind, *more = rest or [""]
    try:
        if first == "speed" and len(rest) == 1 and rest[0] in LANGUAGES:
            return speed.brief(rest[0])
        if first == "benchmark" and len(rest) == 1:
            return benchmarks.benchmark(rest[0])
        if kind in _WHOLE and not more:
            return _WHOLE[kind](source.read(first))
        if kind in _BY_LANGUAGE and more and more[0] in LANGUAGES and (kind == "claims" or len(more) == 1):
            return _BY_LANGUAGE[kind](source.read(first), *more)
    except PartError as error:
        raise PartError(f"part {name!r}: {error}") from None
    raise PartError(f"part {name!r}: there is none of that name; docs/render.py says which there are.")


def rendered(text: str, source: Source | None = None, failed: list[str] | None = None) -> str:
    """Return a page with its parts and figures filled anew.

    Args:
        text: the page.
        source: where results come from; docs/results unless given.
        failed: takes the messages of what could not be rendered and stays as it is; without it the first is raised.

    Raises:
        PartError: a part or figure is unknown, or its file missing.

    """
    source = source or Source(RESULTS)

    def filled(make: Callable[[], str], before: str) -> str:
        try:
            return make()
        except PartError as error:
            if failed is None:
                raise
            failed.append(str(error))
            return before

    def figure(found: re.Match[str]) -> str:
        key = found["key"]
        if found["before"] is not None:
            raise PartError(f"figure {key!r}: expected words before it on its line, got none. Move the line break.")
        return found[2] + filled(lambda: figures.figure(source, key), found["body"]) + found[5]

    text = PART.sub(lambda p: p[1] + filled(lambda: part(source, p["name"]), p["body"]) + p[4], text)
    return FIGURE.sub(figure, text)


def main() -> None:
    """Fill every page; say what is missing, after all that is there was filled."""
    parser = argparse.ArgumentParser(description="Fill the rendered parts of README and docs.")
    parser.add_argument("--results", type=Path, help="look for results here first")
    parser.add_argument("--out", type=Path, help="write the pages below this folder instead")
    asked = parser.parse_args()
    source = Source(*([asked.results] if asked.results else []), RESULTS)
    failed = False
    for page in PAGES:
        missing: list[str] = []
        text = rendered((ROOT / page).read_text(encoding="utf-8"), source, missing)
        path = (asked.out or ROOT) / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        if missing:
            reasons = dict.fromkeys(message.split(": ", 1)[1] for message in missing)
            print(f"{page}: {len(missing)} not rendered:", *reasons, sep="\n  ", file=sys.stderr)
            failed = True
    sys.exit(failed)


if __name__ == "__main__":
    main()
