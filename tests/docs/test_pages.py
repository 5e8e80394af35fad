"""What the pages say is what the files beside them hold, and what they tell a person to do works."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import typer

from mednorm.cli.app import app
from mednorm.results import Results, json_schema, read_results
from mednorm.study.statements import statements
from mednorm.study.summary import summarize, with_target
from tests.unit.study.made import arms_of, run, study_of

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(path for path in ROOT.rglob("*.md") if not {".venv", "demo", "node_modules"} & set(path.parts))


RESULTS = ROOT / "docs" / "results"
TWINS = sorted(path for path in PAGES if path.name.endswith(".zh-CN.md"))
FIGURES = re.compile(r"[+−]?\d+(?:\.\d+)?%?")

# Decimal figures that pages quote, and who measured them. Every other one must be rendered.
LITERATURE = {
    **dict.fromkeys(("23.6", "23.7", "24.8", "27.3", "34.7", "24.1", "24.2", "24.0"), "Wu & He 2018, ImageNet error"),
    **dict.fromkeys(("64.8", "69.7", "76.3", "76.6"), "Yan et al. 2020 (MABN), top-1 accuracy"),
    **dict.fromkeys((".897", ".878", ".845"), "Chen et al. 2020 (ALAMO), mean Dice"),
    **dict.fromkeys(("76.7", "62.2"), "Schneider et al. 2020, corruption error"),
    "4.0": "the licence CC BY 4.0",
}
GUARDED = sorted(
    path
    for path in PAGES
    if path.parent in (ROOT / "docs", ROOT / "docs" / "concepts", ROOT / "docs" / "how-to", RESULTS)
)


def load_render() -> ModuleType:
    spec = importlib.util.spec_from_file_location("render", ROOT / "docs" / "render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def render() -> ModuleType:
    return load_render()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with results of every claim, said by the study's own code of chosen numbers."""
    rng = np.random.default_rng(0)
    runs = []
    arms = [{"norm": norm} for norm in ("none", "batch", "group")]
    arms += [{"norm": norm, "regularizer": name} for name in ("l1", "dropout_before+l2") for norm in ("none", "batch")]
    arms += [{"norm": norm, "size": size} for size in (1, 2) for norm in ("batch", "group")]
    arms += [{"norm": norm, "train_share": 0.3} for norm in ("none", "batch")]
    arms += [{"norm": norm, "network": "deep"} for norm in ("none", "batch")]
    for arm in arms:
        for seed in range(3):
            test = 0.8 + 0.1 * (arm["norm"] == "batch") + 0.01 * rng.random()
            sites = {"A": {"test_auc": test - 0.1}, "B": {"test_auc": test}}
            first = 0.001 + 0.1 * (arm["norm"] == "batch")
            own = {"sites": sites, "initial_gradient_norms": {"first": first, "last": 2 + 0.1 * rng.random()}}
            if arm["norm"] == "batch":
                own["batch_metrics"] = {"test_auc": test + 0.02 * rng.random()}
            train = test + 0.05 * rng.random()
            runs.append(run(seed=seed, test=test, train=train, **{"network": "net"} | arm | own))
    study = study_of(runs)
    runs = [with_target(each, "auc", study.target.value) for each in runs]
    trials = arms_of(runs)
    summary = summarize(trials, "auc")
    results = Results(
        schema_version=1,
        study=study,
        runs=runs,
        summary=summary,
        statements=statements(study, trials, summary, ["test_auc"]),
        environment=read_results(RESULTS / "lung.json").environment,
    )
    folder = tmp_path_factory.mktemp("results")
    (folder / "made").mkdir()
    (folder / "made" / "results.json").write_text(results.model_dump_json(by_alias=True), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def source(render, made):
    from rendering.source import Source

    return Source(made, RESULTS)


def keys(render: ModuleType, text: str) -> list[str]:
    """Names of the parts and figures of a page, whatever their language."""
    parts = [re.sub(r"\b(en|zh)\b", "LANG", part["name"]) for part in render.PART.finditer(text)]
    return sorted(parts + [f"f: {figure['key']}" for figure in render.FIGURE.finditer(text)])


def test_pages_are_those_that_have_parts_or_figures(render):
    texts = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
    having = {page for page, text in texts.items() if "<!-- render:" in text or "<!-- f:" in text}
    assert having == set(render.PAGES)


@pytest.mark.parametrize("page", load_render().PAGES)
def test_every_rendered_part_equals_its_source(render, page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert keys(render, text), f"{page} has no rendered part"
    assert text.count("<!-- render:") + text.count("<!-- f:") == len(keys(render, text)), f"{page}: a part without end"
    failed: list[str] = []
    same = render.rendered(text, failed=failed) == text
    assert not failed, "\n".join([f"{page}:", *failed])
    assert same, f"{page} is out of date: run `make docs`"


def test_a_changed_figure_would_be_noticed(render):
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    figure = re.search(r"\| 0\.\d{3} \[", page)
    assert figure
    changed = page.replace(figure[0], "| 0.001 [", 1)
    assert render.rendered(changed, failed=[]) != changed


def test_a_changed_figure_in_a_sentence_would_be_noticed(render):
    key = "lung test_auc batch mean"
    right = render.rendered(f"BN reached <!-- f: {key} -->?<!-- /f --> here.")
    shown = read_results(RESULTS / "lung.json").summary[1].metrics["test_auc"].mean
    assert right == f"BN reached <!-- f: {key} -->{shown:.3f}<!-- /f --> here."
    assert render.rendered(right.replace(f"{shown:.3f}", "0.999")) == right


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("lung test_auc batch b7", "batch_size 7"),
        ("lung nothing batch", "got 'nothing'"),
        ("lung seen.test_auc batch", "got 'seen'"),
        ("lung test_auc batch soup", "got 'soup'"),
        ("lung study.data.pages", "got 'pages'"),
        ("elsewhere test_auc batch", "docs/results/elsewhere.json is missing"),
    ],
)
def test_a_figure_that_is_not_there_is_named_with_what_is_wrong(render, key, expected):
    with pytest.raises(ValueError, match=re.escape(expected)) as caught:
        render.rendered(f"It is <!-- f: {key} -->1<!-- /f --> here.")
    assert repr(key) in str(caught.value)


