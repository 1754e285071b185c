"""Ten networks, compiled to int8 for both targets."""

from __future__ import annotations

import pytest

from fxq.ir.metrics import distance
from fxq.nn import onednn_available
from tests.targets.agreement import check_agreement
from tests.zoo.networks import (
    ONEDNN,
    TARGETS,
    Network,
    compiled,
    error,
    float_layers,
    in_group,
    noise,
    run,
)

NETWORKS = [
    Network("resnet18", 22.0),
    Network("resnet50", 23.0),
    Network("mobilenet_v2", 42.0),
    Network("mobilenet_v3_large", 34.0),
    Network("efficientnet_b0", 38.0),
    Network("densenet121", 35.0),
    Network("googlenet", 39.0),
    Network("squeezenet1_1", 42.0),
    Network("regnet_y_400mf", 40.0),
    Network("vit_b_16", 24.0, other_size=None),
]

pytestmark = [pytest.mark.zoo, pytest.mark.parametrize("network", in_group(NETWORKS), indirect=True, scope="module")]


@pytest.mark.parametrize("target", TARGETS)
def test_output_follows_the_float_network_at_every_batch_size(network: Network, target: str) -> None:
    gm = compiled(network, "int8", target)
    for batch_size in (1, 3, 8):
        assert error(network, gm, batch_size).sqnr_db > network.floor - (3.0 if batch_size == 1 else 0.0)
    if network.other_size is not None:
        assert error(network, gm, 2, network.other_size).sqnr_db > network.floor - 6.0  # calibrated at another size


@pytest.mark.parametrize("target", TARGETS)
def test_no_convolution_or_linear_layer_stays_in_float(network: Network, target: str) -> None:
    assert not float_layers(compiled(network, "int8", target))


@pytest.mark.parametrize("target", [ONEDNN])
def test_onednn_agrees_with_the_reference_layer_by_layer(network: Network, target: str) -> None:
    found = check_agreement(compiled(network, "int8", target), noise(1, 2, network.size, seed=5)[0])
    assert len(found) > 20
    flipped = sum(d.differing for d in found)
    assert flipped <= 1e-4 * sum(d.elements for d in found)  # and over all layers ten times less


@pytest.mark.skipif(not onednn_available(), reason="no onednn operators here")
def test_both_targets_are_as_near_to_float(network: Network) -> None:
    reference, onednn = compiled(network, "int8", "reference"), compiled(network, "int8", "onednn")
    assert error(network, onednn).sqnr_db == pytest.approx(error(network, reference).sqnr_db, abs=1.0)
    (x,) = noise(1, 8, network.size, seed=4)
    assert distance(run(reference, x), run(onednn, x)).sqnr_db > network.floor
