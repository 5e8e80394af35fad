import io
import re

import pytest
from rich.console import Console

from mednorm.cli.show import show_description, show_metrics, show_results, show_scores
from mednorm.data import describe, read
from tests.report_fixture import make_results

WIDTHS = pytest.mark.parametrize("width", [60, 80, 100, 120, 160])


def shown(show, *arguments, width=80):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    show(*arguments, console)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= max(width, 300 if show is show_description else 0)
    return text


def numbers_of(estimate, sign=""):
    """The numbers of an interval as the table writes them, with a true minus."""
    known = [value for value in (estimate.mean, estimate.low, estimate.high) if value is not None]
    return [f"{value:{sign}.3f}".replace("-", "−") for value in known]


@WIDTHS
def test_no_number_of_the_results_is_cut_at_any_width(width):
    results = make_results()
    text = shown(show_results, results, width=width)
    assert "…" not in text
    for arm in results.summary:
        for number in numbers_of(arm.metrics["test_dice"]):
            assert number in text
        if arm.versus_none:
            for number in numbers_of(arm.versus_none["test_dice"], "+"):
                assert number in text


@WIDTHS
def test_every_arm_is_named_in_full_at_any_width(width):
    results = make_results()
    text = shown(show_results, results, width=width)
    rows = [row for row in text.splitlines() if row.startswith("│")]
    for name in ("instance", "renorm", "dropout", "weight_decay"):
        assert any(name in row for row in rows)


def test_every_sentence_is_shown_with_its_verdict():
    results = make_results()
    text = re.sub(r"\s+", " ", shown(show_results, results, width=80))
    for statement in results.statements:
        mark = {"better": "+", "worse": "−", "not distinguishable": "≈", "info": "·"}[statement.verdict]
        assert re.sub(r"\s+", " ", f"{mark} {statement.text}")[:60] in text


def test_square_brackets_in_a_sentence_are_text_and_no_markup():
    results = make_results()
    first = results.statements[0].model_copy(update={"text": "Interval [/red] of [bold]site[/bold] [−1, 1]."})
    text = shown(show_results, results.model_copy(update={"statements": [first]}))
    assert "Interval [/red] of [bold]site[/bold] [−1, 1]." in text


def test_a_wide_terminal_adds_cost_and_how_many_seeds_reached_the_target():
    text = shown(show_results, make_results(), width=160)
    assert "ms/step" in text
    assert re.search(r"\([0-3]/3\)", text)


def test_one_seed_is_shown_without_an_interval():
    table = shown(show_results, make_results(seeds=[0])).split("└")[0]
    assert "[" not in table


def test_metrics_of_a_run_stand_by_split_and_what_is_missing_is_said():
    run = make_results("classification").runs[0]
    run = run.model_copy(update={"metrics": {"train_auc": 0.98765, "val_auc": None, "test_auc": 0.9}})
    text = shown(show_metrics, run, width=60)
    row = next(line for line in text.splitlines() if line.startswith("│ auc"))
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["auc", "0.9877", "not defined", "0.9000"]
    assert f"{run.name}: epoch {run.best_epoch} of {len(run.epochs)}" in re.sub(r"\s+", " ", text)


def test_scores_of_hostile_names_are_shown_as_they_are():
    text = shown(show_scores, "run[/b], test", {"dice_[red]wall": 0.5, "dice": None})
    assert "run[/b], test" in text
    assert re.search(r"dice_\[red\]wall │ 0\.5000", text)
    assert re.search(r"dice +│ not defined", text)


def test_no_number_of_a_description_is_cut_in_a_narrow_terminal(lung_npz):
    found = describe(read(lung_npz))
    text = shown(show_description, found, width=60)
    assert "…" not in text
    for intensity in found.intensity.values():
        for number in (intensity.mean[0], intensity.std[0], intensity.minimum[0], intensity.maximum[0]):
            assert f"{number:.4g}" in text


def test_a_description_names_every_site_and_class_in_a_narrow_terminal():
    from mednorm.data import tissue

    text = shown(show_description, describe(tissue(0)), width=60)
    assert "…" not in text
    for name in ("voxels grey matter", "voxels white matter", "site lowfield"):
        assert name in text
