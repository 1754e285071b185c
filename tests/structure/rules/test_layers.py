from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.structure.pruned import Net, Pruned, check, image, structure_of, tokens

OTHER = ((image(3, 3, 12),),)


def conv(inputs: int, outputs: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def between(layer: nn.Module, channels: int = 8, made: int = 8, **options: Any) -> Pruned:
    """Check a layer between two convolutions."""
    net = Net(lambda m, x: m.out(m.layer(m.a(x))), a=conv(3, channels), layer=layer, out=conv(made, 4))
    return check(net, image(), others=OTHER, **options)


def in_tokens(layer: nn.Module) -> Pruned:
    """Check a layer between two linear ones, on sequences."""
    net = Net(lambda m, x: m.out(m.layer(m.a(x))), a=nn.Linear(8, 8), layer=layer, out=nn.Linear(8, 4))
    return check(net, tokens(), others=((tokens(3, 7),),))


def test_a_chain() -> None:
    net = Net(lambda m, x: m.out(F.relu(m.bn(m.a(x)))), a=conv(3, 8), bn=nn.BatchNorm2d(8), out=conv(8, 4))
    out = check(net, image(), others=OTHER)
    kept = out.keep["a"].nonzero()[0]
    assert torch.equal(out.layer("a").weight, net.a.weight[kept])
    assert torch.equal(out.layer("bn").running_var, net.bn.running_var[kept])
    assert torch.equal(out.layer("out").weight, net.out.weight[:, kept])
    assert [m.name for m in out.structure.group("a").members] == [
        "a.weight", "a.bias", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "out.weight",
    ]  # fmt: skip


def test_other_numbers_of_dimensions() -> None:
    one = Net(lambda m, x: m.out(m.a(x)), a=nn.Conv1d(5, 6, 3), out=nn.Conv1d(6, 4, 1))
    assert check(one, tokens()).layer("a").out_channels == 3
    three = Net(lambda m, x: m.out(m.a(x)), a=nn.Conv3d(2, 6, 3), out=nn.Conv3d(6, 4, 1))
    assert check(three, torch.ones(1, 2, 4, 4, 4)).layer("a").out_channels == 3
    unbatched = Net(lambda m, x: m.out(m.a(x)), a=conv(3, 6), out=conv(6, 4))
    assert check(unbatched, image()[0]).layer("a").out_channels == 3


def test_grouped_convolution_keeps_equally_many_in_every_group() -> None:
    out = between(conv(8, 12, groups=4), made=12)
    layer = out.layer("layer")
    assert (layer.groups, layer.in_channels, layer.out_channels) == (4, 4, 8)
    assert [b.tolist() for b in out.structure.group("a").balance] == [[0, 0, 1, 1, 2, 2, 3, 3]]
    assert out.structure.group("layer").balance[0].tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


@pytest.mark.parametrize("groups", [2, 3])
def test_two_grouped_convolutions_in_a_row(groups: int) -> None:
    layer = nn.Sequential(conv(8, 24, groups=4), nn.ReLU(), conv(24, 24, groups=groups))
    out = between(layer, made=24)
    assert len(out.structure.group("layer.0").balance) == 2
    assert out.layer("layer.2").out_channels == 12


def test_grouped_convolution_over_two_layers_laid_end_to_end() -> None:
    """Its groups would have to lose equally many of different layers: they stay."""
    net = Net(
        lambda m, x: m.out(m.g(torch.cat([m.a(x), m.b(x)], 1))),
        a=conv(3, 4), b=conv(3, 4), g=conv(8, 8, groups=2), out=conv(8, 4),
    )  # fmt: skip
    out = check(net, image(), others=OTHER)
    assert out.pruned == ["g"]
    assert "its groups cannot keep equally many" in out.structure.group("a").reason


@pytest.mark.parametrize("multiplier", [1, 3])
def test_depthwise_convolution(multiplier: int) -> None:
    out = between(conv(8, 8 * multiplier, groups=8), made=8 * multiplier)
    layer = out.layer("layer")
    assert (layer.groups, layer.in_channels, layer.out_channels) == (4, 4, 4 * multiplier)


@pytest.mark.parametrize(("groups", "made"), [(1, 6), (2, 12), (8, 8), (8, 16)])
def test_transposed_convolution(groups: int, made: int) -> None:
    out = between(nn.ConvTranspose2d(8, made, 2, 2, groups=groups), made=made)
    layer = out.layer("layer")
    assert (layer.in_channels, layer.out_channels) == (4, made // 2)
    assert layer.weight.shape[:2] == (4, made // 2 // layer.groups)


def test_residual_stage_is_one_group() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        for block in (m.b, m.c):
            y = F.relu(y + block(y))
        return m.out(y)

    out = check(Net(forward, a=conv(3, 8), b=conv(8, 8), c=conv(8, 8), out=conv(8, 4)), image(), others=OTHER)
    assert out.pruned == ["a"]
    assert {m.path for m in out.structure.group("a").producers} == {"a", "b", "c"}
    assert {m.path for m in out.structure.group("a").consumers} == {"b", "c", "out"}


def test_a_mask_of_one_channel_is_never_coupled() -> None:
    net = Net(lambda m, x: (lambda y: m.out(y * m.b(y).sigmoid()))(m.a(x)), a=conv(3, 8), b=conv(8, 1), out=conv(8, 4))
    out = check(net, image(), others=OTHER)
    assert out.pruned == ["a"]
    assert out.structure.group("b").fixed.all()


def test_squeeze_and_excite() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        gate = m.expand(F.relu(m.squeeze(F.adaptive_avg_pool2d(y, 1))))
        again = m.again(y.mean((2, 3))).sigmoid().view(x.size(0), 8, 1, 1)
        return m.out(y * gate.sigmoid() * again)

    net = Net(
        forward, a=conv(3, 8), squeeze=nn.Conv2d(8, 4, 1), expand=nn.Conv2d(4, 8, 1), again=nn.Linear(8, 8),
        out=conv(8, 4),
    )  # fmt: skip
    out = check(net, image(), others=OTHER)
    assert out.pruned == ["a", "squeeze"]
    assert {m.path for m in out.structure.group("a").producers} == {"a", "expand", "again"}


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False), nn.InstanceNorm2d(8), nn.InstanceNorm2d(8, affine=True),
        nn.InstanceNorm2d(8, affine=True, track_running_stats=True), nn.GroupNorm(2, 8), nn.GroupNorm(1, 8),
        nn.GroupNorm(8, 8), nn.GroupNorm(2, 8, affine=False), nn.PReLU(8), nn.PReLU(1),
    ],
    ids=repr,
)  # fmt: skip
def test_norms_of_images(norm: nn.Module) -> None:
    out = between(norm)
    assert out.layer("a").out_channels == 4
    sizes = [getattr(out.layer("layer"), name, 4) for name in ("num_features", "num_channels")]
    assert sizes == [4, 4]


