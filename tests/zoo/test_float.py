"""Ten networks in float: what comes out is the model, in fewer operations."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
from torch import nn

import fxq
from fxq.ir.identify import get_module
from fxq.ir.metrics import distance
from tests.zoo.networks import Network, build, compiled, error, in_group, run
from tests.zoo.test_int8 import NETWORKS

# At the size that the networks are made for: on few pixels float32 itself has less than 100 dB in some of them.
FULL_SIZE = [n if n.name == "vit_b_16" else replace(n, size=224) for n in NETWORKS]
FOLDED = [replace(n, size=64) for n in NETWORKS if n.name not in ("vit_b_16", "squeezenet1_1")]  # which have no norms


@pytest.mark.zoo
@pytest.mark.parametrize("network", in_group(FULL_SIZE), indirect=True)
def test_the_output_is_the_networks_up_to_rounding(network: Network) -> None:
    gm = compiled(network, "float")
    assert error(network, gm, 2).sqnr_db > 100.0
    assert len(gm.graph.nodes) < len(fxq.trace(build(network)).graph.nodes)


@pytest.mark.zoo
@pytest.mark.parametrize("network", in_group(FOLDED), indirect=True)
def test_in_double_precision_no_error_is_left_and_no_batch_norm(network: Network) -> None:
    model, x = copy.deepcopy(build(network)).double(), network.unseen(2).double()
    gm = fxq.compile(model, x, recipe="float")
    assert distance(run(model, x), run(gm, x)).sqnr_db > 200.0
    norms = [node.name for node in gm.graph.nodes if isinstance(get_module(gm, node), nn.BatchNorm2d)]
    assert len(norms) == (62 if network.name == "densenet121" else 0)  # DenseNet normalises what it concatenates
