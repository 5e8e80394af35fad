"""One small study, trained once for all the tests that look at what a study leaves behind."""

import gc

import pytest

from mednorm.results import read_results
from tests.studies import write_npz


@pytest.fixture(scope="session")
def _quick_collections():
    """Each run collects garbage before it measures memory, which takes as long as it trains where much is loaded."""
    import mednorm.training.run  # noqa: F401

    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def lung_npz(tmp_path_factory, _quick_collections):
    return write_npz(tmp_path_factory.mktemp("lung") / "tiny.npz")


@pytest.fixture(scope="session")
def study_folder(lung_npz, tmp_path_factory):
    """Two norms, two seeds, with and without dropout, two epochs. Tests read it and change nothing."""
    from mednorm.cli.app import run

    out = tmp_path_factory.mktemp("study") / "out"
    arguments = ["--norms", "none,batch", "--regularizers", "none,dropout", "--seeds", "0,1", "--batch-sizes", "16"]
    assert run(["study", "lung", "--data", str(lung_npz), "--epochs", "2", "--out", str(out), *arguments]) == 0
    return out


@pytest.fixture(scope="session")
def study_results(study_folder):
    return read_results(study_folder / "results.json")
