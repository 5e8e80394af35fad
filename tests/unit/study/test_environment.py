import datetime
import importlib.metadata
import os
import platform
import re

import torch

import mednorm
from mednorm.study.environment import describe_environment, now


def test_the_environment_names_versions_and_machine():
    found = describe_environment("mednorm study", "2026-01-01T00:00:00+00:00", "cpu")
    assert (found.command, found.started, found.device) == ("mednorm study", "2026-01-01T00:00:00+00:00", "cpu")
    assert found.mednorm == mednorm.__version__
    assert (found.python, found.platform) == (platform.python_version(), f"{platform.system()} {platform.machine()}")
    assert (found.cores, found.threads) == (os.cpu_count(), torch.get_num_threads())
    assert {name: importlib.metadata.version(name) for name in found.packages} == found.packages
    assert found.packages["torch"] == torch.__version__
    assert found.processor


def test_the_commit_of_a_checkout_is_named_with_a_plus_where_it_was_changed():
    commit = describe_environment("", "", "cpu").commit
    assert commit is None or re.fullmatch(r"[0-9a-f]{12}\+?", commit)


def test_time_is_in_utc_to_the_second():
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", now())
    told = datetime.datetime.fromisoformat(now())
    assert abs((datetime.datetime.now(datetime.UTC) - told).total_seconds()) < 60
