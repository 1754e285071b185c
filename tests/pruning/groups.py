"""Small networks, and their groups written out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxq.structure.group import Group, Indices, Member


def member(
    path: str, kind: str, role: str, units: Indices | int, dim: int = 0, parameter: str = "weight", parts: int = 1
) -> Member:
    """A member; ``units`` as a number stands for that many units of one position each."""
    indices = np.arange(units) if isinstance(units, int) else np.asarray(units, dtype=np.int64)
    return Member(path, parameter, kind, role, dim, indices, parts)


def norm(path: str, units: Indices | int) -> tuple[Member, ...]:
    """The members of a batch norm."""
    names = ("weight", "bias", "running_mean", "running_var")
    return tuple(member(path, "batch_norm", "scale", units, parameter=n) for n in names)


def group(name: str, size: int, *members: Member, balance: tuple[Indices, ...] = (), fixed: int = 0) -> Group:
    """A group whose first ``fixed`` units must stay."""
    return Group(name, size, members, np.arange(size) < fixed, "they are protected" if fixed else "", balance)


def traced(model: nn.Module, seed: int = 0) -> Any:  # a GraphModule, of whose layers mypy knows nothing
    """The graph of ``model`` in evaluation mode and float64, every parameter and statistic random."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.copy_(values.abs() + 0.5 if name.endswith("running_var") else values)
    return fx.symbolic_trace(model)


class Plain(nn.Module):
    """conv -> batch norm -> relu -> conv -> relu -> flatten -> linear, on images of 3 x 4 x 4."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 5, 3)
        self.fc = nn.Linear(5 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.conv2(x))
        return self.fc(torch.flatten(x, 1))


PLAIN = (
    group("conv1", 4, member("conv1", "conv2d", "out", 4), *norm("bn1", 4), member("conv2", "conv2d", "in", 4, dim=1)),
    group(
        "conv2",
        5,
        member("conv2", "conv2d", "out", 5),
        member("conv2", "conv2d", "scale", 5, parameter="bias"),
        member("fc", "linear", "in", np.repeat(np.arange(5), 4), dim=1),
    ),
)


class Residual(nn.Module):
    """A residual stage: a block with a projection shortcut, and one with the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 2, 1)
        self.a = nn.Conv2d(2, 3, 3, padding=1, bias=False)
        self.bn_a = nn.BatchNorm2d(3)
        self.b = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn_b = nn.BatchNorm2d(4)
        self.shortcut = nn.Conv2d(2, 4, 1, bias=False)
        self.bn_shortcut = nn.BatchNorm2d(4)
        self.c = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.bn_b(self.b(F.relu(self.bn_a(self.a(x)))))
        x = F.relu(y + self.bn_shortcut(self.shortcut(x)))
        x = F.relu(self.c(x) + x)
        return self.fc(x.mean((2, 3)))


RESIDUAL = group(
    "b",
    4,
    member("b", "conv2d", "out", 4),
    member("shortcut", "conv2d", "out", 4),
    member("c", "conv2d", "out", 4),
    *norm("bn_b", 4),
    *norm("bn_shortcut", 4),
    member("c", "conv2d", "scale", 4, parameter="bias"),
    member("c", "conv2d", "in", 4, dim=1),
    member("fc", "linear", "in", 4, dim=1),
)


class Grouped(nn.Module):
    """conv -> depthwise with two filters a channel -> convolution in two groups -> convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.depthwise = nn.Conv2d(4, 8, 3, padding=1, groups=4, bias=False)
        self.grouped = nn.Conv2d(8, 6, 3, padding=1, groups=2)
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.grouped(self.depthwise(F.relu(self.first(x))))))


_PAIRS = np.repeat(np.arange(4), 2)
GROUPED = (
    group(
        "first",
        4,
        member("first", "conv2d", "out", 4),
        member("first", "conv2d", "scale", 4, parameter="bias"),
        member("depthwise", "conv2d", "scale", _PAIRS),
        member("grouped", "conv2d", "in", _PAIRS, dim=1, parts=2),
        balance=(np.array([0, 0, 1, 1]),),
    ),
    group(
        "grouped",
        6,
        member("grouped", "conv2d", "out", 6),
        member("grouped", "conv2d", "scale", 6, parameter="bias"),
        member("last", "conv2d", "in", 6, dim=1),
        balance=(np.repeat(np.arange(2), 3),),
    ),
)


class Heads(nn.Module):
    """Two heads of width 3: queries, keys and values in one packed projection, heads joined by another."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 18)
        self.out = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).permute(0, 2, 1, 3).flatten(2))


_HEADS = np.tile(np.repeat(np.arange(2), 3), 3)
HEADS = group(
    "qkv",
    2,
    member("qkv", "linear", "out", _HEADS),
    member("qkv", "linear", "scale", _HEADS, parameter="bias"),
    member("out", "linear", "in", np.repeat(np.arange(2), 3), dim=1),
)


class Joined(nn.Module):
    """Two convolutions, concatenated, and added to a third: one group, of which the two have some units each."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 2, 1)
        self.right = nn.Conv2d(3, 3, 1)
        self.whole = nn.Conv2d(3, 5, 1)
        self.after = nn.Conv2d(5 + 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.left(x), self.right(x)], 1) + self.whole(x)
        return self.after(torch.cat([x, y], 1))


JOINED = group(
    "left",
    5,
    member("left", "conv2d", "out", np.array([0, 1])),
    member("right", "conv2d", "out", np.array([2, 3, 4])),
    member("whole", "conv2d", "out", 5),
    member("left", "conv2d", "scale", np.array([0, 1]), parameter="bias"),
    member("right", "conv2d", "scale", np.array([2, 3, 4]), parameter="bias"),
    member("whole", "conv2d", "scale", 5, parameter="bias"),
    member("after", "conv2d", "in", np.array([-1, -1, -1, 0, 1, 2, 3, 4]), dim=1),
)
