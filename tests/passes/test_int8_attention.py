"""Attention in int8: where it is placed, what stays in float and why, and what each stage holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxq
from fxq.engine.dissolve import dissolve
from fxq.engine.library import unavailable_reason
from fxq.ir import take_snapshot
from fxq.nn import QAttention, QDQAttention, onednn_available
from fxq.quant.recipe import resolve_recipe
from tests.targets.lowering import stages

X = torch.randn(4, 33, 16, generator=torch.Generator().manual_seed(0))
Mix = Callable[[Tensor, Tensor, Tensor], Tensor]


class Encoder(nn.Module):
    """Self-attention with four heads, between linear layers."""

    def __init__(self, mix: Mix = F.scaled_dot_product_attention) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.qkv, self.out = mix, nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        y: Tensor = self.out(self.mix(q, k, v).transpose(1, 2).flatten(2))
        return y


def kinds(gm: fx.GraphModule) -> list[str]:
    return [n.kind for n in take_snapshot(gm).nodes if n.op.startswith("call_")]


def int8(model: nn.Module, recipe: Any = "int8", target: str = "reference") -> fx.GraphModule:
    return fxq.compile(model.eval(), X, calibration=[X], recipe=recipe, target=target, progress=False)


def test_codes_go_in_and_codes_come_out() -> None:
    gm = int8(Encoder())
    assert kinds(gm) == [
        "Quantize", *["QLinear"] * 3, *["unflatten"] * 3, *["permute"] * 3, *["getitem"] * 3, "QAttention", "transpose",
        "flatten", "QLinear",
    ]  # fmt: skip
    (module,) = (m for m in gm.modules() if isinstance(m, QAttention))
    assert module.output is not None
    assert len({module.query, module.key, module.value}) == 3


def test_each_stage_computes_the_same() -> None:
    found = stages(Encoder().eval(), X)
    assert "attention" in kinds(found.observed)
    assert sum(isinstance(m, QDQAttention) for m in found.qdq.modules()) == 1
    with torch.no_grad():
        assert float((found.int8(X) - found.qdq(X)).abs().max()) < 1e-5
        assert torch.allclose(found.int8(X), Encoder().eval()(X), atol=0.05)


def test_a_result_that_is_read_in_float_is_float() -> None:
    class Last(Encoder):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4).unbind(0)
            return self.mix(q, k, v).sin()

    gm = int8(Last())
    assert kinds(gm)[-2:] == ["QAttention", "sin"]
    assert next(m for m in gm.modules() if isinstance(m, QAttention)).output is None


def test_a_mask_stays_real() -> None:
    class Masked(Encoder):
        def forward(self, x: Tensor) -> Tensor:
            mask = (x.mean(-1) * 5).view(-1, 1, 1, 33)
            q, k, v = self.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4).unbind(0)
            y: Tensor = self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))
            return y

    gm = int8(Masked())
    (node,) = (
        n for n in gm.graph.nodes if n.op == "call_module" and isinstance(gm.get_submodule(n.target), QAttention)
    )
    assert len(node.args) == 4
    assert node.args[3].meta["fxq_tensor"].dtype == torch.float32
    with torch.no_grad():
        assert torch.allclose(gm(X), Masked().eval()(X), atol=0.05)


def _few(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k[:, :, :31], v[:, :, :31])


def _dropping(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, dropout_p=0.1)


def _shared(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k[:, :2], v[:, :2], enable_gqa=True)


def _rotated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q.sin(), k, v)


def _flat(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)).unflatten(0, (-1, 4))


def _of_all(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=(q @ k.transpose(2, 3)).mean((0, 1)) > 0)


@pytest.mark.parametrize(
    ("mix", "why"),
    [
        (_few, "of fewer than 32 keys"),
        (_dropping, "dropout or shared heads"),
        (_shared, "dropout or shared heads"),
        (_rotated, "its queries, keys or values are float"),
        (_flat, "not of (images, heads, tokens, features)"),
        (_of_all, "neither a constant nor of each image"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_stays_in_float(mix: Mix, why: str) -> None:
    gm = int8(Encoder(mix))
    assert "attention" in kinds(gm)
    assert why in str(fxq.report(gm).to_dict())


def test_attention_within_windows_stays_in_float() -> None:
    class Windows(Encoder):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.reshape(-1, 66, 16)).reshape(x.shape)

    gm = int8(Windows())
    assert "attention" in kinds(gm)
    assert "of parts of an image" in str(fxq.report(gm).to_dict())


@pytest.mark.parametrize("target", ["reference", "native"])
def test_a_boolean_mask_of_each_image(target: str) -> None:
    if target == "native" and unavailable_reason() is not None:
        pytest.skip("the engine is not built")

    class Padded(Encoder):
        def forward(self, x: Tensor) -> Tensor:
            shown = (x[..., 0] > 0).view(-1, 1, 1, 33)
            q, k, v = self.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4).unbind(0)
            y: Tensor = self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=shown).transpose(1, 2).flatten(2))
            return y

    gm = int8(Padded(), target=target)
    assert "QAttention" in kinds(dissolve(gm))
    assert target == "reference" or [n for n in kinds(gm) if n in ("attention", "QAttention")] == []
    with torch.no_grad():
        assert torch.allclose(gm(X), Padded().eval()(X), atol=0.05)


@pytest.mark.parametrize("recipe", [
    fxq.Recipe(attention_in_float=True),
    fxq.Recipe(overrides=(fxq.Override(F.scaled_dot_product_attention, quantise=False),)),
])  # fmt: skip
def test_the_recipe_keeps_it_in_float(recipe: fxq.Recipe) -> None:
    gm = int8(Encoder(), recipe)
    assert "attention" in kinds(gm)
    assert "the recipe" in str(fxq.report(gm).to_dict()) or "override" in str(fxq.report(gm).to_dict())


@pytest.mark.skipif(not onednn_available(), reason="no oneDNN int8 kernels")
def test_a_target_without_a_kernel_keeps_it_in_float_unless_told() -> None:
    assert "attention" in kinds(int8(Encoder(), target="onednn"))
    assert "QAttention" in kinds(int8(Encoder(), fxq.Recipe(attention_in_float=False), target="onednn"))


def test_operands_that_others_read_as_codes_leave_it_in_float() -> None:
    """What int8 gives, every user reads quantised: that alone must not turn an attention that the recipe keeps."""

    class Shared(Encoder):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4).unbind(0)
            y = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
            return y + sum(self.out(part.transpose(1, 2).flatten(2)) for part in (q, k, v))

    assert "attention" in kinds(int8(Shared(), fxq.Recipe(attention_in_float=True)))
    assert "QAttention" in kinds(int8(Shared()))


def test_the_accurate_recipes_keep_it_in_float() -> None:
    assert not resolve_recipe("int8", calibrated=True).attention_in_float
    for recipe in ("int8_accurate", "int8_rounded", "mixed"):
        assert "attention" in kinds(int8(Encoder(), recipe))


def test_a_trained_model_rounds_as_int8_does() -> None:
    ready = fxq.prepare_qat(Encoder().train(), X)
    assert sum(isinstance(m, QDQAttention) for m in ready.modules()) == 1
    ready(X).sum().backward()
    ready.eval()
    gm = fxq.compile(ready, X, target="reference", progress=False)
    assert "QAttention" in kinds(gm)
    with torch.no_grad():
        assert torch.equal(gm(X), ready(X))


def test_dropout_of_weights_is_trained_with() -> None:
    class Attended(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)
            self.attention = nn.MultiheadAttention(16, 4, dropout=0.4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            y: Tensor = self.last(self.attention(x, x, x, need_weights=False)[0])
            return y

    ready = fxq.prepare_qat(Attended().train(), X)
    (module,) = (m for m in ready.modules() if isinstance(m, QDQAttention))
    assert module.p == 0.4
    assert module.training
    ready(X)
    gm = fxq.compile(ready.eval(), X, target="reference", progress=False)
    assert "QAttention" in kinds(gm)
    with torch.no_grad():
        assert torch.equal(gm(X), ready(X))
