"""torchvision's networks with random weights, small enough to compile by the dozen."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

import fxq
from benchmarks import zoo
from benchmarks.torchvision_shim import import_torchvision
from fxq.ir.identify import identify
from fxq.ir.metrics import Distance, distance
from fxq.nn import onednn_available

ONEDNN = pytest.param("onednn", marks=pytest.mark.skipif(not onednn_available(), reason="no onednn operators here"))
TARGETS = ["reference", ONEDNN]

_FUNCTIONS = (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose2d, F.linear)
# seeds of the images: no two sets share one
_WARM_UP, _CALIBRATION, _EXAMPLE, _UNSEEN = 1, 11, 12, 13


@dataclass(frozen=True)
class Network:
    """A network and what is known of it.

    Attributes:
        name: as torchvision calls it.
        floor: the least SQNR of the int8 output against float in dB, on images that calibration has not seen.
        layer_floor: the least SQNR of any int8 layer against the float layer, in dB.
        size: height and width of its images.
        other_size: another size that the float network takes; None where it takes only one.
        int8_throughout: whether no operation between input and classifier computes in float. What computes in int8
            gives the same bits for an image in every batch.
        plain: weights as torchvision initialises them, batch norms warmed at their own momentum on four batches of
            eight white images. Otherwise as in ``benchmarks/zoo.py``, where the output depends on the image.
    """

    name: str
    floor: float = 0.0
    layer_floor: float = 20.0
    size: int = 96
    other_size: int | None = 80
    int8_throughout: bool = True
    plain: bool = False

    def images(self, batches: int, batch_size: int, seed: int, size: int | None = None) -> list[Tensor]:
        """Return batches of images as this network takes them, float32 ``[batch_size, 3, size, size]``."""
        size = size or self.size
        make = noise if self.plain else zoo.images
        return make(batches, batch_size, size, seed=seed)

    def unseen(self, batch_size: int, size: int | None = None) -> Tensor:
        """Return a batch of images that neither warming nor calibration has seen."""
        return self.images(1, batch_size, _UNSEEN, size)[0]

    def calibration(self) -> list[Tensor]:
        """Return two batches of eight images."""
        return self.images(2, 8, _CALIBRATION)


@functools.lru_cache(maxsize=2)
def build(network: Network) -> nn.Module:
    """Build a network in eval mode. Nobody may change it."""
    return _plain(network) if network.plain else zoo.build(network.name, size=network.size)[0]


def _plain(network: Network) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = import_torchvision().models.get_model(network.name, weights=None)
        with torch.no_grad():
            for batch in network.images(4, 8, _WARM_UP):
                model.train()(batch)
    return model.eval()


def noise(batches: int, batch_size: int, size: int, seed: int) -> list[Tensor]:
    """Return batches of white noise, float32 ``[batch_size, 3, size, size]``."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch_size, 3, size, size, generator=generator) for _ in range(batches)]


@functools.lru_cache(maxsize=6)
def compiled(network: Network, recipe: str, target: str = "auto") -> fx.GraphModule:
    """Compile a network on an example of two images, and assert that the network itself is as it was before."""
    model = build(network)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calibration = network.calibration() if recipe == "int8" else None
    (example,) = network.images(1, 2, _EXAMPLE)
    gm = fxq.compile(model, example, calibration=calibration, recipe=recipe, target=target)
    check_same_state(before, model.state_dict())
    assert not any(m.training or type(m).__module__.startswith("fxq.") for m in model.modules())
    return gm


def run(model: nn.Module, x: Tensor) -> Tensor:
    """Run a model without gradients."""
    with torch.no_grad():
        y: Tensor = model(x)
    return y


def error(network: Network, gm: nn.Module, batch_size: int = 8, size: int | None = None) -> Distance:
    """Return the distance of a compiled network's output from the network's own on unseen images."""
    x = network.unseen(batch_size, size)
    return distance(run(build(network), x), run(gm, x))


def float_layers(gm: fx.GraphModule) -> dict[str, str]:
    """Return the convolutions and linear layers of the graph that compute in float, with the reason in the report."""
    reasons = {layer.name: layer.why_float for layer in fxq.report(gm).layers}
    return {node.name: reasons.get(node.name, "") for node in gm.graph.nodes if _is_float_layer(node, gm)}


def _is_float_layer(node: fx.Node, gm: fx.GraphModule) -> bool:
    call = identify(node, gm)
    parts = [] if call.module is None else call.module.modules()
    return call.kind in _FUNCTIONS or any(isinstance(m, _ConvNd | nn.Linear) for m in parts)


def check_same_state(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Assert that two state dicts hold the same, bit for bit."""
    assert before.keys() == after.keys()
    for name, value in before.items():
        other = after[name]
        assert torch.equal(value, other) if isinstance(value, Tensor) else value == other, name


def in_group(networks: Iterable[Network]) -> list[Any]:
    """Return the networks as parameters whose tests run in one process, so that they share what was compiled."""
    return [pytest.param(n, marks=pytest.mark.xdist_group(n.name), id=n.name) for n in networks]
