"""Lean activations beside checkpointing, scaling, accumulation, several processes and compiling."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from mednorm import BatchNorm, accumulate, lean_activations
from tests.harness import COMPILING
from tests.processes import run_processes
from tests.unit.lean.steps import UNet, after_a_step, assert_same_bits, scan

REENTRANT = pytest.mark.parametrize("reentrant", [False, True], ids=["saved tensors", "reentrant"])


@REENTRANT
@pytest.mark.parametrize("inside", [False, True], ids=["after the block", "in the block"])
def test_checkpointing_within_a_lean_block_has_the_ordinary_bits(reentrant, inside):
    def run(net, x):
        return checkpoint(net, x, use_reentrant=reentrant)

    net, x = UNet(), scan()
    lean, ordinary = (after_a_step(net, x, lean=lean, inside=inside, run=run) for lean in (True, False))
    assert_same_bits(lean, ordinary)


@REENTRANT
def test_a_lean_block_within_checkpointing_has_the_ordinary_bits(reentrant):
    def run(net, x):
        def leanly(x):
            with lean_activations(net):
                return net(x)

        return checkpoint(leanly, x, use_reentrant=reentrant)

    net, x = UNet(), scan()
    assert_same_bits(after_a_step(net, x, lean=False, run=run), after_a_step(net, x, lean=False))


def test_a_scaled_step_of_half_precision_has_the_ordinary_bits():
    start, found = UNet(), []
    for lean in (True, False):
        net = copy.deepcopy(start)
        optimizer, scaler = torch.optim.SGD(net.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=64.0)
        for _ in range(3):
            optimizer.zero_grad()
            with lean_activations(net) if lean else nullcontext(), torch.autocast("cpu", torch.bfloat16):
                loss = net(scan()).float().square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        found.append(net.state_dict())
    assert_same_bits(*found)


def test_micro_batches_move_the_statistics_once():
    start, found = UNet(), []
    for lean in (True, False):
        net = copy.deepcopy(start)
        with accumulate(net), lean_activations(net) if lean else nullcontext():
            for micro in scan(size=8).split(1):
                net(micro).square().mean().backward()
        found.append(dict(net.named_buffers()) | {name: p.grad for name, p in net.named_parameters()})
    assert_same_bits(*found)
    assert found[0]["norm1.num_batches_tracked"] == 1


def work_of_a_process(rank, folder):
    torch.manual_seed(0)
    net = UNet()
    for norm in (net.norm1, net.norm2, net.norm3):
        norm.process_group = "world"
    wrapped, start, found = DistributedDataParallel(net), copy.deepcopy(net.state_dict()), []
    for lean in (True, False):
        wrapped.zero_grad()
        net.load_state_dict(start)
        with lean_activations(wrapped) if lean else nullcontext():
            loss = wrapped(scan()[rank : rank + 1]).square().mean()
        loss.backward()
        found.append({name: p.grad.clone() for name, p in net.named_parameters()} | copy.deepcopy(net.state_dict()))
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.mark.slow
def test_processes_that_share_statistics_have_the_ordinary_bits(tmp_path):
    run_processes(work_of_a_process, 2, tmp_path, str(tmp_path))
    for rank in range(2):
        assert_same_bits(*torch.load(tmp_path / f"{rank}.pt"))


@pytest.mark.slow
@COMPILING
def test_a_compiled_network_runs_within_a_block_and_in_one_graph():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), BatchNorm(4, activation="relu"), nn.Conv2d(4, 1, 1))
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")

    def gradients(lean):
        x = scan().requires_grad_()
        with lean_activations(net) if lean else nullcontext():
            y = compiled(x)
        return dict(enumerate((y.detach(), *torch.autograd.grad(y.square().sum(), (x, *net.parameters())))))

    assert_same_bits(gradients(lean=True), gradients(lean=False))
