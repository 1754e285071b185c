"""What every test of a pass checks, whatever the pass is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fxq.ir import graph_text, take_snapshot
from fxq.ir.shapes import run_recorded
from fxq.manager import Numerics, Pass
from fxq.manager.base import PassResult
from fxq.tracing import clone_inputs, normalise_inputs, trace

RunPass = Callable[..., PassResult]


@pytest.fixture
def run_pass() -> RunPass:
    """Return :func:`run_and_check`."""
    return run_and_check


def run_and_check(p: Pass, model: nn.Module, inputs: Any, *others: Any, first: tuple[Pass, ...] = ()) -> PassResult:
    """Trace ``model``, record shapes on ``inputs``, run the passes ``first``, then ``p``, and return what ``p`` did.

    The graph that goes in must stay as it was, a second run must find nothing to do, and the rewritten graph must give
    what the model gives, on ``inputs`` and ``others`` (of other sizes): bit for bit where the pass promises EXACT.
    """
    state = list(model.state_dict())
    gm = trace(model, inputs)
    given = clone_inputs(normalise_inputs(gm, inputs))
    run_recorded(gm, given.args, dict(given.kwargs))
    for before in first:
        gm = before(gm).graph_module
    text = graph_text(take_snapshot(gm))
    result = p(gm)
    assert graph_text(take_snapshot(gm)) == text, "the pass changed the graph that went in"
    assert list(model.state_dict()) == state, "the pass changed the model"
    for values in (inputs, *others):
        _check_output(p, model, result.graph_module, values)
    again = p(result.graph_module)
    assert not again.modified, f"the second run changed the graph: {again.record.summary()}"
    assert not again.matched
    return result


def _check_output(p: Pass, model: nn.Module, gm: nn.Module, values: Any) -> None:
    ours, theirs = (clone_inputs(normalise_inputs(model, values)) for _ in range(2))
    with torch.no_grad():
        expected = copy.deepcopy(model)(*theirs.args, **theirs.kwargs)
        actual = gm(*ours.args, **ours.kwargs)
    tolerance = 0.0 if p.numerics is Numerics.EXACT else 1e-5
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
