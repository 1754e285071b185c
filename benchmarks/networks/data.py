"""Coloured, turned, shifted and noisy digits: a task that a small network learns well, and not perfectly.

scikit-learn's 8 x 8 digits alone are too easy: every way of pruning leaves them at 99 %, and nothing is shown.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

SIDE = 16
CLASSES = 10
_TRAIN_COPIES = 12
_TEST_COPIES = 8
_SPLIT_SEED = 0

#: Of the digit in the picture: radians, share of its size, share of the picture.
_TURN, _GROW, _SHIFT = 0.35, 0.2, 0.2
#: Of the noise, where a digit's own contrast lies between 0.5 and 1.5.
_GRAIN, _CLOUDS = 0.4, 0.4


@dataclass(frozen=True)
class Images:
    """Float32 images ``[N, 3, 16, 16]`` of about mean 0 and variance 1, and int64 labels ``[N]``."""

    train: TensorDataset
    test: TensorDataset


def load_images(seed: int = 0, test_copies: int = _TEST_COPIES) -> Images:
    """Make the images, 16164 for training and, of 450 other handwritten digits, for testing; the same for a seed.

    Args:
        seed: of what is drawn: colours, places, noise.
        test_copies: pictures of each digit for testing. The default makes 3600.

    Raises:
        ImportError: scikit-learn, which carries the digits, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ImportError('the digits come with scikit-learn: pip install "fxq[vision]"') from error
    raw = load_digits()
    digits = torch.from_numpy(raw.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(raw.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    test, train = order[: len(order) // 4 + 1], order[len(order) // 4 + 1 :]
    generator = torch.Generator().manual_seed(seed)
    return Images(
        _pictures(digits[train], labels[train], _TRAIN_COPIES, generator),
        _pictures(digits[test], labels[test], test_copies, generator),
    )


def _pictures(digits: Tensor, labels: Tensor, copies: int, generator: torch.Generator) -> TensorDataset:
    digits, labels = digits.repeat(copies, 1, 1, 1), labels.repeat(copies)
    count = len(labels)
    shape = _placed(digits, generator)
    ink, ground = (torch.rand(count, 3, 1, 1, generator=generator) - 0.5 for _ in range(2))
    contrast = 0.5 + torch.rand(count, 1, 1, 1, generator=generator)
    grain = torch.randn(count, 3, SIDE, SIDE, generator=generator)
    clouds = torch.randn(count, 3, 4, 4, generator=generator)
    clouds = F.interpolate(clouds, size=(SIDE, SIDE), mode="bicubic", align_corners=False)
    bright = contrast * (1 + ink) * (2 * torch.randint(0, 2, (count, 1, 1, 1), generator=generator) - 1)
    images = 2 * ground + 2 * shape * bright + _GRAIN * grain + _CLOUDS * clouds
    return TensorDataset((images - images.mean()) / images.std(), labels)


def _placed(digits: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, scale and shift each digit, and draw it on 16 x 16 pixels."""
    spread = 2 * torch.rand(len(digits), 4, generator=generator) - 1
    angle, grow = _TURN * spread[:, 0], 1.2 * (1 + _GROW * spread[:, 1])
    theta = torch.zeros(len(digits), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = angle.cos() * grow
    theta[:, 0, 1], theta[:, 1, 0] = -angle.sin() * grow, angle.sin() * grow
    theta[:, :, 2] = _SHIFT * spread[:, 2:] * 2
    grid = F.affine_grid(theta, [len(digits), 1, SIDE, SIDE], align_corners=False)
    return F.grid_sample(digits, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
