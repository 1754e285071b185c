from __future__ import annotations

import torch
from torch import fx, nn

from fxq.ir.parameters import clone_parameter, shared_tensors


def test_tied_weights_are_shared_on_either_side() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    gm = fx.symbolic_trace(model)
    assert [shared_tensors(gm, gm.get_submodule(str(i))) for i in range(3)] == [True, True, False]


def test_a_cloned_parameter_is_frozen_and_separate() -> None:
    weight = nn.Parameter(torch.ones(2))
    twin = clone_parameter(weight)
    assert torch.equal(twin, weight)
    assert not twin.requires_grad
    assert twin.data_ptr() != weight.data_ptr()
