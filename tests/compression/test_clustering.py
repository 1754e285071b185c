"""One-dimensional k-means: the conditions of a fixed point, falling inertia, and awkward values."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from fxq.compression.clustering import Clusters, cluster


def values(n: int, power: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)) ** power


def nearest(x: Tensor, centroids: Tensor) -> Tensor:
    return (x.double()[:, None] - centroids).abs().argmin(1)


def inertia(x: Tensor, clusters: Clusters) -> float:
    return float((x.double()[:, None] - clusters.centroids).abs().amin(1).square().sum())


CASES = [(2000, 1, 16), (2000, 3, 16), (2000, 5, 255), (300, 1, 256), (500, 3, 3), (64, 7, 16)]


@pytest.mark.parametrize(("n", "power", "k"), CASES)
def test_fixed_point(n: int, power: int, k: int) -> None:
    """Each value belongs to the nearest centroid, and each centroid is the mean of its values."""
    x = values(n, power)
    found = cluster(x, k)
    codes = found.codes(x)
    assert len(found.centroids) == min(k, n)
    assert codes.unique().tolist() == list(range(min(k, n)))
    assert torch.equal(codes.long(), nearest(x, found.centroids))
    for i, centroid in enumerate(found.centroids.tolist()):
        assert centroid == pytest.approx(float(x.double()[codes == i].mean()), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("n", "power", "k"), [(2000, 1, 16), (2000, 5, 64), (64, 7, 16)])
def test_inertia_never_rises(n: int, power: int, k: int) -> None:
    x = values(n, power)
    steps = [inertia(x, cluster(x, k, max_steps=i)) for i in range(1, 40)]
    assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(steps))
    assert steps[-1] < steps[0]
    assert inertia(x, cluster(x, k)) <= steps[-1] * (1 + 1e-12)


def test_the_first_centroids_are_evenly_spaced() -> None:
    x = torch.tensor([0.0, 1.0, 2.0, 6.0, 9.0])
    # from 0, 4.5 and 9: {0, 1, 2}, {6}, {9}
    assert cluster(x, 3, max_steps=1).centroids.tolist() == [1.0, 6.0, 9.0]


def test_a_value_in_the_middle_goes_up() -> None:
    found = cluster(torch.tensor([0.0, 0.0, 2.0, 2.0, 5.0]), 2)
    assert found.codes(torch.tensor([0.0, 2.0, 5.0])).tolist() == [0, 0, 1]
    assert Clusters(torch.tensor([0.0, 2.0]).double(), torch.tensor([1.0])).codes(torch.tensor([1.0])).tolist() == [1]


def test_few_distinct_values_are_kept_as_they_are() -> None:
    x = torch.tensor([3.0, -1.0, 3.0, 0.5, -1.0])
    found = cluster(x, 4)
    assert found.centroids.tolist() == [-1.0, 0.5, 3.0]
    assert torch.equal(found.centroids[found.codes(x).long()].float(), x)
    assert cluster(torch.full((7,), 2.5), 16).centroids.tolist() == [2.5]


def test_an_outlier_leaves_no_cluster_empty() -> None:
    x = torch.cat([values(1000), torch.tensor([1e4])])
    found = cluster(x, 16)
    assert found.codes(x).unique().numel() == 16
    assert inertia(x, found) < 0.05 * float(values(1000).square().sum())


def test_an_empty_cluster_starts_again_at_the_far_end_of_the_worst() -> None:
    # from 0, 50 and 100: nothing is near 50, and of {0, 3, 3.5, 4} the 0 is farthest from the mean
    assert cluster(torch.tensor([0.0, 3.0, 3.5, 4.0, 100.0]), 3, max_steps=1).centroids.tolist() == [0.0, 2.625, 100.0]
    assert cluster(torch.tensor([0.0, 0.5, 1.0, 4.0, 100.0]), 3, max_steps=1).centroids.tolist() == [1.375, 4.0, 100.0]


def test_neighbours_in_float32_are_told_apart() -> None:
    eps = 2.0**-23
    x = torch.tensor([1.0, 1.0 + eps, 1.0 + 2 * eps, 3.0])
    found = cluster(x, 3)
    assert found.codes(x).tolist() == [0, 0, 1, 2]
    assert found.centroids.tolist() == [1.0 + eps / 2, 1.0 + 2 * eps, 3.0]
    y = torch.tensor([1.0, 1.0 + eps, 3.0, 3.0, 3.5, 5.0])
    assert torch.equal(cluster(y, 4).codes(y).long(), nearest(y, cluster(y, 4).centroids))


def test_one_cluster_is_the_mean() -> None:
    x = values(100)
    assert float(cluster(x, 1).centroids) == pytest.approx(float(x.double().mean()), rel=1e-12)
    assert cluster(x, 1).codes(x).unique().tolist() == [0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    x = values(500).to(dtype)
    found = cluster(x, 8)
    assert torch.equal(found.codes(x).long(), nearest(x, found.centroids))


def test_deterministic_whatever_the_order() -> None:
    x = values(5000, 3)
    shuffled = x[torch.randperm(5000, generator=torch.Generator().manual_seed(1))]
    assert torch.equal(cluster(x, 32).centroids, cluster(shuffled, 32).centroids)
