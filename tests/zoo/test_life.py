"""What happens to a compiled network afterwards: copied, saved, loaded, shared between threads."""

from __future__ import annotations

import copy
import io
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import fx

import fxq
from tests.zoo.networks import TARGETS, Network, build, check_same_state, compiled, in_group, run

pytestmark = [
    pytest.mark.zoo,
    pytest.mark.parametrize("network", in_group([Network("mobilenet_v2", size=64)]), indirect=True, scope="module"),
    pytest.mark.parametrize("target", TARGETS),
]


def other(network: Network, target: str) -> fx.GraphModule:
    """The same network with other scales: calibrated on images of three times the contrast."""
    calibration = [3.0 * batch for batch in network.calibration()]
    return fxq.compile(build(network), calibration=calibration, recipe="int8", target=target)


def test_deepcopy(network: Network, target: str) -> None:
    gm, x = compiled(network, "int8", target), network.unseen(3)
    wanted = run(gm, x)
    twin = copy.deepcopy(gm)
    assert torch.equal(run(twin, x), wanted)
    with torch.no_grad():
        for value in (*twin.parameters(), *twin.buffers()):
            value.zero_()
    assert torch.equal(run(gm, x), wanted)


def test_the_state_dict_holds_all_that_differs(network: Network, target: str) -> None:
    gm, x = compiled(network, "int8", target), network.unseen(3)
    into = other(network, target)
    assert not torch.equal(run(into, x), run(gm, x))
    file = io.BytesIO()
    torch.save(gm.state_dict(), file)
    file.seek(0)
    into.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(run(into, x), run(gm, x))
    check_same_state(gm.state_dict(), into.state_dict())


def test_save_and_load(network: Network, target: str) -> None:
    gm, x = compiled(network, "int8", target), network.unseen(3)
    file = io.BytesIO()
    torch.save(gm, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(run(loaded, x), run(gm, x))
    assert str(fxq.report(loaded)) == str(fxq.report(gm))


def test_threads_share_one_module(network: Network, target: str) -> None:
    gm = copy.deepcopy(compiled(network, "int8", target))  # a copy has yet to pack its weights: all threads find it so
    images = [image[None] for image in network.unseen(16)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda x: run(gm, x), images))
    alone = [run(compiled(network, "int8", target), x) for x in images]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
