"""How closely a lowered graph follows the reference: node by node on equal inputs, and end to end."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxq.ir.identify import get_module
from fxq.nn.qlayer import QLayer
from fxq.nn.qoperation import QOperation
from fxq.tracing import ModelInputs, clone_inputs

MOST = 1e-3  # elements of one module that may differ by a quantum


@dataclass(frozen=True)
class Difference:
    """One int8 module against the reference on the same codes.

    ``quanta`` is the largest difference in codes; ``most`` the share of elements that differ. A float result counts in
    units of its own rounding: 1 where it is further off than float32 arithmetic explains.
    """

    node: str
    kernel: str
    elements: int
    differing: int
    quanta: int

    @property
    def allowed(self) -> bool:
        """At most one quantum on at most one element in 1000 (one element in small tensors)."""
        return self.quanta <= 1 and self.differing <= max(1, int(MOST * self.elements))


def with_backend(module: nn.Module, backend: str) -> nn.Module:
    """Return a copy of an int8 module that computes with ``backend``."""
    twin = copy.deepcopy(module)  # drops what was derived for the other backend
    assert isinstance(twin, QLayer | QOperation)
    twin.backend = backend
    return twin


class _Comparing(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.extra_traceback = False
        self.differences: list[Difference] = []

    def run_node(self, n: fx.Node) -> Any:
        module = get_module(self.module, n)
        if not isinstance(module, QLayer | QOperation):
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        before = [a.clone() for a in args if isinstance(a, Tensor)]
        actual = module(*args, **kwargs)
        for old, new in zip(before, [a for a in args if isinstance(a, Tensor)], strict=True):
            assert torch.equal(old, new), f"{n.name} writes into its input"
        expected = with_backend(module, "reference")(*args, **kwargs)
        self.differences.append(_difference(n.name, str(module.describe()), expected, actual))
        return actual


def _difference(name: str, kernel: str, expected: Tensor, actual: Tensor) -> Difference:
    assert expected.shape == actual.shape, name
    assert expected.dtype == actual.dtype, name
    if expected.dtype is torch.uint8:
        apart = (expected.int() - actual.int()).abs()
        return Difference(name, kernel, apart.numel(), int((apart > 0).sum()), int(apart.max()) if apart.numel() else 0)
    far = ~torch.isclose(actual, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    return Difference(name, kernel, far.numel(), int(far.sum()), 2 if bool(far.any()) else 0)


def differences(gm: fx.GraphModule, *args: Any, **kwargs: Any) -> list[Difference]:
    """Run ``gm`` and compare each of its int8 modules with the reference on the inputs that it gets there."""
    inputs = clone_inputs(ModelInputs(args, kwargs))
    comparing = _Comparing(gm)
    with torch.no_grad():
        comparing.run(*inputs.args, *inputs.kwargs.values())
    return comparing.differences


def check_agreement(gm: fx.GraphModule, *args: Any, **kwargs: Any) -> list[Difference]:
    """Assert that every int8 module of ``gm`` agrees with the reference; return the comparisons."""
    found = differences(gm, *args, **kwargs)
    wrong = [d for d in found if not d.allowed]
    assert not wrong, "\n".join(map(str, wrong))
    return found


def int8_modules(gm: fx.GraphModule) -> Iterator[nn.Module]:
    """The int8 modules that the graph calls."""
    for node in gm.graph.nodes:
        module = get_module(gm, node)
        if isinstance(module, QLayer | QOperation):
            yield module
