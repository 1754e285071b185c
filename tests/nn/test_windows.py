from __future__ import annotations

import pytest
import torch

from fxq.nn.windows import (
    pad_to_multiple,
    relative_position_bias,
    window_bias,
    window_partition,
    window_reverse,
)

SIZES = [(8, 8), (8, 12), (7, 9), (4, 4), (3, 10)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shift", [(0, 0), (2, 2), (1, 3)])
def test_partition_and_reverse_are_inverse(size: tuple[int, int], shift: tuple[int, int]) -> None:
    x = torch.randn(2, *size, 5)
    windows = window_partition(x, (4, 4), shift)
    rows, columns = (-(-n // 4) for n in size)
    assert windows.shape == (2 * rows * columns, 16, 5)
    assert torch.equal(window_reverse(windows, x, (4, 4), shift), x)


def test_a_window_holds_neighbours_row_by_row() -> None:
    x = torch.arange(64.0).reshape(1, 8, 8, 1)
    first = window_partition(x, (4, 4), (0, 0))[0, :, 0]
    assert torch.equal(first, x[0, :4, :4, 0].flatten())
    shifted = window_partition(x, (4, 4), (2, 2))[0, :, 0]
    assert torch.equal(shifted, x[0, 2:6, 2:6, 0].flatten())


def naive_bias(bias: torch.Tensor, batch: int, size: tuple[int, int], shift: tuple[int, int]) -> torch.Tensor:
    """Label every pixel by the part of the map that it came from, and compare the labels within each window."""
    labels = torch.zeros(1, *size, 1)
    for d, (length, by) in enumerate(zip(size, shift, strict=True)):
        part = (torch.arange(length) >= length - by).float() * (10**d) if by else torch.zeros(length)
        labels += part.reshape((1, -1, 1, 1) if d == 0 else (1, 1, -1, 1))
    windows = window_partition(labels, (4, 4), (0, 0))[..., 0]
    apart = (windows[:, :, None] != windows[:, None, :]).float() * -100.0
    return (bias + apart[:, None]).repeat(batch, 1, 1, 1)


@pytest.mark.parametrize("shift", [(2, 2), (1, 3)])
def test_pixels_from_opposite_sides_are_kept_apart(shift: tuple[int, int]) -> None:
    bias = torch.randn(1, 3, 16, 16)
    x = torch.randn(2, 8, 12, 6)
    found = window_bias(bias, x, (4, 4), shift)
    assert torch.equal(found, naive_bias(bias, 2, (8, 12), shift))
    assert bool(((found[-1] - bias[0]) < -99).any())


def test_a_map_of_one_window_is_not_shifted() -> None:
    bias = torch.randn(1, 3, 16, 16)
    x = torch.randn(2, 4, 3, 6)
    assert window_bias(bias, x, (4, 4), (2, 2)) is bias
    assert torch.equal(window_partition(x, (4, 4), (2, 2)), window_partition(x, (4, 4), (0, 0)))


def test_padding_is_zero_and_absent_where_it_fits() -> None:
    x = torch.randn(1, 4, 8, 2)
    assert pad_to_multiple(x, (4, 4)) is x
    padded = pad_to_multiple(torch.ones(1, 3, 5, 2), (2, 4))
    assert padded.shape == (1, 4, 8, 2)
    assert padded.sum() == 30


def test_bias_is_looked_up_by_position() -> None:
    table, index = torch.randn(9, 3), torch.randint(9, (16,))
    found = relative_position_bias(table, index, (2, 2))
    assert found.shape == (1, 3, 4, 4)
    assert torch.equal(found[0, 2].flatten(), table[index, 2])
