"""The accuracy that int8 has to reach at the size that the networks are made for."""

from __future__ import annotations

import pytest

from tests.zoo.networks import Network, compiled, error, in_group

# SQNR of the logits against float, in dB; 33.0 and 45.6 were measured
REQUIRED = [Network("resnet50", 28.0, size=224), Network("mobilenet_v2", 37.0, size=224)]


@pytest.mark.zoo
@pytest.mark.parametrize("network", in_group(REQUIRED), indirect=True)
def test_sqnr_at_full_size(network: Network) -> None:
    assert error(network, compiled(network, "int8")).sqnr_db >= network.floor
