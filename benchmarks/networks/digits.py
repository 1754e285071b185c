"""scikit-learn's handwritten digits as they are, in grey, on 16 x 16 pixels: the task that every tutorial uses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from benchmarks.networks.data import SIDE, Images

_SPLIT_SEED = 0
_TEST = 900


def load_grey_digits() -> Images:
    """Return the digits, 897 for training and 900 for testing: float32 ``[N, 3, 16, 16]`` of mean 0 and variance 1.

    Raises:
        ImportError: scikit-learn, which carries the digits, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ImportError('the digits come with scikit-learn: pip install "fxq[vision]"') from error
    raw = load_digits()
    digits = torch.from_numpy(raw.images).float().unsqueeze(1)
    labels = torch.from_numpy(raw.target).long()
    drawn = F.interpolate(digits, size=(SIDE, SIDE), mode="bilinear", align_corners=False).expand(-1, 3, -1, -1)
    drawn = ((drawn - drawn.mean()) / drawn.std()).contiguous()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    test, train = order[:_TEST], order[_TEST:]
    return Images(TensorDataset(drawn[train], labels[train]), TensorDataset(drawn[test], labels[test]))
