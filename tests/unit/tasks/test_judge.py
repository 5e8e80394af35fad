from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score, roc_auc_score

from mednorm.errors import DataError
from mednorm.tasks.judge import ClassificationJudge, SegmentationJudge, SegmentationLoss, classification_loss


def dice(predicted, truth, value):
    a, b = predicted == value, truth == value
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def rows(patients, spacings=None, sites=None):
    names = tuple(f"scan {number}" for number in range(len(patients)))
    return SimpleNamespace(
        names=names, patients=tuple(patients), sites=tuple(sites or [None] * len(names)), spacings=spacings
    )


def surface(mask, spacing):
    """Points of a mask that touch what is not the mask, or the edge of the image."""
    return np.argwhere(mask & ~binary_erosion(mask)) * np.array(spacing)


def hausdorff(predicted, truth, spacing):
    """The larger of the 95 % quantiles of both directions, from all pairs of surface points."""
    pairs = cdist(surface(predicted, spacing), surface(truth, spacing))
    return max(np.quantile(pairs.min(1), 0.95), np.quantile(pairs.min(0), 0.95))


CLASSIFICATION = ["auc", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "calibration_error"]


def logits_of(prediction, classes):
    return torch.nn.functional.one_hot(prediction, classes).movedim(-1, 1).float() * 4


def test_the_metrics_of_two_classes_are_those_of_scikit_learn():
    logits, labels = torch.randn(40, 2), torch.arange(40) % 2
    judge = ClassificationJudge(("normal", "pneumonia"))
    for part in (slice(0, 7), slice(7, 40)):
        judge.update(logits[part], labels[part])
    probability = logits.softmax(1).numpy()
    said = probability.argmax(1)
    expected = {
        "auc": roc_auc_score(labels, probability[:, 1]),
        "accuracy": accuracy_score(labels, said),
        "balanced_accuracy": balanced_accuracy_score(labels, said),
        "sensitivity": recall_score(labels, said),
        "specificity": recall_score(labels, said, pos_label=0),
    }
    scores = judge.compute()
    assert list(scores) == CLASSIFICATION
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_auc_of_three_classes_is_one_against_rest_averaged_over_classes():
    logits, labels = torch.randn(60, 3), torch.arange(60) % 3
    judge = ClassificationJudge(("a", "b", "c"))
    judge.update(logits, labels)
    expected = roc_auc_score(labels, logits.softmax(1), multi_class="ovr", average="macro")
    assert judge.compute()["auc"] == pytest.approx(expected, abs=1e-6)


def test_confident_logits_keep_their_order_for_the_auc():
    """Probabilities of 1 − 1e-5 and 1 − 1e-6 differ in float32 only in the last digits, and must not tie."""
    logits = torch.tensor([[0.0, 9.0], [0.0, 11.0], [0.0, 10.0], [0.0, 8.0]])
    judge = ClassificationJudge(("normal", "pneumonia"))
    judge.update(logits, torch.tensor([0, 1, 1, 0]))
    assert judge.compute()["auc"] == 1.0


def test_logits_whose_float32_probabilities_are_both_one_keep_their_order():
    logits = torch.tensor([[0.0, 20.0], [0.0, 22.0], [0.0, 21.0], [0.0, 19.0]])
    assert (logits.softmax(1)[:, 1] == 1).all()
    judge = ClassificationJudge(("normal", "pneumonia"))
    judge.update(logits, torch.tensor([0, 1, 1, 0]))
    assert judge.compute()["auc"] == 1.0


def test_auc_is_not_defined_where_the_targets_hold_one_class():
    judge = ClassificationJudge(("normal", "pneumonia"))
    judge.update(torch.tensor([[2.0, 1.0], [1.0, 2.0], [3.0, 0.0]]), torch.zeros(3, dtype=torch.long))
    scores = judge.compute()
    gone = {name for name, value in scores.items() if value is None}
    assert gone == {"auc", "balanced_accuracy", "sensitivity"}
    assert (scores["accuracy"], scores["specificity"]) == pytest.approx((2 / 3, 2 / 3))


