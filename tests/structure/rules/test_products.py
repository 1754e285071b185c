from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.structure.pruned import Net, check, structure_of, tokens

OTHER = ((tokens(3, 7),),)


def heads_apart(m: Any, x: Tensor, scale: Any = None) -> Tensor:
    """q, k and v of layers of their own, split into 4 heads."""
    b, n, _ = x.shape
    q, k, v = (layer(x).view(b, n, 4, -1).transpose(1, 2) for layer in (m.q, m.k, m.v))
    scores = q @ k.transpose(-2, -1) * 0.5 if scale is None else q @ k.transpose(-2, -1) / scale(q)
    return m.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, -1))


def packed(m: Any, x: Tensor) -> Tensor:
    """One layer for all three, as vision transformers write it."""
    b, n, _c = x.shape
    q, k, v = m.qkv(x).reshape(b, n, 3, 4, 16 // 4).permute(2, 0, 3, 1, 4)
    return m.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, 16))


def chunked(m: Any, x: Tensor) -> Tensor:
    """One layer for all three, as language models write it."""
    b, n, _c = x.shape
    q, k, v = (t.view(b, n, 4, 4).transpose(1, 2) for t in m.qkv(x).chunk(3, -1))
    return m.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, n, 16))


def three(**more: Any) -> dict[str, Any]:
    return {**{name: nn.Linear(8, 16) for name in "qkv"}, "out": nn.Linear(16, 4), **more}


def test_separate_projections_lose_whole_heads() -> None:
    out = check(Net(heads_apart, **three()), tokens(), others=OTHER)
    group = out.structure.group("q")
    assert group.size == 4
    assert {m.path for m in group.members} == {"q", "k", "v", "out"}
    assert out.layer("out").in_features == 8


def test_a_scale_computed_from_a_size_stays_what_it_was() -> None:
    net = Net(lambda m, x: heads_apart(m, x, lambda q: math.sqrt(q.size(-1))), **three())
    assert check(net, tokens(), others=OTHER).layer("q").out_features == 8


@pytest.mark.parametrize("forward", [packed, chunked])
def test_packed_projections_lose_whole_heads(forward: Any) -> None:
    out = check(Net(forward, qkv=nn.Linear(8, 48), out=nn.Linear(16, 4)), tokens(), others=OTHER)
    assert out.structure.group("qkv").size == 4
    assert out.layer("qkv").out_features == 24


def test_one_head_loses_channels_and_keeps_its_scale() -> None:
    net = Net(lambda m, x: m.out(F.scaled_dot_product_attention(m.q(x), m.k(x), m.v(x))), **three())
    out = check(net, tokens(), others=OTHER)
    assert {g.name: g.size for g in out.structure.groups if g.prunable} == {"q": 16, "v": 16}


def test_attention_mask_and_shared_heads() -> None:
    def masked(m: Any, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (4, 4)).transpose(1, 2) for layer in (m.q, m.k, m.v))
        return m.out(F.scaled_dot_product_attention(q, k, v, attn_mask=m.mask).transpose(1, 2).flatten(2))

    assert check(Net(masked, **three(mask=torch.randn(5, 5))), tokens()).pruned == ["q"]
    per_head = check(Net(masked, **three(mask=torch.randn(4, 5, 5))), tokens())
    assert per_head.gm.get_parameter("mask").shape == (2, 5, 5)

    def grouped(m: Any, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (m.q, m.k, m.v))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return m.out(y.transpose(1, 2).flatten(2))

    net = Net(grouped, q=nn.Linear(8, 16), k=nn.Linear(8, 8), v=nn.Linear(8, 8), out=nn.Linear(16, 4))
    assert check(net, tokens()).pruned == []


@pytest.mark.parametrize("options", [{}, {"kdim": 6, "vdim": 7}, {"bias": False}])
def test_multihead_attention(options: dict[str, Any]) -> None:
    def forward(m: Any, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return m.out(m.attn(m.a(x), y, z, need_weights=False)[0])

    attention = nn.MultiheadAttention(16, 4, batch_first=True, **{"kdim": 8, "vdim": 8, **options})
    y = tokens(2, 6, options.get("kdim", 8)), tokens(2, 6, options.get("vdim", 8))
    out = check(Net(forward, a=nn.Linear(8, 16), attn=attention, out=nn.Linear(16, 4)), tokens(), *y)
    heads = [g for g in out.structure.groups if g.size == 4 and g.prunable]
    assert len(heads) == 1
    assert out.layer("out").in_features == 8


def test_self_attention_packed_by_torch() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.out(y + m.attn(y, y, y, need_weights=False)[0])

    attention = nn.MultiheadAttention(16, 4, batch_first=True)
    out = check(Net(forward, a=nn.Linear(8, 16), attn=attention, out=nn.Linear(16, 4)), tokens(), others=OTHER)
    assert sorted(g.size for g in out.structure.groups if g.prunable) == [4, 16]


def test_matmul_with_parameters() -> None:
    def by(read: Any, **layers: Any) -> Net:
        return Net(lambda m, x: m.out(m.a(x) @ read(m)), a=nn.Linear(8, 6), out=nn.Linear(10, 4), **layers)

    for net in (
        by(lambda m: m.w, w=torch.randn(6, 10)),
        by(lambda m: m.w.t(), w=torch.randn(10, 6)),
        by(lambda m: m.w.T, w=torch.randn(10, 6)),
        by(lambda m: m.w.weight.T, w=nn.Linear(6, 10)),
    ):
        out = check(net, tokens(), others=OTHER)
        assert (out.layer("a").out_features, out.layer("out").in_features) == (3, 5)


def test_a_layer_whose_weight_is_read_as_well() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.out(y @ m.w.weight.mT + m.w(y))

    out = check(Net(forward, a=nn.Linear(8, 6), w=nn.Linear(6, 10), out=nn.Linear(10, 4)), tokens())
    assert out.layer("w").weight.shape == (5, 3)


def test_products_that_nobody_describes_are_named() -> None:
    net = Net(
        lambda m, x: m.out(torch.tensordot(m.a(x), m.w, 1)), a=nn.Linear(8, 6), w=torch.randn(6, 6),
        out=nn.Linear(6, 4),
    )  # fmt: skip
    structure = structure_of(net, tokens())
    assert [o.kind for o in structure.opaque] == ["tensordot"]
    assert all(g.fixed.all() for g in structure.groups)
