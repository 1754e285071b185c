"""What `prune` refuses, with the model untouched."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import fxq
from fxq.errors import CalibrationError, InputError
from fxq.pruner.api import plan_of, prune
from fxq.pruning.criteria import BatchNormScale
from fxq.pruning.plan import Plan
from tests.pruning.networks import images, residual


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing says how much to prune"),
        ({"ratio": 0.5, "macs": 0.5}, "ratio and macs are given"),
        ({"ratio": 1.0}, "ratio is 1.0"),
        ({"macs": 0}, "macs is 0"),
        ({"latency": 2}, "latency is 2"),
        ({"ratio": 0.5, "plan": Plan({}, {})}, "a plan and a ratio or budget"),
        ({"plan": "plan.json"}, "the plan is a str"),
        ({"ratio": 0.5, "criterion": "l3"}, "no criterion is called 'l3'"),
        ({"ratio": 0.5, "criterion": "taylor"}, "needs gradients of a loss"),
        ({"ratio": 0.5, "criterion": "apoz"}, "needs data"),
        ({"ratio": 0.5, "criterion": "thinet"}, "needs data"),
        ({"ratio": 0.5, "reconstruct": True}, "reconstruct needs data"),
        ({"ratio": 0.5, "reestimate": True}, "reestimate needs data"),
        ({"ratio": 0.5, "criterion": BatchNormScale()}, r"(?s)needs a batch norm.*group 'last'"),
        ({"ratio": 0.5, "criterion": lambda g: torch.zeros(3)}, r"(?s)does not score a group.*shape \[3\]"),
        ({"ratio": 0.5, "coupling": "some"}, "coupling='some' is not known"),
        ({"ratio": 0.5, "scope": "layers"}, r"(?s)scope='layers'.*did you mean 'layer'"),
        ({"ratio": 0.5, "normalise": "men"}, r"(?s)normalise='men'.*did you mean 'mean'"),
        ({"ratio": 0.5, "protect": ["steam"]}, r"(?s)protect: no layer.*did you mean 'stem'"),
        ({"ratio": 0.5, "ratios": {"stem": 1.0}}, r"ratios\['stem'\] is 1.0"),
        ({"ratio": 0.5, "ratios": {"fc": 0.5}}, r"(?s)'fc' matches can be pruned.*output of the model"),
        ({"ratio": 0.5, "bounds": {"stem": (0.5, 0.4)}}, r"bounds\['stem'\]"),
        ({"ratio": 0.5, "round_to": 0}, "round_to is 0"),
        ({"ratio": 0.5, "target": "onedn"}, "unknown target"),
        ({"ratio": 0.5, "steps": 0}, "steps is 0"),
        ({"ratio": 0.5, "example_inputs": torch.zeros(1, 4, 8, 8)}, "does not run on the example inputs"),
        ({"ratio": 0.5, "example_inputs": None}, "needs example inputs"),
        ({"ratio": 0.5, "example_inputs": (images(), images())}, "do not fit the model"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    model = residual()
    state = copy.deepcopy(model.state_dict())
    inputs = options.pop("example_inputs", images())
    with pytest.raises((InputError, fxq.TargetError), match=message):
        prune(model, inputs, **options)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_models_that_are_not_ready() -> None:
    with pytest.raises(InputError, match="training mode"):
        prune(residual().train(), images(), ratio=0.5)
    with pytest.raises(InputError, match="is a int"):
        prune(3, images(), ratio=0.5)  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match="there is no batch"):
        prune(residual(), images(), ratio=0.5, criterion="taylor", data=[])


def test_only_what_was_pruned_has_a_plan() -> None:
    with pytest.raises(InputError, match="was not pruned"):
        plan_of(fxq.compile(residual(), images()))
