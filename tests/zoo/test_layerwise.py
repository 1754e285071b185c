"""The comparison of layers finds the one that is wrong, and no other."""

from __future__ import annotations

import copy

import pytest
import torch

from fxq.nn.qlayer import QLayer
from tests.zoo.layerwise import layer_errors
from tests.zoo.networks import Network, compiled, in_group

NETWORK = Network("mobilenet_v2", layer_floor=12.0, size=64)

pytestmark = [pytest.mark.zoo, pytest.mark.parametrize("network", in_group([NETWORK]), indirect=True, scope="module")]


@pytest.mark.parametrize("path", ["features.0.0", "features.9.conv.2", "features.18.0"])
def test_a_layer_with_wrong_weights_is_found(network: Network, path: str) -> None:
    x = torch.cat(network.calibration())
    gm = copy.deepcopy(compiled(network, "int8", "reference"))
    right = layer_errors(compiled(network, "float"), gm, x)
    assert min(right.values()) > network.layer_floor
    layer = gm.get_submodule(path)
    assert isinstance(layer, QLayer)
    with torch.no_grad():
        layer.weight.neg_()
    gm = copy.deepcopy(gm)  # packs the weights anew
    wrong = layer_errors(compiled(network, "float"), gm, x)
    (node,) = [n.name for n in gm.graph.nodes if n.target == path]
    assert wrong.pop(node) < 5.0
    assert wrong == {name: sqnr for name, sqnr in right.items() if name != node}
