from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from fxq.tracing import ModelInputs, clone_inputs


@pytest.fixture
def same() -> Callable[..., None]:
    """Assert that a graph module gives bit for bit what (a copy of) the model gives, twice in a row."""

    def check(model: nn.Module, gm: nn.Module, *args: object, **kwargs: object) -> None:
        twin, other = copy.deepcopy(model), copy.deepcopy(gm)
        for _ in range(2):
            first = clone_inputs(ModelInputs(args, kwargs))
            second = clone_inputs(first)
            expected, actual = twin(*first.args, **first.kwargs), other(*second.args, **second.kwargs)
            assert type(expected) is type(actual)
            wanted, got = tree_leaves(expected), tree_leaves(actual)
            assert len(wanted) == len(got) > 0
            for a, b in zip(wanted, got, strict=True):
                assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b

    return check


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