def test_a_figure_at_the_beginning_of_a_line_is_refused_as_markdown_would_hide_the_line(render):
    with pytest.raises(ValueError, match="expected words before it"):
        render.rendered("It is\n<!-- f: lung runs -->1<!-- /f --> here.")


@pytest.mark.parametrize("name", ["lung nonsense en", "nonsense", "lung table fr", "lung table en speed", "snippet"])
def test_an_unknown_part_is_an_error_that_names_it(render, name):
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        render.rendered(f"<!-- render: {name} -->\n<!-- end -->")


def test_a_part_whose_file_is_missing_says_which_and_the_others_are_filled(render):
    text = (
        "<!-- render: elsewhere claims en -->\nold\n<!-- end -->\n\nThere were <!-- f: lung runs -->?<!-- /f --> runs."
    )
    with pytest.raises(ValueError, match=r"docs/results/elsewhere\.json is missing"):
        render.rendered(text)
    failed: list[str] = []
    filled = render.rendered(text, failed=failed)
    assert len(failed) == 1
    assert "elsewhere claims en" in failed[0]
    assert filled == text.replace("?", str(len(read_results(RESULTS / "lung.json").runs)))


@pytest.mark.parametrize("name", ["made claims", "made sizes", "made sites", "made table", "made facts", "lung table"])
def test_a_part_has_the_same_figures_in_both_languages(render, source, name):
    english, chinese = (render.part(source, f"{name} {language}") for language in ("en", "zh"))
    assert english != chinese
    body = slice(1, None) if " facts" not in name else slice(None)
    figures = [[re.findall(FIGURES, line) for line in text.splitlines()[body]] for text in (english, chinese)]
    assert figures[0] == figures[1]
    assert sum(map(len, figures[0])) > 5


def test_a_table_of_claims_has_every_quantity_once_and_says_what_the_sentences_say(render, source):
    table = render.part(source, "made claims en")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    measured = [tuple(row[:2]) for row in rows if row[1]]
    assert len(set(measured)) == len(measured) == 2 + 4 + 5 + 6 + 4, measured
    results = source.read("made")
    difference = {tuple(row[:2]): row[2:] for row in rows}
    for label, key in (
        ("Adding l1 to batch normalization", ("test AUC", "BN → BN + L1")),
        ("Batch normalization against dropout before each norm+l2", ("test AUC", "dropout before each norm + L2 → BN")),
        ("Batch normalization against group normalization at batch size 2", ("batch size 2: test AUC", "GN → BN")),
        ("With 30% of the training images, batch norm", ("30% of the training images: test AUC", "none → BN")),
        ("In deep, batch normalization", ("deep: test AUC", "none → BN")),
    ):
        said = next(s for s in results.statements if s.text.startswith(label))
        without, with_, over_seeds, over_units, verdict = difference[key]
        assert f"test AUC {with_} against {without}, difference {over_seeds} over" in said.text
        assert verdict == said.verdict
        assert over_units == "–"
    assert {row[-1] for row in rows} >= {"better", "smaller", "not distinguishable"}


