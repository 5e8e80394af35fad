"""What bars are: over seeds where there are several, else over patients or images, else none."""

from mednorm.report.measures import main_measure
from tests.report_fixture import make_results


def _shown(results):
    measure = main_measure(results, results.summary)
    return measure.bars, measure.quantity(results.summary[1])


def test_several_seeds_show_their_own_interval():
    results = make_results(more=True)
    assert _shown(results) == (
        "bars are 95 % Student t intervals over seeds",
        results.summary[1].metrics["test_dice"],
    )


def test_one_seed_shows_the_interval_over_patients():
    results = make_results(more=True, seeds=[0])
    said, given = _shown(results)
    assert said == "one seed each, so bars are 95 % bootstrap intervals over patients"
    assert given == results.summary[1].over_units["test_dice"]


def test_one_seed_without_patients_shows_none():
    results = make_results(seeds=[0])
    assert _shown(results) == ("one seed each, so there are no intervals", results.summary[1].metrics["test_dice"])


def test_an_arm_whose_resamples_were_undefined_still_shows_its_mean():
    results = make_results(more=True, seeds=[0])
    lost = results.summary[1].over_units["test_dice"].model_copy(update={"low": None, "high": None})
    arm = results.summary[1].model_copy(update={"over_units": {"test_dice": lost}})
    assert main_measure(results, results.summary).quantity(arm) == arm.metrics["test_dice"]
