"""torchvision's networks as torchvision initialises them, small enough to compile by the dozen."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

import fxq
from benchmarks.torchvision_shim import import_torchvision
from fxq.ir.identify import identify
from fxq.ir.metrics import Distance, distance
from fxq.nn import onednn_available

ONEDNN = pytest.param("onednn", marks=pytest.mark.skipif(not onednn_available(), reason="no onednn operators here"))
TARGETS = ["reference", ONEDNN]

_FUNCTIONS = (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose2d, F.linear)
_NO_HEADS = {"aux_logits": False, "transform_input": False, "init_weights": False}
_OPTIONS = {"googlenet": _NO_HEADS, "inception_v3": _NO_HEADS}


@dataclass(frozen=True)
class Network:
    """A network and what is known of it.

    Attributes:
        name: as torchvision calls it.
        floor: the least SQNR of the int8 output against float, in dB: about 4 dB below what was measured, since
            networks with random weights amplify every rounding.
        size: height and width of its images.
        other_size: another size that the float network takes; None where it takes only one.
    """

    name: str
    floor: float
    size: int = 96
    other_size: int | None = 80


@functools.lru_cache(maxsize=2)
def build(name: str, size: int) -> nn.Module:
    """Build ``name`` in eval mode; its batch norms have seen four batches of noise at their own momentum."""
    torchvision = import_torchvision()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = name.startswith("vit")
        options = {"image_size": size} if vit else _OPTIONS.get(name, {})
        model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
        if vit:
            nn.init.xavier_normal_(model.heads.head.weight)  # torchvision begins with zeros, whose output is constant
        if any(isinstance(m, _BatchNorm) for m in model.modules()):
            model.train()
            with torch.no_grad():
                for batch in noise(4, 8, size, seed=1):
                    model(batch)
    return model.eval()


def noise(batches: int, batch_size: int, size: int, seed: int) -> list[Tensor]:
    """Return batches of white noise, float32 ``[batch_size, 3, size, size]``."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch_size, 3, size, size, generator=generator) for _ in range(batches)]


@functools.lru_cache(maxsize=4)
def compiled(network: Network, recipe: str, target: str = "auto") -> fx.GraphModule:
    """Compile a network on an example of two images, and calibrate on two batches of four.

    Asserts that the network itself is as it was before.
    """
    model = build(network.name, network.size)
    before = state(model)
    calibration = noise(2, 4, network.size, seed=2) if recipe == "int8" else None
    example = noise(1, 2, network.size, seed=3)[0]
    gm = fxq.compile(model, example, calibration=calibration, recipe=recipe, target=target)
    check_same_state(before, state(model))
    return gm


def run(model: nn.Module, x: Tensor) -> Tensor:
    """Run a model without gradients."""
    with torch.no_grad():
        y: Tensor = model(x)
    return y


def error(network: Network, gm: fx.GraphModule, batch_size: int = 8, size: int | None = None) -> Distance:
    """Return the distance of a compiled network's output from the network's own, on images that neither has seen."""
    size = size or network.size
    (x,) = noise(1, batch_size, size, seed=4)
    return distance(run(build(network.name, network.size), x), run(gm, x))


def float_layers(gm: fx.GraphModule) -> dict[str, str]:
    """Return the convolution and linear layers that compute in float, with the reason that the report gives."""
    nodes = {node.name: node for node in gm.graph.nodes}
    records = [layer for layer in fxq.report(gm).layers if _is_float_layer(nodes[layer.name], gm)]
    return {layer.name: layer.why_float for layer in records}


def _is_float_layer(node: fx.Node, gm: fx.GraphModule) -> bool:
    call = identify(node, gm)
    parts = [] if call.module is None else call.module.modules()
    return call.kind in _FUNCTIONS or any(isinstance(m, _ConvNd | nn.Linear) for m in parts)


def state(model: nn.Module) -> dict[str, object]:
    """Return everything that compiling must leave alone: parameters, buffers, mode, hooks, attributes."""
    kept: dict[str, object] = {name: value.clone() for name, value in model.state_dict().items()}
    for path, module in model.named_modules():
        kept[f"{path}:class"] = type(module)
        for name, value in vars(module).items():
            kept[f"{path}:{name}"] = copy.copy(value) if isinstance(value, dict | list | set) else value
    return kept


def check_same_state(before: dict[str, object], after: dict[str, object]) -> None:
    """Assert that nothing in two results of :func:`state` differs."""
    assert before.keys() == after.keys()
    for name, value in before.items():
        other = after[name]
        tensors = isinstance(value, Tensor) and isinstance(other, Tensor)
        assert torch.equal(value, other) if tensors else _same(value, other), name


def _same(value: object, other: object) -> bool:
    if isinstance(value, dict) and isinstance(other, dict):  # of parameters, whose == is not a truth value
        return value.keys() == other.keys() and all(v is other[k] for k, v in value.items())
    return value is other or bool(value == other)


def in_group(networks: Iterable[Network]) -> list[object]:
    """Return the networks as parameters whose tests run in one process, so that they share what was compiled."""
    return [pytest.param(n, marks=pytest.mark.xdist_group(n.name), id=n.name) for n in networks]
