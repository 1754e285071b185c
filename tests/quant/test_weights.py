from __future__ import annotations

import torch
from torch import Tensor

from fxq.quant.qparams import quantize_weight
from fxq.quant.weights import largest_scale, mse_scale


def _errors(rows: Tensor, scale: Tensor) -> Tensor:
    codes, used = quantize_weight(rows, 0, scale)
    return (codes.float() * used[:, None] - rows).square().sum(1)


def _rows() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(8, 20_000, generator=generator)
    rows[0, 0] = 30.0
    rows[1] = 0.0
    rows[2] = 0.25
    return rows


def test_the_least_error_of_all_candidates() -> None:
    rows = _rows()
    whole = largest_scale(rows)
    tried = torch.stack([_errors(rows, whole * (1 - i / 64)) for i in range(36)])
    torch.testing.assert_close(_errors(rows, mse_scale(rows)), tried.amin(0), rtol=1e-4, atol=1e-9)


def test_no_channel_gets_worse_and_an_outlier_is_not_clipped_at_any_price() -> None:
    rows = _rows()
    before, after = _errors(rows, largest_scale(rows)), _errors(rows, mse_scale(rows))
    assert bool((after <= before).all())
    assert bool((after[3:] < before[3:]).any())


def test_channels_of_zeros_and_constants() -> None:
    scale = mse_scale(_rows())
    assert scale[1] == 1.0
    assert scale[2] == 0.25 / 127


def test_halves_are_widened() -> None:
    rows = _rows().half()
    assert torch.equal(mse_scale(rows), mse_scale(rows.float()))
