"""The shape of the house, read from its syntax trees: imports go downward, and `import mednorm` is cheap."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mednorm

ROOT = Path(mednorm.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# A part imports those with a smaller number, and its own. Parts with the same number may import one another one way.
RANKS = {
    "_version": 0,
    "errors": 0,
    "allocator": 1,
    "files": 1,
    "memory": 1,
    "reference": 1,
    "results": 1,
    "keras": 2,
    "report": 2,
    "moments": 2,
    "kernels": 3,
    "functional": 4,
    "layers": 5,
    "lean": 6,
    "guards": 5,
    "monai": 7,
    "surgery": 7,
    "population": 7,
    "examine": 8,
    "advise": 8,
    "export": 8,
    "lightning": 8,
    "monitor": 8,
    "data": 9,
    "tasks": 9,
    "training": 9,
    "study": 10,
    "bench": 10,
    "cli": 12,
    "__main__": 13,
}
# These stand apart: they may import these alone, however low the others are.
ONLY = {
    "files": {"errors"},
    "reference": set(),
    "results": {"errors"},
    "report": {"errors", "files", "results", "_version"},
    "keras": {"errors", "reference"},
}
WITHOUT_TORCH = ("errors", "files", "reference", "results", "report", "keras")


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in FILES}


def part_of(module: str) -> str:
    """The first name below mednorm; the package itself is its front door, with no rank."""
    return module.split(".")[1] if "." in module else ""


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def lazy_names() -> dict[str, str]:
    """Where each name that mednorm itself offers comes from."""
    tree = tree_of(ROOT / "__init__.py")
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    ours = [(node.module, alias.name) for node in found for alias in node.names if node.module.startswith("mednorm.")]
    return {name: module for module, name in ours}


def imported_modules(file: Path) -> Iterator[str]:
    """Every absolute module name that a file imports, wherever in it, names resolved to the modules they come from."""
    tree = tree_of(file)
    package = module_name(file) if file.name == "__init__.py" else module_name(file).rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                if f"{base}.{alias.name}" in MODULES:
                    yield f"{base}.{alias.name}"
                elif base == "mednorm":
                    yield lazy_names().get(alias.name, base)
                else:
                    yield base


def imported_parts(file: Path) -> set[str]:
    """The other parts of mednorm that a file imports."""
    ours = {part_of(name) for name in imported_modules(file) if name.split(".")[0] == "mednorm"}
    return ours - {part_of(module_name(file)), ""}


def run_python(code: str) -> list[str]:
    """Run code in a fresh interpreter; return the words it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


EVERY_FILE = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))


def test_every_part_has_its_place_in_the_order():
    parts = {part_of(module) for module in MODULES} - {""}
    assert parts - set(RANKS) - set(ONLY) == set()


@EVERY_FILE
def test_imports_go_downward(file):
    part = part_of(module_name(file))
    if part in ONLY:
        assert imported_parts(file) <= ONLY[part]
    elif part:
        too_high = {other for other in imported_parts(file) if RANKS.get(other, 99) > RANKS[part]}
        assert too_high == set()


def test_no_two_parts_import_each_other():
    graph: dict[str, set[str]] = {}
    for file in FILES:
        graph.setdefault(part_of(module_name(file)), set()).update(imported_parts(file))
    graph.pop("")
    order = list(TopologicalSorter(graph).static_order())
    assert set(order) >= set(graph)


def test_nothing_imports_the_command_line():
    importing = {module_name(file) for file in FILES if "cli" in imported_parts(file)}
    assert importing <= {"mednorm.__main__"}


@EVERY_FILE
def test_no_relative_import_leaves_the_reader_guessing(file):
    tree = tree_of(file)
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level] == []


@pytest.mark.parametrize("part", [part for part in WITHOUT_TORCH if any(part_of(m) == part for m in MODULES)])
def test_what_reads_results_names_no_framework(part):
    frameworks = {"torch", "monai", "lightning", "torchmetrics", "tensorflow", "jax"}
    for name, file in MODULES.items():
        if part_of(name) == part:
            assert {module.split(".")[0] for module in imported_modules(file)} & frameworks == set()


def test_the_page_is_written_without_importing_torch():
    assert run_python("import sys, mednorm.report; print('torch' in sys.modules, 'monai' in sys.modules)") == [
        "False",
        "False",
    ]


@EVERY_FILE
def test_no_file_is_longer_than_400_lines(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 400


@EVERY_FILE
def test_no_exception_is_swallowed_unnamed(file):
    handlers = [node for node in ast.walk(tree_of(file)) if isinstance(node, ast.ExceptHandler)]
    bare = [node.lineno for node in handlers if node.type is None]
    broad = {"Exception", "BaseException"}
    silent = [
        node.lineno
        for node in handlers
        if any(isinstance(name, ast.Name) and name.id in broad for name in ast.walk(node.type or ast.Pass()))
        and all(isinstance(step, ast.Pass | ast.Continue) for step in node.body)
    ]
    assert (bare, silent) == ([], [])


def test_importing_mednorm_imports_no_framework_until_a_layer_is_asked_for():
    heavy = "['torch', 'monai', 'lightning', 'typer', 'plotly', 'pydantic', 'numpy']"
    code = f"""
import sys
import mednorm
print(*[name for name in {heavy} if name in sys.modules], sep=',', end=' . ')
mednorm.BatchNorm
print(*[name for name in {heavy} if name in sys.modules and name != 'numpy'], sep=',')
"""
    assert run_python(code) == [".", "torch"]


@pytest.mark.parametrize("name", mednorm.__all__)
def test_every_public_name_resolves_and_is_documented(name):
    value = getattr(mednorm, name)
    if name == "__version__":
        assert [part.isdigit() for part in value.split(".")[:2]] == [True, True]
    else:
        assert inspect.getdoc(value)
        assert value.__module__.startswith(lazy_names()[name])


def test_the_names_offered_are_those_a_type_checker_sees():
    assert set(lazy_names()) == set(mednorm.__all__)
    assert dir(mednorm) == sorted(mednorm.__all__)


def test_a_name_that_does_not_exist_is_named_in_the_error():
    with pytest.raises(AttributeError, match="module 'mednorm' has no attribute 'BatchNorn'"):
        mednorm.BatchNorn  # noqa: B018


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"mednorm._version"}))  # one line, read by the build
def test_every_module_says_what_it_is_for(name):
    assert ast.get_docstring(tree_of(MODULES[name]))


def test_the_lazy_names_lead_to_the_same_objects_as_their_modules():
    for name, home in lazy_names().items():
        # The package that is called like a function, `examine`, is not that function and calls it.
        assert inspect.unwrap(getattr(mednorm, name)) is inspect.unwrap(getattr(importlib.import_module(home), name))
