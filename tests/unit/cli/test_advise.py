import json
import sys

import pytest
import torch

from mednorm.cli.app import run
from mednorm.memory import PeakMemory

measured_here = pytest.mark.skipif(
    not sys.platform.startswith("linux") or PeakMemory(torch.device("cpu")).total() is None,
    reason="this system does not tell the peak memory of a process",
)


def advise(data, *options):
    return run(["advise", "lung", "--data", str(data), "--seconds", "0", *options])


@measured_here
def test_json_is_the_advice_and_nothing_else_is_on_stdout(capsys, lung_npz, tmp_path):
    page = tmp_path / "advice.html"
    assert advise(lung_npz, "--memory", "500GB", "--batch-size", "16", "--json", "--html", str(page)) == 0
    written = json.loads(capsys.readouterr().out)
    assert (written["network"], written["limit"], written["batch_size"]) == ("article_cnn", 500 * 10**9, 16)
    assert [each["batch_size"] for each in written["measured"]] == [1, 2, 4, 8]
    assert written["images"] == 48
    assert written["sentence"] in page.read_text(encoding="utf-8")


@measured_here
def test_an_earlier_page_is_replaced_only_when_told_so(capsys, lung_npz, tmp_path):
    page = tmp_path / "advice.html"
    page.write_text("earlier")
    assert run(["advise", "lung", "--data", "no-such-file", "--html", str(page)]) == 2  # said before images are read
    said = f"mednorm: {page}: expected no file there, got one. Choose another name, or --overwrite.\n"
    assert capsys.readouterr().err == said
    assert page.read_text() == "earlier"
    assert advise(lung_npz, "--memory", "500GB", "--norm", "group", "--html", str(page), "--overwrite") == 0
    assert page.read_text(encoding="utf-8").lstrip().startswith("<!DOCTYPE html>")


@measured_here
def test_sixty_columns_are_enough_for_sentence_and_table(capsys, lung_npz, monkeypatch):
    from mednorm.cli import options

    monkeypatch.setattr(options.console, "width", 60)
    assert advise(lung_npz, "--memory", "500GB", "--norm", "group") == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 60
    assert "no layer takes statistics over the batch" in " ".join(shown.split())
    assert "advised" in shown


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--memory", "8 bananas"], "memory: expected an amount such as '8GB', '512MiB' or bytes, got '8 bananas'."),
        (["--memory", "0GB"], "memory: expected an amount above 0, got '0GB'."),
        (["--memory", "1MB"], "memory: expected more than "),
        (["--seconds", "-1"], "--seconds: expected at least 0, got -1."),
        (["--batch-size", "0"], "options: batch_sizes.0: input should be greater than or equal to 1, got 0."),
        (["--norm", "evonorm"], "options: norms.0: input should be 'none', 'batch', 'renorm'"),
        (["--patch-size", "8,8,8"], "options: expected no patch_size, as it trains on whole images, got [8, 8, 8]."),
    ],
)
def test_a_mistake_is_one_line_on_stderr(capsys, lung_npz, options, expected):
    assert advise(lung_npz, *options) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if line.startswith("mednorm: ")]
    assert len(lines) == 1
    assert lines[0].startswith(f"mednorm: {expected}")
    assert "Traceback" not in captured.err
