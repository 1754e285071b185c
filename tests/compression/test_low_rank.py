"""Separable and low-rank approximations against the singular value decomposition, and where they are exact."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fxq.compression.low_rank import separate, spectrum


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("kernel", [(3,), (3, 3), (5, 1), (2, 3, 3)])
def test_a_separable_kernel_is_separated_exactly(kernel: tuple[int, ...]) -> None:
    depthwise, pointwise = random(6, 1, *kernel), random(8, 6, *[1] * len(kernel), seed=1)
    weight = pointwise * depthwise.transpose(0, 1)
    found = separate(weight)
    assert found.error < 1e-6
    assert relative(found.pointwise * found.depthwise.transpose(0, 1), weight) < 1e-6


def test_separated_convolutions_compute_the_kernel() -> None:
    weight = random(8, 1, 1, 1, seed=1).double() * random(1, 6, 3, 3).double()  # rank 1 in each input channel
    x = random(2, 6, 9, 9, seed=2)
    found = separate(weight)
    halfway = F.conv2d(x.double(), found.depthwise, padding=1, stride=2, groups=6)
    torch.testing.assert_close(F.conv2d(halfway, found.pointwise), F.conv2d(x.double(), weight, padding=1, stride=2))


def test_each_slice_is_the_best_of_rank_one() -> None:
    weight = random(10, 4, 3, 3)
    found = separate(weight)
    product = found.pointwise * found.depthwise.transpose(0, 1)
    lost = 0.0
    for channel in range(4):
        matrix = weight[:, channel].flatten(1).double()
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        best = s[0] * u[:, :1] @ v[:1]
        torch.testing.assert_close(product[:, channel].flatten(1), best, rtol=1e-10, atol=1e-12)
        lost += float(s[1:].square().sum())
    assert found.error == pytest.approx(lost**0.5 / float(weight.double().norm()), rel=1e-10)
    assert found.error == pytest.approx(relative(product, weight), rel=1e-10)
    torch.testing.assert_close(found.depthwise.flatten(1).norm(dim=1), torch.ones(4).double())
    assert bool((found.depthwise.flatten(1).amax(1) == found.depthwise.flatten(1).abs().amax(1)).all())


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (9, 9), (1, 5)])
def test_factors_are_the_truncated_svd(shape: tuple[int, int]) -> None:
    matrix = random(*shape).double()
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    found = spectrum(matrix)
    torch.testing.assert_close(found.singular, s, rtol=1e-6, atol=1e-7)
    for rank in range(1, min(shape) + 1):
        reduce, expand = found.factors(rank)
        assert reduce.shape == (rank, shape[1])
        assert expand.shape == (shape[0], rank)
        torch.testing.assert_close(expand @ reduce, u[:, :rank] * s[:rank] @ v[:rank], rtol=1e-7, atol=1e-9)
        assert found.error(rank) == pytest.approx(relative(expand @ reduce, matrix), abs=1e-7)
        torch.testing.assert_close(reduce.norm(dim=1), expand.norm(dim=0))  # the scale is shared


@pytest.mark.parametrize("shape", [(12, 30), (30, 12)])
def test_exact_at_full_rank_also_of_a_degenerate_matrix(shape: tuple[int, int]) -> None:
    matrix = random(*shape).double()
    matrix[3:6] = matrix[0]
    matrix[6] *= 1e-12
    matrix[7] = 0.0
    reduce, expand = spectrum(matrix).factors(12)
    assert bool(reduce.isfinite().all() and expand.isfinite().all())
    torch.testing.assert_close(expand @ reduce, matrix, rtol=1e-12, atol=1e-13)


def test_rank_of_an_energy() -> None:
    found = spectrum(torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0])))  # energies 16, 9, 4, 1 of 30
    assert [found.rank_of(e) for e in (0.1, 16 / 30, 0.54, 25 / 30, 0.9, 29 / 30, 1.0)] == [1, 1, 2, 2, 3, 3, 4]


def test_all_the_energy_of_a_low_rank_matrix_is_its_rank() -> None:
    matrix = random(40, 5) @ random(5, 60, seed=1)  # rounded to float32
    found = spectrum(matrix)
    assert found.rank_of(1.0) == 5
    reduce, expand = found.factors(5)
    assert relative(expand @ reduce, matrix) < 1e-6


def test_zeros() -> None:
    assert separate(torch.zeros(4, 3, 3, 3)).error == 0.0
    found = spectrum(torch.zeros(4, 6))
    assert found.rank_of(0.9) == 1
    assert found.error(1) == 0.0
    assert torch.equal(torch.mm(*reversed(found.factors(1))), torch.zeros(4, 6).double())
