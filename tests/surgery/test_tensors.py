from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fxq.structure.analysis import Slot
from fxq.surgery.tensors import Positions, shrink_tensor


def slot(*axes: np.ndarray | None, shape: tuple[int, ...], parts: int = 1) -> Slot:
    return Slot("layer", "weight", "conv2d", axes, ("",) * len(axes), parts, shape)


def test_rows_and_columns() -> None:
    weight = nn.Parameter(torch.arange(12.0).view(3, 4))
    kept = np.array([True, False, True, False, True, True, True])
    small = shrink_tensor(weight, slot(np.arange(3), np.arange(3, 7), shape=(3, 4)), Positions(kept))
    assert isinstance(small, nn.Parameter)
    assert torch.equal(small, weight[[0, 2]][:, [1, 2, 3]])
    assert weight.shape == (3, 4)


def test_each_part_of_a_grouped_convolution_keeps_its_own() -> None:
    weight = torch.arange(8.0).view(4, 2, 1)
    kept = np.array([True, False, False, True])
    small = shrink_tensor(weight, slot(None, np.arange(4), None, shape=(4, 2, 1), parts=2), Positions(kept))
    assert small.flatten().tolist() == [0.0, 2.0, 5.0, 7.0]


def test_a_frozen_parameter_stays_frozen_and_nothing_is_shared() -> None:
    weight = nn.Parameter(torch.ones(3), requires_grad=False)
    small = shrink_tensor(weight, slot(np.arange(3), shape=(3,)), Positions(np.ones(3, dtype=bool)))
    assert isinstance(small, nn.Parameter)
    assert not small.requires_grad
    assert small.data_ptr() != weight.data_ptr()
