"""Small networks in int8, and what the engine's plan of them gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

import fxq
from fxq.engine.library import unavailable_reason
from fxq.engine.lowering.lower import lower
from fxq.engine.plan.groups import DEFAULT, Groups
from fxq.engine.plan.plan import Plan
from fxq.engine.plan.simulate import simulate
from fxq.engine.segment import Segment


def int8(model: nn.Module, *inputs: Tensor) -> fx.GraphModule:
    """Compile a network for the reference; calibrated on its own example."""
    torch.manual_seed(0)
    return fxq.compile(
        model.eval(), inputs, calibration=[inputs], recipe="int8", target="reference", verify=False, progress=False
    )


def planned(gm: fx.GraphModule, *inputs: Tensor, groups: Groups = DEFAULT) -> Plan:
    """Return the plan of a whole graph, or fail with the engine's reason."""
    return lower(gm, [(x.dtype, tuple(x.shape)) for x in inputs], groups)


def check(
    gm: fx.GraphModule, *inputs: Tensor, groups: Groups = DEFAULT, most: float = 0.05, exact: bool = True
) -> Plan:
    """Assert that the plan of a graph gives what the graph does, in numpy and, bit for bit the same, in the engine.

    A code inside that is a tie may be rounded the other way: few results differ, by what one quantum of it makes.
    """
    plan = planned(gm, *inputs, groups=groups)
    with torch.no_grad():
        wanted = _listed(gm(*inputs))
    found = simulate(plan, inputs)
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        difference = (a.float() - b.float()).abs()
        assert float(difference.max()) <= most * float(b.abs().max()), plan
        assert float((difference > 1e-4 * b.abs().max()).float().mean()) <= 0.1, plan
    if unavailable_reason() is None:
        for x, y in zip(_listed(Segment(gm)(*inputs)), found, strict=True):
            assert torch.equal(x, y) if exact else torch.allclose(x, y, atol=most * float(y.abs().max())), plan
    return plan


def _listed(result: Any) -> Sequence[Tensor]:
    return result if isinstance(result, tuple | list) else [result]
