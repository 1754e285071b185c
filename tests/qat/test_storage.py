"""``fxq.save`` and ``fxq.load`` of a prepared model, in the middle of its training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxq
from tests.qat.networks import images, prepared, train
from tests.targets.blocks import Apply


@pytest.mark.parametrize("scales", ["observed", "learned"])
def test_a_loaded_model_goes_on_training(tmp_path: Path, scales: str) -> None:
    first = train(prepared(scales=scales))
    fxq.qat.freeze_batch_norm(first)
    fxq.save(first, tmp_path / "model.fxq")  # type: ignore[arg-type]
    second = fxq.load(tmp_path / "model.fxq")
    train(first)
    train(second)
    assert first.state_dict().keys() == second.state_dict().keys()
    assert all(_same(v, second.state_dict()[k]) for k, v in first.state_dict().items())
    a, b = (fxq.compile(m.eval(), images(), target="reference") for m in (first, second))
    assert torch.equal(a(images(2)), b(images(2)))


def test_attention_with_dropout_is_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.25, batch_first=True)
    x = torch.randn(2, 5, 8)
    ready = fxq.prepare_qat(Apply(lambda m, x: m.head(m.layer(x)), layer=layer, head=nn.Linear(8, 3)), x).train()
    train(ready, 1, batch=lambda i: x)
    fxq.save(ready, tmp_path / "model.fxq")
    loaded = fxq.load(tmp_path / "model.fxq")
    with torch.no_grad():
        assert torch.equal(loaded.eval()(x), ready.eval()(x))


def _same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)
