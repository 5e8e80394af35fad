"""`mednorm.examine`, from the call to what it returns."""

import copy
import inspect
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import mednorm
from mednorm.errors import ConfigError, DataError
from mednorm.examine.examine import examine
from mednorm.examine.wording import sentence
from tests.harness import bytes_of


def network():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 2),
    )


def batches(count=6, size=8):
    return [{"image": torch.randn(size, 1, 12, 12), "label": torch.arange(size) % 2} for _ in range(count)]


def settled(seed=0):
    """A network whose running statistics are those of its images, and the images."""
    torch.manual_seed(seed)
    model, data = network(), batches()
    with torch.no_grad():
        for _ in range(60):
            for batch in data:
                model(batch["image"])
    return model.eval(), data


@pytest.fixture(scope="module")
def fine():
    return settled()


def test_a_network_whose_statistics_fit_has_no_error(fine):
    model, data = fine
    found = mednorm.examine(model, data)
    assert found.ok, str(found)
    assert (found.probed.images, found.probed.batch_size, len(found.probed.layers)) == (48, 8, 2)


def test_a_network_that_was_never_trained_lags_and_the_gap_is_its_symptom():
    found = mednorm.examine(network().eval(), batches())
    assert found.findings[0].code == "MN002"
    assert not found.ok


def test_the_layer_at_fault_has_the_share_of_the_gap(fine):
    model, data = copy.deepcopy(fine[0]), fine[1]
    model[4].running_mean += 3
    found = mednorm.examine(model, data)
    assert "MN001" in found.by_code()
    shares = found.probed.gap.by_layer
    assert shares["4"] > 0.9 > 0.2 > shares.get("1", 0.0)
    assert next(each for each in found.by_code()["MN001"] if each.layer == "4").share == shares["4"]


def test_layers_are_compared_only_where_the_gap_is_worth_a_finding(fine):
    assert mednorm.examine(*fine).probed.gap.by_layer == {}


def test_only_the_rules_asked_for_speak():
    model, data = network(), batches()
    assert set(mednorm.examine(model, data, select="MN001").by_code()) == {"MN001"}
    assert "MN001" not in mednorm.examine(model, data, ignore=["train-eval-gap"]).by_code()


def test_an_unknown_rule_is_refused_before_anything_is_run():
    def never():
        raise AssertionError

    with pytest.raises(ConfigError, match="got 'MN099'"):
        mednorm.examine(never, [], select="MN099")


def test_the_limit_is_in_batches_and_progress_counts_them(fine):
    done = []
    found = mednorm.examine(*fine, limit=3, progress=done.append)
    assert (found.probed.images, done) == (24, [1, 2, 3])


def test_labels_and_a_metric_give_it_in_both_modes(fine):
    def accuracy(outputs, labels):
        return float((outputs.argmax(1) == labels).double().mean())

    running, batch = mednorm.examine(*fine, metric=accuracy).probed.gap.metric
    assert 0 < running < 1
    assert running == pytest.approx(batch, abs=0.2)


def test_the_training_batch_size_is_the_callers(fine):
    found = mednorm.examine(*fine, batch_size=1, select="MN003")
    assert found.probed.batch_size == 1
    assert set(found.by_layer()) == {"1", "4"}


def test_the_keys_of_a_dictionary_may_have_other_names(fine):
    model, data = fine
    renamed = [{"scan": batch["image"], "hospital": ["A", "B"] * 4, "case": list("ppqqrrpp")} for batch in data]
    found = mednorm.examine(model, renamed, image="scan", site="hospital", patient="case")
    assert dict(found.probed.sites) == {"A": 24, "B": 24}
    assert {site: view.patients for site, view in found.by_site().items()} == {"A": 3, "B": 3}


