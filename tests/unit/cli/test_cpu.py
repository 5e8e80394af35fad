import subprocess
import sys

CODE = """
from rich.console import Console
from mednorm import kernels
from mednorm.cli.cpu import prepare_cpu
prepare_cpu({device!r}, Console())
print(*kernels.info().compiled)
"""


def test_before_a_run_on_the_cpu_the_allocator_is_tuned_and_the_loops_are_compiled():
    done = subprocess.run([sys.executable, "-c", CODE.format(device="cpu")], capture_output=True, text=True, check=True)
    memory, compiled = done.stdout.splitlines()
    assert memory.startswith("Memory: ")
    assert compiled == "float32"
