"""What the allocator is told, in processes of their own: a process that was tuned stays so."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mednorm.allocator import OWN_SETTINGS, AllocatorReport, decide, serving_library
from mednorm.bench.machine import tcmalloc
from mednorm.errors import ConfigError

LIBC = "/lib/x86_64-linux-gnu/libc.so.6"
SERVED_BY_GLIBC = pytest.mark.skipif(
    not (serving_library() or "").endswith("libc.so.6"), reason="glibc does not serve memory here"
)
# Tensors of 40 MiB and of 1 MiB, made and freed again: pages that the system had to clear, after the heap has grown to
# what this takes. Each thread keeps a few of the small pieces that alignment cuts off, which is over after some times.
PAGES = """
import resource, sys, threading, torch
from mednorm import tune_allocator
if "tuned" in sys.argv:
    assert tune_allocator() == tune_allocator()
torch.set_num_threads(1)

def work():
    for size in (40, 1, 40):
        x = torch.ones(size << 18)
        y = x + 1
        del x, y

def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def measure():
    for _ in range(16):
        work()
    before = pages()
    for _ in range(4):
        work()
    print(pages() - before)

measure()
thread = threading.Thread(target=measure)
thread.start()
thread.join()
"""


def python(code, *arguments, **environment):
    """Run code in a fresh interpreter; return the lines it printed."""
    own = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "MEDNORM_ALLOCATOR")}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=own | environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@SERVED_BY_GLIBC
def test_large_tensors_are_given_memory_that_is_there_in_every_thread():
    default = [int(pages) for pages in python(PAGES)]
    tuned = [int(pages) for pages in python(PAGES, "tuned")]
    assert min(default) > 4 * 4 * (40 << 20) // 4096 // 2  # four times, four tensors of 40 MiB
    assert max(tuned) < min(default) / 50


@SERVED_BY_GLIBC
def test_the_switch_leaves_glibc_as_it_is():
    code = "import mednorm; print(mednorm.tune_allocator().applied)"
    assert python(code) == ["True"]
    assert python(code, MEDNORM_ALLOCATOR="default") == ["False"]


@pytest.mark.skipif(tcmalloc() is None, reason="tcmalloc is not installed")
def test_a_preloaded_tcmalloc_is_found_and_left_alone():
    code = "import mednorm; report = mednorm.tune_allocator(); print(report.applied, report.allocator)"
    assert python(code, LD_PRELOAD=tcmalloc()) == ["False tcmalloc"]


@pytest.mark.parametrize(
    ("library", "allocator"),
    [
        ("/usr/lib/libjemalloc.so.2", "jemalloc"),
        ("/opt/libmimalloc-secure.so.2.1", "mimalloc"),
        ("/usr/lib/libtcmalloc_minimal.so.4", "tcmalloc"),
        ("/lib/ld-musl-x86_64.so.1", "other"),
        ("/usr/lib/system/libsystem_malloc.dylib", "other"),
        (None, "other"),
    ],
)
def test_only_glibc_is_tuned_and_the_reason_names_who_serves(library, allocator):
    report = decide(library, {})
    assert (report.applied, report.allocator) == (False, allocator)
    named = library if library and allocator == "other" else allocator if library else "does not say"
    assert named in str(report)


@pytest.mark.parametrize("library", [LIBC, "/lib64/libc-2.31.so"])
def test_glibc_is_tuned_unless_told_otherwise(library):
    assert decide(library, {"MALLOC_ARENA_MAX": "2", "GLIBC_TUNABLES": "glibc.malloc.check=1"}).applied
    assert decide(library, {"MEDNORM_ALLOCATOR": "tuned"}).applied


@pytest.mark.parametrize(
    ("environment", "named"),
    [({name: "1"}, name) for name in OWN_SETTINGS]
    + [({"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1:glibc.malloc.check=1"}, "glibc.malloc.trim_threshold")],
)
def test_what_the_user_set_is_kept_and_named(environment, named):
    assert decide(LIBC, environment) == AllocatorReport(
        False, "glibc", f"{named} is set: glibc is left as you tuned it."
    )


def test_an_unknown_value_of_the_switch_is_named():
    with pytest.raises(ConfigError, match="expected tuned or default, got 'jemalloc'"):
        decide(LIBC, {"MEDNORM_ALLOCATOR": "jemalloc"})
