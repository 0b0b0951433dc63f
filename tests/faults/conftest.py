"""Marks the tests of this folder, and gives them their budget."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.faults)


@pytest.fixture
def budget(request):
    """By how much to multiply the number of examples."""
    return request.config.getoption("--faults-budget")
