"""Classes of tied identities: connected components, on arrays."""

from __future__ import annotations

import numpy as np

from fxq.structure.group import Indices, Mask


def merge(labels: Indices, a: Indices, b: Indices) -> None:
    """Give ``a[i]`` and ``b[i]`` the same label, for every i, in place.

    ``labels[x]`` is the smallest identity of the class of x. Roots are hooked to smaller roots and paths are halved
    until nothing changes, a few rounds over the arrays (Shiloach and Vishkin, J. Algorithms 3, 1982).
    """
    while True:
        low, high = labels[a], labels[b]
        apart = low != high
        if not apart.any():
            return
        a, b = a[apart], b[apart]
        low, high = np.minimum(low, high)[apart], np.maximum(low, high)[apart]
        np.minimum.at(labels, high, low)
        compress(labels)


def compress(labels: Indices) -> None:
    """Let every label be a root: an identity that is its own label."""
    while True:
        jumped = labels[labels]
        if np.array_equal(jumped, labels):
            return
        labels[:] = jumped


def count_classes(grid: Indices, free: Mask) -> int:
    """How many classes with a free member remain when each row of ``grid`` (labels) becomes one class.

    Args:
        grid: labels, shape (rows, columns).
        free: whether each cell may be removed, same shape.
    """
    _, compact = np.unique(grid, return_inverse=True)
    compact = compact.reshape(grid.shape)
    labels = np.arange(int(compact.max()) + 1, dtype=np.int64)
    merge(labels, np.repeat(compact[:, 0], grid.shape[1]), compact.reshape(-1))
    stuck = np.unique(labels[compact[~free]])
    return len(np.setdiff1d(np.unique(labels[compact]), stuck))