def test_the_network_is_as_it_was_also_when_the_loader_raises(fine):
    class Raises:
        def __iter__(self):
            yield batches(1)[0]
            raise OSError("the disk is gone")

    model = copy.deepcopy(fine[0]).train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(OSError, match="disk"):
        mednorm.examine(model, Raises())
    mednorm.examine(model, batches())
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("loader", "said"),
    [
        ([], "expected at least one batch, got none"),
        ([torch.zeros(0, 1, 12, 12)], "batch 1: expected at least one image, got (0, 1, 12, 12)"),
        ([*batches(1), torch.zeros(0, 1, 12, 12)], "batch 2: expected at least one image, got (0, 1, 12, 12)"),
    ],
)
def test_a_loader_or_a_batch_without_images_is_said(fine, loader, said):
    with pytest.raises(DataError, match=re.escape(said)):
        mednorm.examine(fine[0], loader)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"model": 3}, "examine: expected a network (torch.nn.Module), got int."),
        ({"loader": None}, "loader: expected what gives batches, such as a DataLoader or a list, got NoneType."),
        ({"metric": "dice"}, "examine: expected metric to be a function of outputs and labels, got 'dice'."),
        ({"batch_size": 0}, "examine: expected batch_size to be at least 1 or None, got 0."),
        ({"devices": -1}, "examine: expected devices to be at least 1 or None, got -1."),
    ],
)
def test_an_argument_that_is_none_of_its_kind_is_said(fine, arguments, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        mednorm.examine(**{"model": fine[0], "loader": fine[1]} | arguments)


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("look", [mednorm.examine, mednorm.recalibrate, mednorm.adapt])
def test_a_network_of_torchscript_is_refused(fine, look):
    scripted = torch.jit.trace(fine[0].eval(), torch.zeros(2, 1, 12, 12))
    with pytest.raises(ConfigError, match=r"of TorchScript\. Pass the network that it was made from\."):
        look(scripted, fine[1])


@pytest.mark.parametrize(
    ("returned", "got"),
    [(None, "None"), ("0.9", "'0.9'"), (torch.ones(2), "a Tensor of shape (2,)"), ({"dice": 0.9}, "{'dice': 0.9}")],
)
def test_a_metric_of_no_single_number_is_said_with_what_it_returned(fine, returned, got):
    before = bytes_of(fine[0])
    with pytest.raises(ConfigError, match=re.escape(f"metric to return one number for a batch, got {got}.")):
        mednorm.examine(*fine, metric=lambda outputs, labels: returned)
    assert bytes_of(fine[0]) == before


def test_a_sentence_that_begins_with_a_greek_letter_keeps_it():
    assert sentence("ε is large") == "ε is large."
    assert sentence("one layer") == "One layer."


@pytest.mark.parametrize("returned", [1, True, np.float32(1), torch.tensor(1.0), torch.tensor([1])])
def test_whatever_is_one_number_is_a_metric(fine, returned):
    assert mednorm.examine(*fine, metric=lambda outputs, labels: returned).probed.gap.metric == (1.0, 1.0)


def test_what_a_metric_raises_itself_is_left_as_it_is(fine):
    with pytest.raises(ZeroDivisionError):
        mednorm.examine(*fine, metric=lambda outputs, labels: 1 / 0)


def test_a_network_without_normalization_says_so():
    found = mednorm.examine(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), batches(1))
    assert found.ok
    assert "nothing to examine" in str(found)


def test_the_package_has_the_signature_and_the_help_of_the_function():
    assert inspect.signature(mednorm.examine) == inspect.signature(examine)
    assert mednorm.examine.__doc__ == examine.__doc__


def test_the_function_and_its_package_go_together_in_whatever_order_they_are_imported():
    code = """
import mednorm
assert callable(mednorm.examine)
import mednorm.examine.records as records
from mednorm.examine import examine, findings
assert callable(mednorm.examine) and callable(examine)
assert mednorm.examine.records is records and mednorm.examine.findings is findings
from mednorm import examine as front
assert front is mednorm.examine and front.__wrapped__ is examine
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
