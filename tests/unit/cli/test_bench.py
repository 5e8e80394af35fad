import io
import json

import pytest
from rich.console import Console

from mednorm.bench.timing import over_rounds
from mednorm.cli.app import run
from mednorm.cli.bench import show


def made():
    """A record as `run_bench` returns it, of chosen numbers."""
    rounds = [{"milliseconds": 8.0, "floor": 4.0}, {"milliseconds": 12.0, "floor": 4.0}]
    peers = {
        name: {"name": "torch", "allocator": "default", "peak_memory_mb": peak, **over_rounds(rounds)}
        for name, peak in (("torch", 1024.0), ("a-peer-with-a-long-name+tcmalloc", None))
    }
    case = {
        "part": "layers",
        "name": "2×32×64×64×64",
        "rounds": 2,
        "peers": peers,
        "missing": {"keras-jax": "no [jax]"},
    }
    machine = {"model": "A Processor", "threads": 2}
    return {"cases": [case], "machine": machine, "versions": {"mednorm": "1.0"}}


def shown(width):
    """What a terminal of this width shows of it."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    show(made(), console)
    return console.file.getvalue()


def test_the_table_has_times_floors_and_memory_and_says_who_is_missing():
    text = shown(100)
    assert "layers, 2 rounds" in text
    (row,) = [line for line in text.splitlines() if "  torch" in line]
    assert [cell.strip() for cell in row.split("│")[1:-1]] == ["torch", "10.0", "9.0–11.0", "2.50", "1024"]
    assert "not measured: keras-jax: no [jax]" in text
    assert "A Processor, 2 threads; mednorm 1.0" in text


def test_a_narrow_terminal_gets_no_cut_number():
    text = shown(44)
    assert max(len(line) for line in text.splitlines()) <= 44
    assert "9.0–11.0" not in text
    assert {"10.0", "2.50", "1024"} <= set(text.split())


def test_json_is_what_the_file_has_and_nothing_else_is_on_stdout(capsys, tmp_path):
    out = tmp_path / "start.json"
    arguments = ["bench", "startup", "--smoke", "--rounds", "1", "--out", str(out)]
    assert run([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(out.read_text(encoding="utf-8"))
    assert run(arguments) == 2
    said = capsys.readouterr().err
    assert (
        said == f"mednorm: {out}: expected an unfinished run, got a finished one. Use --overwrite, or another --out.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["layer"], "bench: expected parts of layers, family, steps, statistics, inference, startup, allocators, got"),
        (["--rounds", "0"], "--rounds: expected at least 1, got 0."),
        (["startup", "--leave-out", "keras"], "--leave-out: expected peers of python, import torch"),
    ],
)
def test_a_mistake_is_one_line_on_stderr(capsys, arguments, expected):
    assert run(["bench", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"mednorm: {expected}")
    assert (captured.err.count("\n"), captured.out) == (1, "")
