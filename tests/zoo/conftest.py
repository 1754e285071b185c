"""Whole networks need torchvision, which fxq itself does not."""

from __future__ import annotations

import pytest

from benchmarks.torchvision_shim import import_torchvision
from tests.zoo.networks import Network


@pytest.fixture(scope="module")
def network(request: pytest.FixtureRequest) -> Network:
    """The network of a test that is parametrised with ``indirect``; skips the test where torchvision is missing."""
    try:
        import_torchvision()
    except ImportError as missing:
        pytest.skip(str(missing))
    found: Network = request.param
    return found
