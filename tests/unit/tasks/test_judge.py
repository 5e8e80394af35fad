import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, roc_auc_score

from mednorm.tasks.judge import ClassificationJudge, SegmentationJudge, SegmentationLoss, classification_loss


def dice(predicted, truth, value):
    a, b = predicted == value, truth == value
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def logits_of(prediction, classes):
    return torch.nn.functional.one_hot(prediction, classes).movedim(-1, 1).float() * 4


def test_auc_and_accuracy_of_two_classes_are_those_of_scikit_learn():
    logits, labels = torch.randn(40, 2), torch.arange(40) % 2
    judge = ClassificationJudge(2)
    for rows in (slice(0, 7), slice(7, 40)):
        judge.update(logits[rows], labels[rows])
    probability = logits.softmax(1).numpy()
    expected = {
        "auc": roc_auc_score(labels, probability[:, 1]),
        "accuracy": accuracy_score(labels, probability.argmax(1)),
    }
    assert judge.compute() == pytest.approx(expected, abs=1e-6)


def test_auc_of_three_classes_is_one_against_rest_averaged_over_classes():
    logits, labels = torch.randn(60, 3), torch.arange(60) % 3
    judge = ClassificationJudge(3)
    judge.update(logits, labels)
    expected = roc_auc_score(labels, logits.softmax(1), multi_class="ovr", average="macro")
    assert judge.compute()["auc"] == pytest.approx(expected, abs=1e-6)


def test_confident_logits_keep_their_order_for_the_auc():
    """Probabilities of 1 − 1e-5 and 1 − 1e-6 differ in float32 only in the last digits, and must not tie."""
    logits = torch.tensor([[0.0, 9.0], [0.0, 11.0], [0.0, 10.0], [0.0, 8.0]])
    judge = ClassificationJudge(2)
    judge.update(logits, torch.tensor([0, 1, 1, 0]))
    assert judge.compute()["auc"] == 1.0


def test_auc_is_not_defined_where_the_targets_hold_one_class():
    judge = ClassificationJudge(2)
    judge.update(torch.tensor([[2.0, 1.0], [1.0, 2.0], [3.0, 0.0]]), torch.zeros(3, dtype=torch.long))
    assert judge.compute() == {"auc": None, "accuracy": pytest.approx(2 / 3)}


def test_no_images_give_no_metrics():
    assert ClassificationJudge(2).compute() == {"auc": None, "accuracy": None}
    assert SegmentationJudge(("background", "grey", "white")).compute() == dict.fromkeys(
        ["dice", "dice_grey", "dice_white"]
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_network_whose_outputs_are_no_numbers_has_no_metrics(bad):
    """argmax of NaN is class 0, which once gave a diverged network an accuracy and an AUC of 0.5."""
    classify, segment = ClassificationJudge(2), SegmentationJudge(("background", "ventricle"))
    logits = torch.randn(4, 2)
    logits[2, 1] = bad
    classify.update(logits, torch.tensor([0, 1, 0, 1]))
    classify.update(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))
    assert classify.compute() == {"auc": None, "accuracy": None}
    segment.update(torch.full((1, 2, 4, 4), bad), torch.ones(1, 4, 4, dtype=torch.long))
    assert segment.compute() == {"dice": None}


def test_reset_forgets_every_batch_and_what_was_wrong_in_it():
    judge = ClassificationJudge(2)
    judge.update(torch.full((2, 2), float("nan")), torch.tensor([0, 1]))
    judge.reset()
    judge.update(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    assert judge.compute() == {"auc": 1.0, "accuracy": 1.0}
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
    for rows in (slice(0, 1), slice(1, 3)):
        judge.update(logits_of(torch.from_numpy(predicted[rows]), 3), torch.from_numpy(truth[rows]))
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
