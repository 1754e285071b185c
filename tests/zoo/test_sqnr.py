"""The accuracy that int8 has to reach on networks as torchvision initialises them.

These set-ups are simple to repeat with any tool. ResNet-50's output varies with the image here. MobileNetV2's does not:
its signal dies out under batch norms that have hardly been warmed, so that the number speaks of the classifier alone.
"""

from __future__ import annotations

import pytest

from tests.zoo.networks import TARGETS, Network, compiled, error, in_group

# SQNR of the logits against float in dB; 33 and 46 were measured
REQUIRED = [Network("resnet50", 28.0, size=224, plain=True), Network("mobilenet_v2", 37.0, size=224, plain=True)]


@pytest.mark.zoo
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("network", in_group(REQUIRED), indirect=True)
def test_sqnr_at_full_size(network: Network, target: str) -> None:
    assert error(network, compiled(network, "int8", target)).sqnr_db >= network.floor
