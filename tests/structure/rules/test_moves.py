from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.structure.pruned import Net, check, image, structure_of, tokens

OTHER = ((image(3, 3, 12),),)


def conv(inputs: int, outputs: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def moved(function: Callable[[Tensor], Tensor], channels: int, left: int, **layers: Any) -> Net:
    """A convolution, what ``function`` does with it, and a convolution that reads the result."""
    return Net(lambda m, x: m.out(function(m.a(x))), a=conv(3, channels), out=conv(left, 4), **layers)


def test_cat_lays_identities_end_to_end() -> None:
    net = Net(lambda m, x: m.out(torch.cat([m.a(x), x, m.b(x)], 1)), a=conv(3, 8), b=conv(3, 6), out=conv(17, 4))
    out = check(net, image(), others=OTHER)
    assert out.layer("out").weight.shape[1] == 4 + 3 + 3
    columns = [*out.keep["a"].nonzero()[0], 8, 9, 10, *(11 + out.keep["b"].nonzero()[0])]
    assert torch.equal(out.layer("out").weight, net.out.weight[:, columns])


def test_cat_of_slices_never_runs_empty() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = m.a(x), m.b(x)
        return m.out(torch.cat([a[:, :2], b[:, :2]], 1)) + m.rest(torch.cat([a, b], 1))

    net = Net(forward, a=conv(3, 8), b=conv(3, 8), out=conv(4, 4), rest=conv(16, 4))
    for seed in range(4):
        assert check(net, image(), seed=seed, ratio=0.8).layer("out").weight.shape[1] >= 1


def test_chunk() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = m.a(x).chunk(2, 1)
        return m.out(a * torch.sigmoid(b))

    out = check(Net(forward, a=conv(3, 8), out=conv(4, 4)), image(), others=OTHER)
    assert out.structure.group("a").size == 4, "the halves are multiplied"
    assert out.layer("a").out_channels == 4


def test_split() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        a, b, c = m.a(x).split([2, 3, 4], 1)
        return m.out(a) + m.rest(torch.cat([b, c], 1))

    out = check(Net(forward, a=conv(3, 9), out=conv(2, 4), rest=conv(7, 4)), image(), others=OTHER)
    group = out.structure.group("a")
    assert group.size == 9
    assert sorted(map(list, group.cover)) == [[0, 1], [2, 3, 4], [5, 6, 7, 8]]


def test_slices_that_overlap() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.out(y[:, :3]) + m.rest(y[:, 2:]) + m.last(y[..., 1:7, :, :])

    check(Net(forward, a=conv(3, 8), out=conv(3, 4), rest=conv(6, 4), last=conv(6, 4)), image(), others=OTHER)


@pytest.mark.parametrize(
    ("function", "features"),
    [
        (lambda y: torch.flatten(y, 1), 8 * 16),
        (lambda y: y.view(y.size(0), -1), 8 * 16),
        (lambda y: y.view(-1, 8 * 16), 8 * 16),
        (lambda y: y.reshape(y.shape[0], y.shape[1] * 16), 8 * 16),
        (lambda y: y.permute(0, 2, 3, 1).flatten(1), 8 * 16),
        (lambda y: F.adaptive_avg_pool2d(y, 1).squeeze(-1).squeeze(-1), 8),
        (lambda y: y.mean((2, 3)), 8),
    ],
)
def test_flatten_to_linear(function: Callable[[Tensor], Tensor], features: int) -> None:
    net = Net(lambda m, x: m.out(function(m.a(x))), a=conv(3, 8), out=nn.Linear(features, 4))
    out = check(net, image(2, 3, 4), others=((image(5, 3, 4),),))
    assert out.layer("out").in_features == features // 2


def test_permute_and_transpose() -> None:
    net = Net(lambda m, x: m.out(m.a(x).permute(0, 2, 3, 1).transpose(1, 2)), a=conv(3, 8), out=nn.Linear(8, 4))
    assert check(net, image(), others=OTHER).layer("out").in_features == 4


def test_reshape_with_baked_sizes_is_rewritten() -> None:
    net = moved(lambda y: y.view(2, 2, 4, 64).flatten(1, 2).view(2, 8, 8, 8), 8, 8)
    assert check(net, image()).layer("a").out_channels == 4


def test_a_view_in_the_shape_of_another_value_ties_the_two() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.out(m.b(y).flatten(1).view(y.shape))

    out = check(Net(forward, a=conv(3, 8), b=conv(8, 8), out=conv(8, 4)), image(), others=OTHER)
    assert out.pruned == ["a"], "b goes with a"


def test_pixel_shuffle_and_back() -> None:
    shuffled = check(moved(lambda y: F.pixel_shuffle(y, 2), 16, 4), image(), others=OTHER)
    assert shuffled.layer("a").out_channels == 8
    back = check(moved(lambda y: F.pixel_unshuffle(y, 2), 6, 24), image(), others=OTHER)
    assert back.layer("out").in_channels == 12


@pytest.mark.parametrize(("padding", "left"), [((0, 0, 0, 0, 3, 5), 16), ((1, 1, 2, 0), 8), ((0, 0, 0, 0, -2, 0), 6)])
def test_padding(padding: tuple[int, ...], left: int) -> None:
    check(moved(lambda y: F.pad(y, padding), 8, left), image(), others=OTHER)


def test_padding_of_channels_beside_a_shortcut() -> None:
    """The parameter-free shortcut of CIFAR's residual networks."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.out(F.relu(m.b(y) + F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))))

    out = check(Net(forward, a=conv(3, 8), b=conv(8, 16, stride=2), out=conv(16, 4)), image(), others=OTHER)
    assert out.structure.group("a").size == 16
    assert 1 <= out.layer("a").out_channels < 8


def test_expand() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        gate = torch.sigmoid(m.gate(y))
        return m.out(y * gate.expand(-1, 8, -1, -1) + F.adaptive_avg_pool2d(y, 1).expand_as(y))

    out = check(Net(forward, a=conv(3, 8), gate=conv(8, 1), out=conv(8, 4)), image(), others=OTHER)
    assert out.layer("a").out_channels == 4


def test_stack_and_unbind() -> None:
    net = Net(
        lambda m, x: m.out(torch.stack([m.a(x), m.b(x)]).unbind(0)[1]), a=conv(3, 8), b=conv(3, 8), out=conv(8, 4)
    )
    assert check(net, image(), others=OTHER).pruned == ["a"]


def test_what_is_taken_apart_stays() -> None:
    groups = structure_of(moved(lambda y: y + torch.stack(y.unbind(1), 1), 8, 8), image()).groups
    assert groups[0].fixed.all()
    picked = structure_of(moved(lambda y: y * y[:, 3].unsqueeze(1), 8, 8), image()).groups
    assert picked[0].fixed.all()
    assert "picks one of its positions" in picked[0].reason


def test_a_channel_that_is_stretched_stays() -> None:
    """It is sliced out of others that may go, and every channel reads it."""
    out = check(moved(lambda y: y * y[:, 2:3], 8, 8), image(), others=OTHER)
    assert out.structure.group("a").fixed.nonzero()[0].tolist() == [2]


def test_roll_and_cut_tensors_stay() -> None:
    assert structure_of(moved(lambda y: y + y.roll(1, 1), 8, 8), image()).groups[0].fixed.all()
    assert structure_of(moved(lambda y: y[:, ::2], 8, 4), image()).groups[0].fixed.all()
    assert check(moved(lambda y: y + y.roll(1, 2), 8, 8), image()).pruned == ["a"]


def test_a_dictionary_and_a_tuple_of_outputs_are_protected() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.a(x)
        return {"features": y, "rest": (m.out(m.b(y)),)}

    out = check(Net(forward, a=conv(3, 8), b=conv(8, 8), out=conv(8, 4)), image(), others=OTHER)
    assert out.pruned == ["b"]
    assert out.structure.group("a").reason == "it is an output of the model"


def test_inputs_in_a_dictionary() -> None:
    net = Net(lambda m, x: m.out(m.a(x["image"])), a=conv(3, 8), out=conv(8, 4))
    assert structure_of(net, {"image": image()}).group("a").prunable


def test_tokens_by_a_class_token() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = torch.cat([m.token.expand(x.size(0), -1, -1), m.a(x)], 1)
        return m.out(y[:, 0] + y.sum(1))

    net = Net(forward, a=nn.Linear(8, 12), token=torch.randn(1, 1, 12), out=nn.Linear(12, 4))
    out = check(net, tokens(), others=((tokens(4, 3),),))
    assert out.gm.get_parameter("token").shape == (1, 1, 6)


def test_an_entry_of_a_dict_that_the_model_is_given() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = conv(3, 8), conv(3, 8), conv(8, 4)

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.out(self.a(batch["x"]) + self.b(batch["y"]))

    structure = structure_of(Model(), {"x": image(), "y": image()})
    assert not structure.opaque
    assert structure.group("a").prunable
