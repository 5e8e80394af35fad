import copy
import weakref
from collections import OrderedDict

import pytest
import torch
from torch import nn

from mednorm.tasks.judge import ClassificationJudge
from mednorm.training.module import TrainingModule
from tests.studies import run_settings

ROWS = torch.arange(10)


def module(**changed):
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 2))
    judges = ClassificationJudge(("a", "b")), ClassificationJudge(("a", "b"))
    return TrainingModule(network, nn.CrossEntropyLoss(), *judges, run_settings(**changed))


def test_without_a_penalty_there_is_none():
    assert module(regularizer="none").penalty() is None
    assert module(regularizer="dropout").penalty() is None


def test_the_l1_penalty_is_the_sum_of_absolute_weights():
    made = module(regularizer="l1", l1=0.3)
    conv, dense = made.network[0].weight.detach().numpy(), made.network[4].weight.detach().numpy()
    assert made.penalty().item() == pytest.approx(0.3 * (abs(conv).sum() + abs(dense).sum()), rel=1e-5)


def test_the_l2_penalty_is_half_the_sum_of_squared_weights():
    made = module(regularizer="l2", l2=0.3)
    conv, dense = made.network[0].weight.detach().numpy(), made.network[4].weight.detach().numpy()
    assert made.penalty().item() == pytest.approx(0.15 * ((conv**2).sum() + (dense**2).sum()), rel=1e-5)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.GroupNorm(2, 4)], ids=["batch", "group"])
def test_a_lean_step_keeps_less_where_there_is_batch_normalization_and_has_the_same_gradients(norm):
    images, labels = torch.randn(6, 1, 4, 4), torch.arange(6) % 2
    gradients, kept = [], []
    for lean in (False, True):
        torch.manual_seed(0)
        made = module(lean=lean)
        made.network[1], made.network[2] = (
            copy.deepcopy(norm),
            nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Flatten()),
        )
        outputs = []
        made.network[2][0].register_forward_hook(lambda *args, outputs=outputs: outputs.append(weakref.ref(args[-1])))
        loss = made.training_step((images, labels, ROWS), 0)["loss"]
        kept.append(outputs[0]() is not None)
        gradients.append(torch.autograd.grad(loss, made.network.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert kept == [True, isinstance(norm, nn.GroupNorm)]


def test_both_penalties_add_up():
    both, one, two = (module(regularizer=name, l1=0.1, l2=0.2) for name in ("l1+l2", "l1", "l2"))
    for other in (one, two):
        other.load_state_dict(both.state_dict())
    assert both.penalty().item() == pytest.approx(one.penalty().item() + two.penalty().item(), rel=1e-6)


def test_the_l2_penalty_pulls_weights_and_neither_biases_nor_norms():
    made = module(regularizer="l2", l2=0.3)
    made.penalty().backward()
    conv, norm, _, _, dense = made.network
    for layer in (conv, dense):
        torch.testing.assert_close(layer.weight.grad, 0.3 * layer.weight.detach())
    assert [p.grad for p in (conv.bias, dense.bias, norm.weight, norm.bias)] == [None] * 4


def test_the_training_loss_includes_the_penalty_and_the_recorded_loss_does_not():
    made = module(regularizer="l2", l2=10.0)
    made.network[3].p = 0.0
    images, labels = torch.randn(6, 1, 4, 4), torch.arange(6) % 2
    total = made.training_step((images, labels, ROWS), 0)["loss"].item()
    assert total == pytest.approx(made.mean("train_loss") + made.mean("penalty"))
    assert made.mean("train_loss") == pytest.approx(nn.functional.cross_entropy(made.network(images), labels).item())


def test_the_mean_loss_weighs_batches_by_their_images():
    made = module().eval()
    images, labels = torch.randn(10, 1, 4, 4), torch.arange(10) % 2
    for rows in (slice(0, 7), slice(7, 10)):
        made.validation_step((images[rows], labels[rows], ROWS[: len(labels[rows])]), 0)
    assert made.mean("val_loss") == pytest.approx(nn.functional.cross_entropy(made.network(images), labels).item())
    assert made.mean("penalty") is None


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_the_optimizer_is_the_one_asked_for_without_a_decay_of_its_own(name, kind):
    optimizer = module(optimizer=name, learning_rate=0.02).configure_optimizers()
    assert type(optimizer) is kind
    assert {(group["lr"], group["weight_decay"]) for group in optimizer.param_groups} == {(0.02, 0)}


def test_patches_are_not_scaled_again():
    """They were scaled with their whole volume; images are scaled by the network."""
    network = nn.Sequential(OrderedDict(scaling=nn.Hardtanh(0, 1), net=nn.Sequential(nn.Flatten(), nn.Linear(16, 2))))
    images, labels = torch.randn(6, 1, 4, 4), torch.arange(6) % 2
    for patch_size, seen in ((None, images.clamp(0, 1)), ([4, 4], images)):
        judges = ClassificationJudge(("a", "b")), ClassificationJudge(("a", "b"))
        made = TrainingModule(network, nn.CrossEntropyLoss(), *judges, run_settings(patch_size=patch_size))
        logits = made.training_step((images, labels, ROWS), 0)["logits"]
        torch.testing.assert_close(logits, network.net(seen).detach())


def test_training_batches_are_judged_when_the_step_is_over_and_not_in_it():
    made = module()
    images, labels = torch.randn(6, 1, 4, 4), torch.arange(6) % 2
    outputs = made.training_step((images, labels, ROWS), 0)
    assert set(made.metrics("train").values()) == {None}
    made.on_train_batch_end(outputs, (images, labels, ROWS), 0)
    right = (outputs["logits"].argmax(1) == labels).double().mean().item()
    assert made.metrics("train")["accuracy"] == pytest.approx(right)
    assert not outputs["logits"].requires_grad
