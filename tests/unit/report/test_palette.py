"""Colours stay with their norm, whatever else is in the study."""

from mednorm.report.palette import looks, styles
from tests.report_fixture import make_results


def test_the_four_usual_norms_keep_their_colours_in_any_order():
    wanted = {"none": "#8A8A8A", "batch": "#0072B2", "group": "#E69F00", "instance": "#009E73"}
    for order in (list(wanted), list(wanted)[::-1], ["renorm", "ghost", *wanted]):
        assert {norm: look.colour for norm, look in styles(order).items() if norm in wanted} == wanted


def test_colour_is_never_the_only_difference():
    found = styles(["none", "batch", "group", "instance", "renorm", "ghost", "moving", "range", "domain", "frozen"])
    assert len({look.symbol for look in found.values()}) == len(found)
    assert len({(look.colour, look.dash) for look in found.values()}) == len(found)


def test_every_symbol_and_dash_can_be_drawn_in_the_legend():
    for look in styles([str(i) for i in range(8)] + ["none", "batch", "group", "instance"]).values():
        assert look.outline.startswith("M")
        assert look.dasharray == "" or all(part.isdigit() for part in look.dasharray.split())


def test_a_norm_that_only_the_arms_name_gets_a_look_too():
    results = make_results()
    fewer = results.study.model_copy(update={"norms": ["none", "batch"]})
    assert list(looks(results.model_copy(update={"study": fewer}))) == ["none", "batch", "group", "instance", "renorm"]
