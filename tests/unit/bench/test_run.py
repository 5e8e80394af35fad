"""Rounds, peers that are missing, and files that are gone on with, by parts that measure next to nothing."""

from __future__ import annotations

import json
import re

import pytest

from mednorm.bench import run as bench_run
from mednorm.bench.cases import PARTS, Case, MissingPeerError, Peer, cases_of
from mednorm.bench.process import Worker, environment
from mednorm.bench.run import Settings, measure, run_bench
from mednorm.errors import ConfigError, RunError

SETTINGS = Settings(parts=("startup",), rounds=2, smoke=True)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """A finished record, and its file."""
    out = tmp_path_factory.mktemp("bench") / "start.json"
    return run_bench(SETTINGS, out), out


def test_every_round_measures_every_peer_relative_to_the_first(record):
    (case,) = record[0]["cases"]
    assert list(case["peers"]) == ["python", "import mednorm"]
    assert case["reference"] == "python"
    python, mednorm = (case["peers"][name] for name in case["peers"])
    assert mednorm["milliseconds"]["low"] > python["milliseconds"]["low"] > 1
    assert mednorm["relative"]["low"] > 1


def test_the_file_has_what_was_returned(record):
    returned, out = record
    assert json.loads(out.read_text(encoding="utf-8")) == returned
    assert returned["cuda"].startswith("unmeasured: ")
    assert set(returned["versions"]) >= {"mednorm", "python", "torch"}


def test_a_finished_file_is_not_measured_again_unless_asked(record, tmp_path):
    out = tmp_path / "start.json"
    out.write_bytes(record[1].read_bytes())
    with pytest.raises(RunError, match="expected an unfinished run, got a finished one"):
        run_bench(SETTINGS, out)
    again = run_bench(SETTINGS, out, overwrite=True)
    assert again["cases"] != record[0]["cases"]


def test_an_unfinished_file_is_gone_on_with_and_its_cases_stay(record, tmp_path):
    out = tmp_path / "start.json"
    kept = record[0]["cases"][0] | {"note": "measured before"}
    out.write_text(json.dumps(record[0] | {"finished": False, "cases": [kept]}), encoding="utf-8")
    after = run_bench(SETTINGS, out)
    assert (after["cases"], after["finished"]) == ([kept], True)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"settings": {"rounds": 99}}, "same settings, got {'rounds': 99}"),
        ({"versions": {"mednorm": "0.0.1"}}, "same versions, got {'mednorm': '0.0.1'}"),
    ],
)
def test_a_file_of_another_run_is_refused_and_left_as_it_is(record, tmp_path, changed, expected):
    out = tmp_path / "start.json"
    text = json.dumps(record[0] | {"finished": False, "cases": []} | changed)
    out.write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match=re.escape(expected)):
        run_bench(SETTINGS, out)
    assert out.read_text(encoding="utf-8") == text


def test_a_file_that_is_no_result_is_refused(tmp_path):
    out = tmp_path / "notes.json"
    out.write_text("[1]", encoding="utf-8")
    with pytest.raises(RunError, match=r"notes\.json: expected results of mednorm bench, got another file"):
        run_bench(SETTINGS, out)


def test_a_peer_that_cannot_be_measured_is_named_and_the_others_go_on(tmp_path):
    case = Case("startup", "start", (Peer("nobody"), Peer("python")))
    with bench_run._Pool(None) as pool:
        found = measure(case, SETTINGS, pool, lambda *_: None)
    assert list(found["peers"]) == ["python"]
    assert found["missing"] == {"nobody": "KeyError: 'nobody'"}
    assert found["reference"] == "python"


def test_a_process_that_ends_is_said_with_its_last_words():
    worker = Worker(Peer("python"))
    try:
        with pytest.raises(MissingPeerError, match=r"its process ended with status 1: KeyError: 'nonsense'"):
            worker.ask("nonsense")
    finally:
        worker.close()


def test_an_allocator_that_is_not_installed_is_the_reason():
    with pytest.raises(MissingPeerError, match="tcmalloc is not installed"):
        environment(Peer("torch", "tcmalloc"), None, {}, None)


def test_what_the_user_preloads_reaches_no_peer():
    own = {"LD_PRELOAD": "libjemalloc.so", "KERAS_BACKEND": "torch", "MALLOC_TRIM_THRESHOLD_": "0", "HOME": "/home/me"}
    assert environment(Peer("torch"), None, own, None) == {"HOME": "/home/me"}
    assert environment(Peer("keras-jax", backend="jax"), 2, own, None)["KERAS_BACKEND"] == "jax"
    assert environment(Peer("torch", "tcmalloc"), None, own, "libtcmalloc.so")["LD_PRELOAD"] == "libtcmalloc.so"
    assert environment(Peer("torch", "tuned"), 2, own, None)["OMP_NUM_THREADS"] == "2"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"parts": ("layer",)}, "expected parts of layers, family, steps, .*, got layer"),
        ({"rounds": 0}, "--rounds: expected at least 1, got 0"),
        ({"seconds": 0.0}, "--seconds: expected more than 0, got 0"),
        ({"threads": 0}, "--threads: expected at least 1, got 0"),
    ],
)
def test_impossible_settings_are_named(settings, expected):
    with pytest.raises(ConfigError, match=expected):
        Settings(**settings)


def test_a_peer_to_leave_out_that_there_is_not_is_named_with_those_there_are():
    with pytest.raises(ConfigError, match="expected peers of python, import mednorm, or an allocator, got keras"):
        run_bench(Settings(parts=("startup",), smoke=True, leave_out=("keras",)))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("smoke", [False, True])
def test_no_two_cases_of_a_part_and_no_two_peers_of_a_case_have_the_same_name(part, smoke):
    cases = cases_of(part, smoke)
    assert len({case.name for case in cases}) == len(cases) > 0
    for case in cases:
        assert len({peer.id for peer in case.peers}) == len(case.peers) > 1
        assert case.of == json.loads(json.dumps(case.of))