def test_no_images_give_no_metrics():
    assert ClassificationJudge(("normal", "pneumonia")).compute() == dict.fromkeys(CLASSIFICATION)
    assert SegmentationJudge(("background", "grey", "white")).compute() == dict.fromkeys(
        ["dice", "dice_grey", "dice_white"]
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_network_whose_outputs_are_no_numbers_has_no_metrics(bad):
    """argmax of NaN is class 0, which once gave a diverged network an accuracy and an AUC of 0.5."""
    classify, segment = ClassificationJudge(("normal", "pneumonia")), SegmentationJudge(("background", "ventricle"))
    logits = torch.randn(4, 2)
    logits[2, 1] = bad
    classify.update(logits, torch.tensor([0, 1, 0, 1]))
    classify.update(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))
    assert classify.compute() == dict.fromkeys(CLASSIFICATION)
    segment.update(torch.full((1, 2, 4, 4), bad), torch.ones(1, 4, 4, dtype=torch.long))
    assert segment.compute() == {"dice": None}


def test_reset_forgets_every_batch_and_what_was_wrong_in_it():
    judge = ClassificationJudge(("normal", "pneumonia"))
    judge.update(torch.full((2, 2), float("nan")), torch.tensor([0, 1]))
    judge.reset()
    judge.update(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    assert (judge.compute()["auc"], judge.compute()["accuracy"]) == (1.0, 1.0)
    segment = SegmentationJudge(("background", "ventricle"))
    truth = torch.tensor([[[0, 1], [1, 1]]])
    segment.update(torch.full((1, 2, 2, 2), float("nan")), truth)
    segment.reset()
    segment.update(logits_of(truth, 2), truth)
    assert segment.compute() == {"dice": 1.0}


def test_dice_is_the_mean_over_the_images_that_hold_the_class():
    truth = np.zeros((3, 6, 6), dtype=np.int64)
    truth[0, :3], truth[0, 4:, :2] = 1, 2
    truth[1, 1:4, 1:4] = 1  # no class 2 in truth, some in the prediction: left out
    truth[2, 3:, 2:] = 2  # no class 1 at all
    predicted = np.zeros_like(truth)
    predicted[0, :2], predicted[0, 3:, :2] = 1, 2
    predicted[1, 2:5, 1:5], predicted[1, 0, 0] = 1, 2
    predicted[2, 2:, 3:] = 2
    grey = np.mean([dice(predicted[i], truth[i], 1) for i in (0, 1)])
    white = np.mean([dice(predicted[i], truth[i], 2) for i in (0, 2)])
    judge = SegmentationJudge(("background", "grey", "white"))
    for part in (slice(0, 1), slice(1, 3)):
        judge.update(logits_of(torch.from_numpy(predicted[part]), 3), torch.from_numpy(truth[part]))
    expected = {"dice": (grey + white) / 2, "dice_grey": grey, "dice_white": white}
    assert judge.compute() == pytest.approx(expected, abs=1e-6)


def test_a_class_in_no_truth_has_no_dice_and_stays_out_of_the_mean():
    truth = torch.tensor([[[0, 1], [1, 0]]])
    judge = SegmentationJudge(("background", "grey", "white"))
    judge.update(logits_of(torch.tensor([[[0, 1], [2, 0]]]), 3), truth)
    assert judge.compute() == {"dice": pytest.approx(2 / 3), "dice_grey": pytest.approx(2 / 3), "dice_white": None}


def test_a_class_that_is_missed_altogether_has_a_dice_of_zero():
    judge = SegmentationJudge(("background", "ventricle"))
    judge.update(logits_of(torch.zeros(1, 4, 4, dtype=torch.long), 2), torch.ones(1, 4, 4, dtype=torch.long))
    assert judge.compute() == {"dice": 0.0}


def test_a_judge_of_patients_averages_the_probabilities_of_their_images():
    """Ann: 0.2 and 0.9 make 0.55, called ill. By image one of three is wrong, by patient none."""
    chance = torch.tensor([0.2, 0.9, 0.3], dtype=torch.float64)
    logits, labels = torch.stack([1 - chance, chance], 1).log(), torch.tensor([1, 1, 0])
    by_image, by_patient = (
        ClassificationJudge(("well", "ill"), rows(["ann", "ann", "bob"]), unit) for unit in ("image", "patient")
    )
    for judge in (by_image, by_patient):
        judge.update(logits, labels)
    assert (by_image.compute()["accuracy"], by_patient.compute()["accuracy"]) == (pytest.approx(2 / 3), 1.0)
    assert by_patient.compute()["calibration_error"] == pytest.approx((0.45 + 0.3) / 2)


def test_a_judge_of_patients_counts_images_where_a_patient_is_unknown():
    logits, labels = torch.tensor([[1.0, 0.0], [0.0, 3.0], [1.0, 0.0]]), torch.tensor([1, 1, 0])
    for who in (None, rows(["ann", "ann", None])):
        judge = ClassificationJudge(("well", "ill"), who, "patient")
        judge.update(logits, labels)
        assert judge.compute()["accuracy"] == pytest.approx(2 / 3)


def test_the_outcomes_carry_the_names_of_the_rows_in_the_order_of_the_images():
    judge = ClassificationJudge(("well", "ill"), rows(["ann", "bob", None], sites=["kyiv", None, "oslo"]))
    judge.update(torch.tensor([[0.0, 1.0]]), torch.tensor([1]))
    judge.update(torch.tensor([[1.0, 1.0]]), torch.tensor([0]))
    outcomes = judge.outcomes()
    assert (outcomes.names, outcomes.patients) == (("scan 0", "scan 1"), ("ann", "bob"))
    assert (outcomes.sites, outcomes.targets.tolist()) == (("kyiv", None), [1, 0])
    assert outcomes.probabilities == pytest.approx(np.array([[1 / (1 + np.e), np.e / (1 + np.e)], [0.5, 0.5]]))


def test_an_output_that_is_no_number_leaves_nan_in_its_own_row_alone():
    judge = ClassificationJudge(("well", "ill"))
    judge.update(torch.tensor([[0.0, 1.0], [float("inf"), 0.0]]), torch.tensor([1, 0]))
    outcomes = judge.outcomes()
    assert np.isnan(outcomes.probabilities).tolist() == [[False, False], [True, True]]
    assert (outcomes.names, outcomes.patients) == (("0", "1"), (None, None))


@pytest.mark.parametrize("judge", [ClassificationJudge, SegmentationJudge])
def test_more_images_than_rows_are_refused(judge):
    judge = judge(("well", "ill"), rows(["ann"]))
    logits = torch.zeros(3, 2) if isinstance(judge, ClassificationJudge) else torch.zeros(3, 2, 4, 4)
    judge.update(logits, torch.zeros(3, *logits.shape[2:], dtype=torch.long))
    with pytest.raises(DataError, match=r"expected the 1 images that rows names, got 3"):
        judge.compute()


def test_the_dice_of_a_patient_is_that_of_all_the_patients_voxels():
    truth = torch.zeros(3, 4, 4, dtype=torch.long)
    truth[0, :2], truth[1, 0, 0], truth[2, 3] = 1, 1, 1
    predicted = torch.zeros_like(truth)
    predicted[0, :2], predicted[2, 3, :2] = 1, 1
    judge = SegmentationJudge(("background", "tumour"), rows(["ann", "ann", "bob"]), "patient")
    judge.update(logits_of(predicted, 2), truth)
    assert judge.compute()["dice"] == pytest.approx((2 * 8 / (2 * 8 + 1) + 2 * 2 / (2 * 2 + 2)) / 2)
    assert judge.outcomes().metrics("image")["dice"] == pytest.approx((1 + 0 + 2 / 3) / 3)


@pytest.mark.parametrize(
    ("size", "spacing"), [((14, 11), None), ((14, 11), (2.5, 0.5)), ((9, 8, 7), None), ((9, 8, 7), (0.6, 1.0, 4.0))]
)
def test_the_hausdorff_distance_is_that_of_all_pairs_of_surface_points(size, spacing):
    random = np.random.default_rng(3)
    truth, predicted = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
    truth[1:6, 2:7], predicted[2:8, 1:5] = 1, 1
    truth[7:, 3:], predicted[6:, 4:] = 2, 2
    predicted[random.random(size) < 0.05] = 2
    judge = SegmentationJudge(("background", "grey", "white"), rows(["ann"], (spacing,)), distances=True)
    judge.update(logits_of(torch.from_numpy(predicted[None]), 3), torch.from_numpy(truth[None]))
    steps = spacing or (1,) * len(size)
    grey, white = (hausdorff(predicted == k, truth == k, steps) for k in (1, 2))
    scores = judge.compute()
    expected = {"hd95": (grey + white) / 2, "hd95_grey": grey, "hd95_white": white}
    assert {name: scores[name] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_each_image_of_a_batch_is_measured_in_its_own_spacing():
    truth, predicted = torch.zeros(3, 8, 8, dtype=torch.long), torch.zeros(3, 8, 8, dtype=torch.long)
    truth[:, 1, 1], predicted[:, 4, 1] = 1, 1  # three steps apart along the first axis
    judge = SegmentationJudge(
        ("background", "dot"), rows(["a", "b", "c"], ((2.0, 9.0), None, (0.5, 9.0))), distances=True
    )
    judge.update(logits_of(predicted[:1], 2), truth[:1])
    judge.update(logits_of(predicted[1:], 2), truth[1:])
    assert judge.outcomes().distances.tolist() == [[6.0], [3.0], [1.5]]
    assert judge.compute()["hd95"] == pytest.approx(3.5)


def test_a_missed_class_is_as_far_as_can_be_and_an_absent_one_has_no_distance():
    truth = torch.zeros(2, 4, 5, dtype=torch.long)
    truth[0, 1, 1] = 1
    predicted = torch.zeros_like(truth)
    predicted[1, 2, 2] = 1  # where the truth has none
    judge = SegmentationJudge(("background", "dot"), rows(["a", "b"], ((2.0, 3.0), None)), distances=True)
    judge.update(logits_of(predicted, 2), truth)
    assert judge.outcomes().distances.ravel() == pytest.approx([np.hypot(3 * 2, 4 * 3), np.nan], nan_ok=True)
    assert judge.compute() == {"dice": 0.0, "hd95": pytest.approx(np.hypot(6, 12))}


def test_reset_forgets_distances_and_starts_again_with_the_first_row():
    truth = torch.zeros(1, 4, 4, dtype=torch.long)
    truth[0, 1, 1] = 1
    judge = SegmentationJudge(("background", "dot"), rows(["a"], ((2.0, 2.0),)), distances=True)
    assert judge.compute() == {"dice": None, "hd95": None}
    for _ in range(2):
        judge.update(logits_of(truth.roll(1, 1), 2), truth)
        assert judge.compute() == {"dice": 0.0, "hd95": 2.0}
        judge.reset()


def test_the_classification_loss_is_cross_entropy():
    logits, labels = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 0])
    expected = -np.mean(
        [np.log(np.exp(row)[k] / np.exp(row).sum()) for row, k in zip(logits.numpy(), labels, strict=True)]
    )
    assert classification_loss()(logits, labels).item() == pytest.approx(expected)


def test_the_segmentation_loss_is_soft_dice_plus_cross_entropy():
    logits, truth = torch.randn(2, 3, 5, 4, dtype=torch.float64), torch.randint(0, 3, (2, 5, 4))
    probability = torch.softmax(logits, 1).numpy()
    one_hot = np.eye(3)[truth.numpy()].transpose(0, 3, 1, 2)
    overlap, total = (probability * one_hot).sum((2, 3)), (probability + one_hot).sum((2, 3))
    soft = np.mean(1 - (2 * overlap + 1e-5) / (total + 1e-5))
    cross = -np.mean(np.log((probability * one_hot).sum(1)))
    assert SegmentationLoss()(logits, truth).item() == pytest.approx(soft + cross, rel=1e-6)
