"""One browser for the tests of a file."""

import pytest

from tests.integration.browser import chromium


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started
