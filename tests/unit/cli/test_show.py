import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from mednorm.cli.show import show_description, show_judgement, show_metrics, show_results
from mednorm.data import describe, read
from mednorm.training.evaluation import Judgement
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
@pytest.mark.parametrize("options", [{}, {"more": True}], ids=["as before", "all axes"])
def test_no_number_of_the_results_is_cut_at_any_width(width, options):
    results = make_results(**options)
    text = shown(show_results, results, width=width)
    assert "…" not in text
    for arm in results.summary:
        for number in numbers_of(arm.metrics["test_dice"]):
            assert number in text
        if arm.versus_none:
            for number in numbers_of(arm.versus_none["test_dice"], "+"):
                assert number in text


@WIDTHS
@pytest.mark.parametrize("options", [{}, {"more": True}], ids=["as before", "all axes"])
def test_every_arm_is_named_in_full_at_any_width(width, options):
    text = shown(show_results, make_results(**options), width=width)
    rows = [row for row in text.splitlines() if row.startswith("│")]
    more = ("deeper_unet", "12.5%") if options else ()
    for name in ("instance", "renorm", "dropout", "weight_decay", *more):
        assert any(name in row for row in rows)


@WIDTHS
def test_network_and_share_are_named_only_where_they_vary(width):
    plain, wide = (shown(show_results, make_results(more=more), width=width).split("└")[0] for more in (False, True))
    assert ("network" in plain, "share" in plain) == (False, False)
    assert ("network" in wide, "share" in wide) == (True, True)


@pytest.mark.parametrize("width", [60, 160])
def test_a_single_seed_shows_the_interval_over_patients_and_says_so(width):
    results = make_results(more=True, seeds=[0])
    table = shown(show_results, results, width=width).split("└")[0]
    assert "95 % interval over patients, one seed" in re.sub(r"\s+", " ", table.split("┏")[0])
    for number in numbers_of(results.summary[1].over_units["test_dice"]):
        assert number in table
    for number in numbers_of(results.summary[1].versus_none_over_units["test_dice"], "+"):
        assert number in table


def test_several_seeds_show_their_own_interval():
    results = make_results(more=True)
    table = shown(show_results, results, width=160).split("└")[0]
    assert "interval over seeds" in table
    assert f"{results.summary[0].over_units['test_dice'].low:.3f}" not in table.splitlines()[5]


def test_with_folds_seeds_are_counted_and_not_runs():
    text = shown(show_results, make_results(more=True, seeds=[0, 1], folds=3), width=200)
    assert "150 runs in 3 folds" in text
    assert re.search(r"\([0-2]/2\)", text)
    assert "/6)" not in text


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


METRICS = ("auc", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "calibration_error")
HOSPITALS = ("Geneva", "Lausanne University", "[red]Bern[/red]", "Zürich")


def judgement(*, metrics=METRICS, sites=HOSPITALS, batch=True):
    values = {name: 0.5123 + place / 100 for place, name in enumerate(metrics)}
    return Judgement(
        images=222,
        resampled=("patients", 19),
        metrics=values,
        intervals={name: (value - 0.1, value + 0.1) for name, value in values.items()},
        batch_metrics={name: value + 0.2 for name, value in values.items()} if batch else {},
        sites={site: {name: value + place / 7 for name, value in values.items()} for place, site in enumerate(sites)},
    )


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("metrics", [METRICS, ("dice", "hd95"), ("dice", "dice_left_ventricle_of_the_heart")])
def test_a_judgement_fits_and_no_number_or_name_of_it_is_cut(width, metrics):
    judged = judgement(metrics=metrics)
    text = shown(show_judgement, "batch-none-b8-s0, test, 222 images", judged, width=width)
    assert "…" not in text
    for name in metrics:
        low, high = judged.intervals[name]
        for number in (judged.metrics[name], judged.batch_metrics[name]):
            assert f"{number:.4f}" in text
        assert f"[{low:.4f}, {high:.4f}]" in text
        for site in judged.sites.values():
            assert f"{site[name]:.4f}" in text
    for site in HOSPITALS:
        assert site in text
    assert "over 19 patients" in text


@pytest.mark.parametrize(("width", "first"), [(200, "site"), (80, "metric"), (60, "site")])
def test_sites_stand_down_or_across_as_the_terminal_is_wide(width, first):
    by_site = shown(show_judgement, "run", judgement(), width=width).split("By site, running statistics")[1]
    heading = next(row for row in by_site.splitlines() if row.startswith("┃"))
    assert heading.split("┃")[1].strip() == first
    rows = [row for row in by_site.splitlines() if row.startswith("│")]
    assert len(rows) == {200: 4, 80: 6, 60: 24}[width]


def test_each_number_of_a_site_stands_beside_its_metric_in_the_narrowest_form():
    judged = judgement()
    by_site = shown(show_judgement, "run", judged, width=60).split("By site, running statistics")[1]
    rows = [[cell.strip() for cell in row.strip("│").split("│")] for row in by_site.splitlines() if row[:1] == "│"]
    assert [row[0] for row in rows if row[0]] == list(HOSPITALS)
    assert [row[1:] for row in rows] == [
        [name, f"{value:.4f}"] for scores in judged.sites.values() for name, value in scores.items()
    ]


def test_a_network_without_running_statistics_and_data_without_sites_are_shown_shorter():
    text = shown(show_judgement, "run[/b], test", judgement(batch=False, sites=()))
    assert "run[/b], test" in text
    assert "batch" not in text
    assert "By site" not in text


def test_what_is_not_defined_is_said_and_has_no_interval():
    none = {"dice_[red]wall": None}
    judged = replace(judgement(sites=()), metrics=none, intervals=none, batch_metrics=none)
    row = next(row for row in shown(show_judgement, "run", judged).splitlines() if "wall" in row)
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells == ["dice_[red]wall", "not defined", "–", "not defined"]


def test_what_was_not_measured_with_batch_statistics_is_not_called_undefined():
    """Distances between contours are taken in one mode alone."""
    judged = replace(judgement(sites=()), metrics={"hd95": 9.4}, intervals={}, batch_metrics={"dice": 0.7})
    row = next(row for row in shown(show_judgement, "run", judged).splitlines() if "hd95" in row)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["hd95", "9.4000", "–", "–"]


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
