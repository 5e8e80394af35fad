"""Which rules are asked, and in which order what they found is said."""

from dataclasses import replace

import pytest

from mednorm.errors import ConfigError
from mednorm.examine.findings import Evidence, Finding, Rule
from mednorm.examine.order import chosen, find, ordered
from mednorm.examine.records import Gap, Probed
from mednorm.examine.rules import RULES
from tests.examination_fixture import examination


def rule(code, name="", *, symptom=False):
    return Rule(code, name or code.lower(), "", lambda probed: (), symptom)


THREE = (rule("MN001", "gap", symptom=True), rule("MN002", "lag"), rule("MN003", "small-batch"))
PROBED = examination().probed
NAMES = [layer.name for layer in PROBED.layers]


def finding(code, layer, severity="error", **changed):
    return replace(Finding(code, severity, layer, "", (), ""), **changed)


def said(findings, gap=None, rules=THREE):
    return [(each.code, each.layer) for each in ordered(findings, replace(PROBED, gap=gap), rules)]


def test_rules_are_chosen_by_code_or_name_in_whatever_case():
    assert [each.code for each in chosen(THREE, "mn003,lag")] == ["MN002", "MN003"]
    assert [each.code for each in chosen(THREE, ["small-batch"])] == ["MN003"]
    assert [each.code for each in chosen(THREE, ignore=["MN001", "lag"])] == ["MN003"]


@pytest.mark.parametrize(("text", "hint"), [("MN03", "MN003"), ("2", "MN002"), ("smal-batch", "small-batch")])
def test_a_rule_that_does_not_exist_is_named_with_its_nearest(text, hint):
    with pytest.raises(ConfigError, match=f"select: .* got '{text}'. Did you mean '{hint}'?"):
        chosen(THREE, text)


def test_a_word_like_no_rule_lists_them():
    with pytest.raises(ConfigError, match=r"ignore: .* got 'x'\. Known are MN001, MN002, MN003\."):
        chosen(THREE, ignore="x")


def test_empty_words_do_not_count():
    assert [each.code for each in chosen(THREE, " MN001 , ")] == ["MN001"]
    assert [each.code for each in chosen(THREE, ["", "MN001", "lag"], ignore=",gap,,")] == ["MN002"]


@pytest.mark.parametrize("what", ["select", "ignore"])
@pytest.mark.parametrize(("wanted", "got"), [(3, "3"), (["MN001", 3], r"\['MN001', 3\]"), ("", "''"), (" ,", "' ,'")])
def test_what_holds_no_words_or_others_is_refused(what, wanted, got):
    with pytest.raises(ConfigError, match=rf"{what}: expected codes or names of rules, such as .*, got {got}\."):
        chosen(THREE, **{what: wanted})


def test_a_list_of_rules_to_ignore_may_be_empty():
    assert chosen(THREE, ignore=[]) == tuple(THREE)


def test_to_ignore_all_that_is_selected_is_a_mistake():
    with pytest.raises(ConfigError, match="at least one rule to be left"):
        chosen(THREE, "MN002", "lag")


def test_every_rule_is_found_by_its_code_and_by_its_name():
    assert all(find(RULES, each.code) is each and find(RULES, each.name) is each for each in RULES)
    assert [each.code for each in RULES] == sorted({each.code for each in RULES})


def test_errors_come_before_warnings_and_these_before_what_is_merely_useless():
    found = [finding("MN003", "", "info"), finding("MN003", "", "warning"), finding("MN003", "", "error")]
    assert [each.severity for each in ordered(found, PROBED, THREE)] == ["error", "warning", "info"]


def test_a_cause_comes_before_its_symptom_of_the_same_severity_only():
    assert said([finding("MN001", ""), finding("MN003", NAMES[0])]) == [("MN003", NAMES[0]), ("MN001", "")]
    found = [finding("MN003", NAMES[0], "warning"), finding("MN001", "")]
    assert said(found) == [("MN001", ""), ("MN003", NAMES[0])]


def test_the_cause_whose_layers_explain_more_of_the_gap_comes_first():
    found = [finding("MN002", NAMES[0]), finding("MN003", NAMES[1])]
    assert said(found, Gap(1, 1.0, None, {NAMES[0]: 0.1, NAMES[1]: 0.8}))[0] == ("MN003", NAMES[1])
    assert said(found, Gap(1, 1.0, None, {NAMES[0]: 0.8, NAMES[1]: 0.1}))[0] == ("MN002", NAMES[0])


def test_shares_that_hardly_differ_leave_the_order_to_the_code():
    found = [finding("MN003", NAMES[1]), finding("MN002", NAMES[0])]
    assert said(found, Gap(1, 1.0, None, {NAMES[0]: 0.41, NAMES[1]: 0.44}))[0] == ("MN002", NAMES[0])


def test_many_layers_that_explain_a_little_each_do_not_outweigh_one_that_explains_much():
    found = [finding("MN003", NAMES[0]), *(finding("MN002", name) for name in NAMES[1:])]
    assert said(found, Gap(1, 1.0, None, dict.fromkeys(NAMES, 0.3) | {NAMES[0]: 0.5}))[0] == ("MN003", NAMES[0])


def test_within_a_rule_the_worst_layer_comes_first_then_the_place_decides():
    def noise(value, threshold=0.4):
        return (Evidence("noise", value, threshold),)

    found = [
        finding("MN003", NAMES[2], evidence=noise(0.5)),
        finding("MN003", NAMES[0], evidence=noise(0.5)),
        finding("MN003", NAMES[1], evidence=noise(0.9)),
    ]
    assert [layer for _, layer in said(found)] == [NAMES[1], NAMES[0], NAMES[2]]


def test_what_is_about_the_whole_network_comes_before_the_layers_that_share_in_it():
    found = [finding("MN001", NAMES[0], share=0.9), finding("MN001", "")]
    assert said(found) == [("MN001", ""), ("MN001", NAMES[0])]


def test_a_number_below_its_threshold_counts_as_how_far_below():
    low = [
        finding("MN002", NAMES[0], evidence=(Evidence("updates", 40, 50),)),
        finding("MN002", NAMES[1], evidence=(Evidence("updates", 2, 50),)),
        finding("MN002", NAMES[2], evidence=(Evidence("updates", 0, 50),)),
    ]
    assert [layer for _, layer in said(low)] == [NAMES[2], NAMES[1], NAMES[0]]


def test_nothing_found_and_nothing_probed_is_an_empty_order():
    assert ordered((), Probed("Net", (), 0, 1, 1, {}, None), THREE) == ()