def test_layer_norm_over_whole_images() -> None:
    net = Net(lambda m, x: m.out(m.n(m.a(x))), a=conv(3, 8), n=nn.LayerNorm([8, 4, 4]), out=conv(8, 4))
    assert check(net, image(2, 3, 4)).layer("n").normalized_shape == (4, 4, 4)


@pytest.mark.parametrize(
    "norm",
    [
        nn.LayerNorm(8), nn.LayerNorm(8, elementwise_affine=False), nn.LayerNorm(8, bias=False), nn.RMSNorm(8),
        nn.RMSNorm(8, elementwise_affine=False),
    ],
    ids=repr,
)  # fmt: skip
def test_norms_of_tokens(norm: nn.Module) -> None:
    assert in_tokens(norm).layer("layer").normalized_shape == (4,)


def test_a_norm_without_weights_that_is_called_twice_ties_its_callers() -> None:
    net = Net(
        lambda m, x: m.out(m.n(m.a(x)) @ m.n(m.b(x)).transpose(1, 2)),
        a=nn.Linear(8, 8), b=nn.Linear(8, 8), n=nn.LayerNorm(8, elementwise_affine=False), out=nn.Linear(5, 4),
    )  # fmt: skip
    assert check(net, tokens()).pruned == ["a"]
    apart = Net(
        lambda m, x: m.out(m.n(m.a(x))) + m.out2(m.n(m.b(x))),
        a=nn.Linear(8, 8), b=nn.Linear(8, 8), n=nn.LayerNorm(8, elementwise_affine=False), out=nn.Linear(8, 4),
        out2=nn.Linear(8, 4),
    )  # fmt: skip
    assert check(apart, tokens()).pruned == ["a"]


def test_layer_scale() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.out(y + m.scale * m.b(y))

    net = Net(forward, a=conv(3, 8), b=conv(8, 8), scale=torch.ones(8, 1, 1), out=conv(8, 4))
    assert check(net, image(), others=OTHER).gm.get_parameter("scale").shape == (4, 1, 1)


def test_embeddings() -> None:
    words = torch.arange(10).view(2, 5)
    net = Net(
        lambda m, x: m.out(m.words(x) + m.places), words=nn.Embedding(10, 8), places=torch.randn(5, 8),
        out=nn.Linear(8, 4),
    )  # fmt: skip
    out = check(net, words, others=((words[:1],),))
    assert (out.layer("words").embedding_dim, out.layer("words").num_embeddings) == (4, 10)
    limited = Net(lambda m, x: m.out(m.words(x)), words=nn.Embedding(10, 8, max_norm=1.0), out=nn.Linear(8, 4))
    assert [o.kind for o in structure_of(limited, words).opaque] == ["an embedding that limits the norms of its rows"]


def test_a_linear_layer_tied_to_an_embedding() -> None:
    net = Net(
        lambda m, x: m.out(F.relu(m.mid(m.words(x)))), words=nn.Embedding(10, 8), mid=nn.Linear(8, 8),
        out=nn.Linear(8, 10, bias=False),
    )  # fmt: skip
    net.out.weight = net.words.weight
    out = check(net, torch.arange(10).view(2, 5))
    assert out.layer("out").weight is out.layer("words").weight
    assert out.layer("words").weight.shape == (10, 4)


def test_two_paths_to_one_parameter() -> None:
    net = Net(lambda m, x: m.out(m.a(x)) + m.out2(m.b(x)), a=conv(3, 8), b=conv(3, 8), out=conv(8, 4), out2=conv(8, 4))
    net.b.weight = net.a.weight
    out = check(net, image(), others=OTHER)
    assert out.pruned == ["a"]
    assert out.layer("a").weight is out.layer("b").weight
    assert out.layer("a").bias is not out.layer("b").bias


def test_a_layer_called_twice() -> None:
    net = Net(lambda m, x: m.out(F.relu(m.b(F.relu(m.b(m.a(x)))))), a=conv(3, 8), b=conv(8, 8), out=conv(8, 4))
    out = check(net, image(), others=OTHER)
    assert out.pruned == ["a"]
    assert out.layer("b").weight.shape[:2] == (4, 4)


def test_half_precision() -> None:
    net = Net(lambda m, x: m.out(m.n(m.a(x))), a=nn.Linear(8, 8), n=nn.LayerNorm(8), out=nn.Linear(8, 4))
    for dtype in (torch.bfloat16, torch.float16):
        out = check(net.to(dtype), tokens().to(dtype))
        assert out.layer("a").weight.dtype == dtype
