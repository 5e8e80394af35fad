"""The images of a small lung set, read once."""

import pytest

from tests.studies import prepared_lung


@pytest.fixture(scope="session")
def prepared(lung_npz):
    return prepared_lung(lung_npz)
