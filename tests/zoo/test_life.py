"""What happens to a compiled network afterwards: copied, saved, loaded, shared between threads."""

from __future__ import annotations

import copy
import io
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import fxq
from tests.zoo.networks import TARGETS, Network, compiled, in_group, noise, run

NETWORK = Network("regnet_y_400mf", 40.0, size=64)

pytestmark = [
    pytest.mark.zoo,
    pytest.mark.parametrize("network", in_group([NETWORK]), indirect=True, scope="module"),
    pytest.mark.parametrize("target", TARGETS),
]


def test_deepcopy(network: Network, target: str) -> None:
    gm = compiled(network, "int8", target)
    (x,) = noise(1, 3, network.size, seed=5)
    wanted = run(gm, x)
    twin = copy.deepcopy(gm)
    assert torch.equal(run(twin, x), wanted)
    with torch.no_grad():
        for value in (*twin.parameters(), *twin.buffers()):
            value.zero_()
    assert torch.equal(run(gm, x), wanted)


def test_save_and_load(network: Network, target: str) -> None:
    gm = compiled(network, "int8", target)
    (x,) = noise(1, 3, network.size, seed=5)
    file = io.BytesIO()
    torch.save(gm, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(run(loaded, x), run(gm, x))
    assert str(fxq.report(loaded)) == str(fxq.report(gm))


def test_threads_share_one_module(network: Network, target: str) -> None:
    gm = copy.deepcopy(compiled(network, "int8", target))  # a copy has yet to pack its weights: all threads find it so
    images = noise(8, 1, network.size, seed=5)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda x: run(gm, x), images))
    alone = [run(compiled(network, "int8", target), x) for x in images]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
