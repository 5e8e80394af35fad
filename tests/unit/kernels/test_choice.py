"""Which loops run, and that what cannot run is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from mednorm import BatchNorm, kernels
from mednorm.errors import ConfigError
from mednorm.kernels import choice


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own."""
    full = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=full, check=False)


MEASURE = "import torch; from mednorm import kernels; kernels.measure(torch.ones(2, 3, 4)); print(kernels.info())"


def test_the_environment_chooses():
    found = python("from mednorm import kernels; print(kernels.info().kernels)", MEDNORM_KERNELS="aten")
    assert found.stdout.strip() == "aten", found.stderr


def test_a_wrong_name_in_the_environment_is_refused_with_the_name():
    found = python("from mednorm import BatchNorm", MEDNORM_KERNELS="cuda")
    assert "MEDNORM_KERNELS: expected one of numba, triton, aten, got 'cuda'" in found.stderr
    command = python("import sys; from mednorm.cli import main; sys.argv = ['mednorm', 'norms']; main()")
    assert "Traceback" not in command.stderr


def test_a_wrong_name_is_refused_with_the_name():
    with pytest.raises(ConfigError, match="expected one of numba, triton, aten, got 'openmp'"):
        kernels.use("openmp")


def test_loops_that_cannot_run_here_are_refused_with_the_reason():
    reason = kernels.info().cuda
    if reason is None:
        pytest.skip("Triton can run here")
    with pytest.raises(ConfigError, match=reason):
        kernels.use("triton")


def test_a_choice_ends_with_its_block_also_after_an_error():
    before = kernels.info().kernels
    inside = []

    def fail() -> None:
        with kernels.use("aten"):
            inside.append(kernels.info().kernels)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert inside == ["aten"]
    assert kernels.info().kernels == before


def test_info_says_what_runs_where():
    BatchNorm(3)(torch.randn(2, 3, 4))
    info = kernels.info()
    assert info.kernels == "numba"
    assert info.threads == torch.get_num_threads()
    assert "float32" in info.compiled


@pytest.mark.parametrize(
    ("x", "taken"),
    [
        (torch.randn(2, 3, 4), True),
        (torch.randn(2, 3, 4, dtype=torch.float64), True),
        (torch.nn.Parameter(torch.randn(2, 3)), True),
        (torch.randn(2, 3, 4).bfloat16(), False),
        (torch.randn(2, 3, 4, device="meta"), False),
        (torch.randn(0, 3, 4), False),
        (torch.randn(2, 3, 4).as_subclass(type("Marked", (torch.Tensor,), {})), False),
    ],
    ids=["float32", "float64", "parameter", "bfloat16", "meta", "empty", "subclass"],
)
def test_the_compiled_loops_take_plain_memory_alone(x, taken):
    assert choice.on_cpu(x) is taken


@pytest.mark.filterwarnings("ignore:`torch.jit.trace", "ignore::torch.jit.TracerWarning")
def test_evaluation_under_a_transform_or_a_trace_goes_by_pytorchs_operators():
    layer = BatchNorm(3, activation="relu").eval()
    x = torch.randn(5, 2, 3, 4)
    mapped = torch.func.vmap(layer)(x)
    torch.testing.assert_close(mapped, torch.stack([layer(each) for each in x]))
    traced = torch.jit.trace(layer, x[0])
    torch.testing.assert_close(traced(x[1]), layer(x[1]))  # a constant, had the loops not stood aside


@pytest.mark.slow
def test_processes_that_start_at_once_on_an_empty_cache_all_work_and_leave_it_for_the_next(tmp_path):
    command = [sys.executable, "-c", MEASURE]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, env=environment, **pipes) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert "compiled=('float32',)" in out
        assert "Preparing mednorm's loops for float32" in err
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nbc")}
    assert kept
    again = python(MEASURE, NUMBA_CACHE_DIR=str(tmp_path))
    assert str(tmp_path) in again.stdout, again.stderr
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nbc")} == kept


@pytest.mark.slow
def test_without_a_folder_to_write_to_the_loops_are_compiled_all_the_same():
    found = python(MEASURE, NUMBA_CACHE_LOCATOR_CLASSES="UserProvidedCacheLocator", NUMBA_CACHE_DIR="/proc/self/no")
    assert "cache=None" in found.stdout, found.stderr


def test_the_command_that_compiles_says_what_runs():
    found = subprocess.run([sys.executable, "-m", "mednorm.kernels"], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout)["compiled"] == ["float32", "float64"]


@pytest.mark.parametrize(("name", "compiled"), [("numba", ["float32"]), ("aten", [])])
def test_loops_are_prepared_where_they_are_compiled_at_all(name, compiled):
    code = "from mednorm import kernels; kernels.prepare(); print(*kernels.info().compiled)"
    assert python(code, MEDNORM_KERNELS=name).stdout.split() == compiled
