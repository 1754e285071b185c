"""How large a model is on disk."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn


def disk_bytes(model: nn.Module) -> int:
    """Return the size of the file that torch.save makes of ``model``'s state dict."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        torch.save(model.state_dict(), path)
        return path.stat().st_size
