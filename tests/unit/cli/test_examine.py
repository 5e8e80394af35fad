import json

import pytest
import torch
from torch import nn

from mednorm.cli.app import run
from mednorm.examine.rules import RULES

RUN = "batch-none-b16-s1"
OWN = "tests.unit.cli.test_examine"


def untrained():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def loader():
    generator = torch.Generator().manual_seed(0)
    return [{"image": torch.randn(8, 1, 12, 12, generator=generator)} for _ in range(4)]


@pytest.fixture
def folder(study_folder):
    return study_folder / "runs" / RUN


def examined(capsys, *arguments):
    status = run(["examine", *map(str, arguments)])
    return status, capsys.readouterr()


def test_the_json_of_a_run_is_all_that_is_printed_and_says_what_the_run_knows(capsys, folder):
    status, captured = examined(capsys, folder, "--json", "--split", "all")
    found = json.loads(captured.out)
    assert (found["network"], found["images"], found["batch_size"]) == ("article_cnn", 84, 16)
    assert status == (0 if found["ok"] else 1)
    assert found["gap"]["metric_running"] is not None
    assert [layer["kind"] for layer in found["layers"]] == ["BatchNorm"] * len(found["layers"])
    assert found["layers"][0]["around"]["decay"] == 0.0
    assert captured.err == ""


def test_an_error_level_finding_is_exit_status_one_and_the_table_shows_its_remedy(capsys):
    status, captured = examined(capsys, f"{OWN}:untrained", "--data", f"{OWN}:loader")
    assert status == 1
    assert "MN002" in captured.out
    assert "mednorm.recalibrate(model, loader)" in captured.out


def test_the_error_does_not_stand_where_its_rule_is_ignored(capsys):
    status, captured = examined(
        capsys, f"{OWN}:untrained", "--data", f"{OWN}:loader", "--select", "small-batch", "--batch-size", "8"
    )
    assert (status, "MN002" in captured.out) == (0, False)
    status, _ = examined(
        capsys, f"{OWN}:untrained", "--data", f"{OWN}:loader", "--ignore", "MN001,MN002,MN004,MN014", "--limit", "2"
    )
    assert status == 0


def test_the_files_are_written_and_named(capsys, folder, tmp_path):
    status, captured = examined(capsys, folder, "--out", tmp_path / "out", "--html", tmp_path / "page.html")
    found = json.loads((tmp_path / "out" / "examination.json").read_text())
    assert status == (0 if found["ok"] else 1)
    assert (tmp_path / "out" / "examination.html").read_bytes() == (tmp_path / "page.html").read_bytes()
    assert found["diagnosis"] in (tmp_path / "page.html").read_text().replace("&#39;", "'")
    for path in ("out/examination.json", "out/examination.html", "page.html"):
        assert str(tmp_path / path) in captured.out


@pytest.mark.parametrize("option", ["--out", "--html"])
def test_an_earlier_examination_is_replaced_only_when_told_so(capsys, tmp_path, option):
    earlier = tmp_path / ("examination.json" if option == "--out" else "page.html")
    earlier.write_text("earlier")
    where = tmp_path if option == "--out" else earlier
    status, captured = examined(capsys, "no-such-run", option, where)  # said before the run is looked for
    assert (status, captured.out) == (2, "")
    assert captured.err.startswith(f"mednorm: {earlier}: expected no file there, got one.")
    assert captured.err.count("\n") == 1
    assert earlier.read_text() == "earlier"
    own = [f"{OWN}:untrained", "--data", f"{OWN}:loader"]
    assert examined(capsys, *own, option, where, "--overwrite")[0] == 1
    assert "MN002" in earlier.read_text()


def test_the_list_and_the_explanations_name_every_rule(capsys):
    status, captured = examined(capsys, "--list")
    assert status == 0
    assert all(rule.code in captured.out and rule.name in captured.out for rule in RULES)
    for rule in RULES:
        status, captured = examined(capsys, "--explain", rule.name)
        assert status == 0
        assert captured.out.startswith("# ")
        assert rule.code in captured.out.splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--explain", "MN03"], "--explain: expected the code or name of a rule, got 'MN03'. Did you mean 'MN003'?"),
        ([], "RUN|MODEL: expected the folder of a run or package.module:network, got none. See --help."),
        (["x", "--limit", "0"], "--limit: expected at least 1, got 0."),
        (["x", "--task", "lung"], "--task: expected package.module:network with it, got 'x'; a run knows its own."),
        (["no.such:net"], "model no.such:net: expected a module no.such, got none of that name"),
        ([f"{OWN}:untrained"], f"{OWN}:untrained: expected --data package.module:loader"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_two(capsys, arguments, said):
    status, captured = examined(capsys, *arguments)
    assert (status, captured.out) == (2, "")
    assert captured.err.startswith(f"mednorm: {said}")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("option", ["--select", "--ignore"])
def test_no_rule_at_all_is_said_before_anything_is_read(capsys, option):
    status, captured = examined(capsys, "no-such-run", option, ",")
    assert (status, captured.out) == (2, "")
    said = f"mednorm: {option[2:]}: expected codes or names of rules, such as 'MN001,MN003', got ','.\n"
    assert captured.err == said


def test_a_rule_that_does_not_exist_is_said_before_anything_is_read(capsys):
    status, captured = examined(capsys, "no-such-run", "--select", "MN33")
    assert (status, captured.out) == (2, "")
    assert "select: expected the code or name of a rule, got 'MN33'. Known are MN001, MN002" in captured.err
