"""An LSTM that reads an image row by row."""

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.networks.data import SIDE


class LstmClassifier(nn.Module):
    """Two LSTM layers over the rows of an image and a classifier on the last state."""

    def __init__(self, hidden: int = 96, layers: int = 2, classes: int = 10) -> None:
        super().__init__()
        self.inputs = nn.Linear(3 * SIDE, hidden)
        self.lstm = nn.LSTM(hidden, hidden, layers, batch_first=True)
        self.fc = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[N, 3, 16, 16]`` to logits ``[N, classes]``."""
        rows = x.transpose(1, 2).flatten(2)
        states, _ = self.lstm(self.inputs(rows))
        logits: Tensor = self.fc(states[:, -1])
        return logits
