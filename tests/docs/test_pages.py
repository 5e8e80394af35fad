"""What the pages say is what the files beside them hold, and what they tell a person to do works."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
import typer

from mednorm.cli.app import app
from mednorm.results import json_schema, read_results

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(path for path in ROOT.rglob("*.md") if not {".venv", "demo", "node_modules"} & set(path.parts))


@pytest.fixture(scope="module")
def render() -> ModuleType:
    spec = importlib.util.spec_from_file_location("render", ROOT / "docs" / "render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_rendered_part_equals_its_source(render):
    for page in render.PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert render.PART.search(text), f"{page} has no rendered part"
        assert render.rendered(text) == text, f"{page} is out of date: run `make docs`"


def test_a_changed_figure_would_be_noticed(render):
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    figure = re.search(r"\| 0\.\d{3} \[", page)
    assert figure
    changed = page.replace(figure[0], "| 0.001 [", 1)
    assert render.rendered(changed) != changed


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
    rows = re.compile(r"^\| (?:none|batch|group|instance) .*$", re.MULTILINE)
    assert rows.findall(english) == rows.findall(chinese) != []
    links = re.compile(r"\]\((docs/[^)]+)\)")
    assert sorted(links.findall(english)) == sorted(links.findall(chinese))


def test_every_command_in_the_readme_exists_with_its_options():
    known = typer.main.get_command(app)
    shown = re.findall(r"^(mednorm .*)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(shown) >= 5
    for line in shown:
        command = known
        words = shlex.split(line, comments=True)[1:]
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        options = {name for parameter in command.params for name in parameter.opts}
        used = {word for word in words if word.startswith("--")}
        assert command is not known, line
        assert used <= options, f"{line}: {used - options}"


def test_every_setting_of_a_study_is_on_its_page():
    from mednorm.study.settings import StudySettings

    page = (ROOT / "docs" / "reference" / "study.md").read_text(encoding="utf-8")
    for key in StudySettings.model_fields.keys() - {"task", "preset"}:
        assert f"`{key}`" in page, key


def test_results_are_json_without_nan():
    for path in (ROOT / "docs" / "results").glob("*.json"):
        json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
