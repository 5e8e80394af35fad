"""Whatever a loader hands over becomes inputs, labels and sites, or an error that says what came."""

from __future__ import annotations

import re

import pytest
import torch
from monai.data import MetaTensor
from torch import nn

import mednorm
from mednorm.errors import ConfigError, DataError
from mednorm.population.batches import Batches, call, device_of

IMAGES = torch.arange(12.0).view(3, 1, 2, 2)
LABELS = torch.tensor([0, 1, 0])


def only(given, **options):
    (batch,) = Batches([given], **options)
    return batch


@pytest.mark.parametrize("given", [IMAGES, (IMAGES,), [IMAGES, LABELS], {"image": IMAGES, "label": LABELS}])
def test_images_are_found_in_every_form(given):
    batch = only(given)
    assert torch.equal(batch.inputs[0], IMAGES)
    assert batch.size == 3
    assert batch.sites == (None, None, None)


def test_several_keys_are_several_inputs():
    batch = only({"t1": IMAGES, "t2": 2 * IMAGES, "mask": LABELS}, image="t1,t2", label="mask")
    assert torch.equal(batch.inputs[1], 2 * batch.inputs[0])
    assert batch.labels is LABELS


@pytest.mark.parametrize(
    ("sites", "wanted"), [("Lund", ("Lund",) * 3), (["A", None, "B"], ("A", None, "B")), (LABELS, ("0", "1", "0"))]
)
def test_sites_are_texts_one_a_sample(sites, wanted):
    assert only({"image": IMAGES, "site": sites}).sites == wanted


def test_sites_in_the_metadata_of_monais_tensors_are_found_and_the_tensors_are_plain():
    batch = only({"image": MetaTensor(IMAGES, meta={"site": ["A", "B", "A"]})})
    assert batch.sites == ("A", "B", "A")
    assert type(batch.inputs[0]) is torch.Tensor


def test_patients_are_found_as_sites_are_where_they_are_asked_for():
    for given in ({"image": IMAGES, "patient": ["p", None, 3]}, {"image": MetaTensor(IMAGES, meta={"patient": "p"})}):
        assert only(given).patients == ()
    assert only({"image": IMAGES, "patient": ["p", None, 3]}, patient="patient").patients == ("p", None, "3")
    assert only({"image": MetaTensor(IMAGES, meta={"case": "p"})}, patient="case").patients == ("p",) * 3
    assert only((IMAGES, LABELS), patient="patient").patients == (None,) * 3
    with pytest.raises(DataError, match=re.escape("one patient for each of 3 samples, got ['p']")):
        only({"image": IMAGES, "patient": ["p"]}, patient="patient")


def test_a_list_of_samples_is_joined_with_their_metadata():
    samples = [{"image": MetaTensor(each, meta={"site": name})} for each, name in zip(IMAGES, "ABA", strict=True)]
    batch = only(samples)
    assert torch.equal(batch.inputs[0], IMAGES)
    assert batch.sites == ("A", "B", "A")


def test_what_is_prepared_first_may_be_anything():
    assert torch.equal(only("scan", prepare=lambda _: IMAGES).inputs[0], IMAGES)


def test_a_limit_ends_the_reading_and_each_reading_begins_anew():
    batches = Batches([IMAGES, 2 * IMAGES, 3 * IMAGES], limit=2)
    assert [float(batch.inputs[0].max()) for _ in range(2) for batch in batches] == [11, 22, 11, 22]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scan": IMAGES}, "batch 1: expected the images under 'image', got the keys ['scan']"),
        ("scan", "batch 1: expected a tensor, a tuple of images and labels, or a dictionary, got str"),
        ({"image": "scan"}, "batch 1: expected images (N, C, *), got str"),
        (torch.zeros(3), "batch 1: expected images (N, C, *), got (3,)"),
        (IMAGES[:0], "batch 1: expected at least one image, got (0, 1, 2, 2). Leave empty batches out of the loader."),
        ({"image": IMAGES[..., :0], "label": LABELS}, "batch 1: expected at least one image, got (3, 1, 2, 0)"),
        ([], "batch 1: expected at least one image, got an empty list"),
        ({}, "batch 1: expected at least one image, got an empty dict"),
        ({"image": IMAGES, "site": ["A"]}, "one site for each of 3 samples, got ['A']"),
    ],
)
def test_what_has_no_such_form_is_refused(given, message):
    with pytest.raises(DataError, match=re.escape(message)):
        only(given)


def test_an_empty_batch_behind_others_is_refused_by_its_number():
    with pytest.raises(DataError, match=r"batch 3: expected at least one image, got \(0, 1, 2, 2\)"):
        list(Batches([IMAGES, IMAGES[:1], IMAGES[:0]]))


@pytest.mark.parametrize(("loader", "got"), [(None, "NoneType"), (3, "int"), (lambda: [IMAGES], "function")])
def test_what_gives_no_batches_is_no_loader(loader, got):
    with pytest.raises(ConfigError, match=rf"such as a DataLoader or a list, got {got}\."):
        Batches(loader)


def test_what_counts_its_batches_alone_is_a_loader():
    class Counted:
        def __getitem__(self, number):
            return (IMAGES, IMAGES)[number]

    assert [batch.size for batch in Batches(Counted())] == [3, 3]


def test_a_loader_that_can_be_read_once_alone_is_refused():
    with pytest.raises(ConfigError, match="got a generator, which is used up after one pass"):
        Batches(each for each in [IMAGES])


def test_layers_that_ask_are_told_the_sites():
    layer = mednorm.DomainBatchNorm(1, domains=["A", "B"]).eval()
    layer.domain_mean[1] = 100
    layer.domain_batches.fill_(1)
    y = call(nn.Sequential(layer), only({"image": IMAGES, "site": ["A", "B", "A"]}))
    assert (y[1] < -90).all()
    assert (y[::2] > -1).all()
    assert layer.sites is None


def test_a_network_without_tensors_is_on_the_cpu():
    assert device_of(nn.ReLU()) == torch.device("cpu")
