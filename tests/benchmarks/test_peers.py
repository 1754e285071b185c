"""The peers that need nothing but torch, on a small network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from benchmarks.latency import main
from benchmarks.measure import sqnr_db
from benchmarks.peers import PEERS


class Residual(nn.Module):
    """A convolution, a batch norm and an addition: what the peers fuse."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)) + x)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def test_every_peer_is_listed_under_its_own_name() -> None:
    assert all(name == peer.name for name, peer in PEERS.items())
    assert next(iter(PEERS)) == "eager"


def test_torch_fx_int8_is_close_to_float_and_leaves_the_engine() -> None:
    if "onednn" not in torch.backends.quantized.supported_engines:
        pytest.skip("this torch has no oneDNN engine")
    torch.manual_seed(0)
    model = Residual().eval()
    batches = [torch.randn(2, 4, 8, 8) for _ in range(4)]
    engine = torch.backends.quantized.engine
    prepared = PEERS["torch-fx"].prepare(copy.deepcopy(model), batches[0], batches)
    with torch.inference_mode():
        assert 20 < sqnr_db(model(batches[0]), prepared.call(batches[0])) < 80
    assert torch.backends.quantized.engine == engine
    assert prepared.size_bytes is not None


def test_the_command_refuses_a_peer_that_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--peers", "tensorrt"])
    assert "invalid choice: 'tensorrt'" in capsys.readouterr().err
