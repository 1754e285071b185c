"""Ten networks in the native engine, against the modules that define the right answer."""

from __future__ import annotations

import pytest
import torch

from fxq.engine.form import segments
from fxq.engine.library import unavailable_reason
from fxq.ir.metrics import distance
from tests.zoo.networks import Network, compiled, error, in_group, run
from tests.zoo.nodewise import agreements
from tests.zoo.test_int8 import NETWORKS

pytestmark = [
    pytest.mark.zoo,
    pytest.mark.skipif(unavailable_reason() is not None, reason="the engine was not built"),
    pytest.mark.parametrize("network", in_group(NETWORKS), indirect=True, scope="module"),
]


def test_each_operation_is_the_reference_up_to_ties(network: Network) -> None:
    gm = compiled(network, "int8", "reference")
    found = list(agreements(gm, network.unseen(2)))
    assert len(found) > 20
    assert [a for a in found if a.most > 1 or a.share > 1e-3] == []


def test_all_but_a_float_pool_is_one_segment(network: Network) -> None:
    gm = compiled(network, "int8", "native")
    assert len(segments(gm)) == 1
    others = [node.name for node in gm.graph.nodes if node.op.startswith("call_") and node is not segments(gm)[0][0]]
    assert len(others) <= (2 if network.name == "squeezenet1_1" else 0)


def test_the_output_follows_the_float_network(network: Network) -> None:
    assert error(network, compiled(network, "int8", "native")).sqnr_db > network.floor - 1.0


def test_an_image_gives_the_same_bits_in_every_batch_and_with_any_threads(network: Network) -> None:
    gm = compiled(network, "int8", "native")
    x = network.unseen(5)
    alone = torch.cat([run(gm, image[None]) for image in x])
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for size in (1, 3, 5):
                assert torch.equal(run(gm, x[:size]), alone[:size])
    finally:
        torch.set_num_threads(before)


def test_other_sizes_are_those_of_the_reference(network: Network) -> None:
    if network.other_size is None:
        pytest.skip("this network takes one size only")
    x = network.unseen(2, network.other_size)
    found = run(compiled(network, "int8", "native"), x)
    wanted = run(compiled(network, "int8", "reference"), x)
    assert found.shape == wanted.shape
    assert distance(wanted, found).sqnr_db > 0.0 or network.floor < 0.0