def test_claims_of_one_group_have_its_rows_alone(render, source):
    whole, part = (render.part(source, name).splitlines() for name in ("made claims zh", "made claims zh speed"))
    assert set(part[2:]) < set(whole)
    assert not any("**" in line for line in part)
    with pytest.raises(ValueError, match=r"got 'nonsense'"):
        render.part(source, "made claims zh nonsense")


def test_a_comparison_whose_sentence_is_worded_anew_is_an_error_and_no_missing_row(render, source, made):
    text = (made / "made" / "results.json").read_text(encoding="utf-8")
    (made / "worded.json").write_text(text.replace("Adding l1 to", "Putting l1 to"), encoding="utf-8")
    with pytest.raises(ValueError, match="begins with 'Adding l1 to"):
        render.part(source, "worded claims en")


@pytest.mark.parametrize("page", TWINS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_and_its_chinese_twin_have_the_same_parts_figures_and_commands(render, page):
    chinese = page.read_text(encoding="utf-8")
    english = page.with_name(page.name.replace(".zh-CN", "")).read_text(encoding="utf-8")
    assert keys(render, english) == keys(render, chinese)
    shown = []
    for text in (english, chinese):
        found = {re.sub(r"\b(en|zh)\b", "LANG", part["name"]): part["body"] for part in render.PART.finditer(text)}
        tables = {name: [re.findall(FIGURES, line) for line in body.splitlines()] for name, body in found.items()}
        shown.append((tables, sorted((figure["key"], figure["body"]) for figure in render.FIGURE.finditer(text))))
    assert shown[0] == shown[1]
    commands = [re.findall(r"^mednorm [^#\n]*[^#\s]", text, re.MULTILINE) for text in (english, chinese)]
    assert commands[0] == commands[1]
    assert english.count("\n#") == chinese.count("\n#")


@pytest.mark.parametrize("page", GUARDED, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_decimal_figure_is_typed_that_is_not_literature(render, page):
    text = page.read_text(encoding="utf-8")
    for pattern in (render.PART, render.FIGURE, r"```.*?```", r"`[^`\n]*`", r"\$\$.*?\$\$", r"\]\([^)]*\)"):
        text = re.sub(pattern, " ", text, flags=0 if isinstance(pattern, re.Pattern) else re.DOTALL)
    typed = {figure for figure in re.findall(r"(?<![\w.])\d*\.\d+", text) if figure not in LITERATURE}
    assert not typed, f"{page.name}: {', '.join(sorted(typed))}: render them, or name their source in LITERATURE"


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "results").glob("*.json")), ids=lambda path: path.stem)
def test_committed_results_follow_the_schema(path):
    results = read_results(path)
    assert len(results.study.seeds) >= 3
    assert {run.name for run in results.runs} == {name for arm in results.summary for name in arm.runs}


def test_the_schema_page_is_the_schema():
    assert (ROOT / "docs" / "reference" / "results.schema.json").read_text(encoding="utf-8") == json_schema()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_to_a_file_leads_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_both_readmes_show_the_same_figures_commands_and_links():
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))
    code = re.compile(r"^(?:mednorm|make|pip) [^#\n]*", re.MULTILINE)
    assert [line.strip() for line in code.findall(english)] == [line.strip() for line in code.findall(chinese)]
    rows = re.compile(r"^\| (?:none|batch|group|instance) \| .*$", re.MULTILINE)
    assert rows.findall(english) == rows.findall(chinese) != []
    links = re.compile(r"\]\((docs/[^)]+)\)")
    ours = [link.replace(".zh-CN", "") for link in links.findall(chinese)]
    assert sorted(links.findall(english)) == sorted(ours)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_on_a_page_exists_with_its_options_and_values(page):
    from mednorm.tasks.catalogue import TASKS

    known = typer.main.get_command(app)
    shown = re.findall(r"^(mednorm [^`\n]*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(shown) >= 5 or page.name != "README.md" or page.parent != ROOT
    for line in shown:
        command = known
        words = shlex.split(line, comments=True)[1:]
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        used = {word for word in words if word.startswith("--")}
        assert command is not known, line
        assert used <= options, f"{line}: {used - options}"
        if command.name in ("study", "train") and words and not words[0].startswith("-"):
            assert words[0] in TASKS, line
            preset = words[words.index("--preset") + 1] if "--preset" in words else "default"
            assert preset in TASKS[words[0]].presets, line


def test_every_setting_of_a_study_is_on_its_page():
    from mednorm.study.settings import StudySettings

    page = (ROOT / "docs" / "reference" / "study.md").read_text(encoding="utf-8")
    for key in StudySettings.model_fields.keys() - {"task", "preset"}:
        assert f"`{key}`" in page, key


def test_results_are_json_without_nan():
    for path in (ROOT / "docs" / "results").glob("*.json"):
        json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
