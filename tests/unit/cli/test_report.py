import re
import shutil

from mednorm.cli.app import run


def test_the_page_is_made_again_as_it_was(capsys, study_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(study_folder, copy)
    before = (copy / "report.html").read_bytes()
    (copy / "report.html").unlink()
    assert run(["report", str(copy)]) == 0
    assert (copy / "report.html").read_bytes() == before
    assert capsys.readouterr().out == f"Page     {copy / 'report.html'}\n"


def test_the_page_names_every_arm_and_needs_nothing_from_elsewhere(study_folder):
    page = (study_folder / "report.html").read_text(encoding="utf-8")
    for name in ("Batch normalization against none at batch size 16", "dropout"):
        assert name in page
    assert re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=[\"']https?:", page) == []


def test_a_folder_without_results_is_one_line(capsys, tmp_path):
    assert run(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"mednorm: {tmp_path / 'results.json'}: no such file.")


def test_damaged_results_are_one_line_and_no_page_is_written(capsys, tmp_path):
    (tmp_path / "results.json").write_text('{"schema": 1}')
    assert run(["report", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "not results of schema 1: study: Field required" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "report.html").exists()
