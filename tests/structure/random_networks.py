"""Random networks of images, from operations that make, mix, move and drop channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RandomNetwork(nn.Module):
    """A chain of random steps over a pool of values of one spatial size, and a classifier.

    Each step reads one or two values of the pool and adds one or two. Modules are made as the steps are drawn; running
    the network repeats them. ``steps`` says what was drawn.
    """

    def __init__(self, seed: int, length: int = 7, size: int = 4) -> None:
        super().__init__()
        self.rng = np.random.default_rng(seed)
        self.layers = nn.ModuleList()
        self.size = size
        self.widths = [3]
        self.program: list[tuple[Callable[..., Any], tuple[int, ...], tuple[int, ...]]] = []
        self.steps: list[str] = []
        self._add(_convolve)
        while len(self.program) < length:
            self._add(STEPS[int(self.rng.integers(len(STEPS)))])
        self.heads = self._heads()
        self.eval()

    def forward(self, x: Tensor) -> Any:
        values = [x]
        for function, read, layers in self.program:
            made = function(*(values[i] for i in read), *(self.layers[i] for i in layers))
            values += made if isinstance(made, tuple) else (made,)
        return tuple(head(function(values[i])) for function, i, head in zip(*self._read, self.heads, strict=True))

    def pick(self, wanted: Callable[[int], bool] = lambda width: True) -> int | None:
        """A random value whose number of channels is ``wanted``; late ones are likelier."""
        fitting = [i for i, width in enumerate(self.widths) if i and wanted(width)]
        return fitting[max(self.rng.integers(len(fitting), size=2))] if fitting else None

    def layer(self, layer: nn.Module) -> int:
        """Keep ``layer`` and return its number."""
        self.layers.append(layer)
        return len(self.layers) - 1

    def choose(self, *options: Any) -> Any:
        """One of ``options``."""
        return options[int(self.rng.integers(len(options)))]

    def _add(self, step: Callable[[RandomNetwork], Any]) -> None:
        drawn = step(self)
        if drawn is None:
            return
        function, read, layers, widths = drawn
        self.program.append((function, read, layers))
        self.widths += widths
        self.steps.append(f"{step.__name__}{read} -> {widths}")

    def _heads(self) -> nn.ModuleList:
        """Read the last value, and the values that nothing has read yet."""
        read = {i for _, inputs, _ in self.program for i in inputs}
        unread = [i for i in range(1, len(self.widths)) if i not in read]
        last = [*unread[:2], len(self.widths) - 1]
        area = self.size**2
        kinds: list[tuple[Callable[[Tensor], Tensor], int]] = [
            (lambda x: torch.flatten(x, 1), area), (lambda x: x.permute(0, 2, 3, 1).flatten(1), area),
            (lambda x: x.reshape(x.size(0), -1), area), (lambda x: x.mean((2, 3)), 1),
        ]  # fmt: skip
        chosen = [kinds[int(self.rng.integers(len(kinds)))] for _ in last]
        self._read = ([f for f, _ in chosen], last)
        return nn.ModuleList(nn.Linear(self.widths[i] * n, 2) for i, (_, n) in zip(last, chosen, strict=True))


# -- steps: what is computed, from which values, by which layers, and how many channels come out ---------------------


def _convolve(net: RandomNetwork) -> Any:
    i = net.pick() or 0
    width = int(net.choose(4, 6, 8, 12))
    kernel, transposed = net.choose((1, False), (3, False), (3, True))
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = net.layer(kind(net.widths[i], width, kernel, padding=kernel // 2, bias=bool(net.choose(True, False))))
    return (lambda x, f: f(x)), (i,), (layer,), [width]


def _grouped(net: RandomNetwork) -> Any:
    groups = int(net.choose(2, 3))
    i = net.pick(lambda width: width % groups == 0 and width > groups)
    if i is None:
        return None
    width = groups * int(net.choose(2, 3, 4))
    kind = net.choose(nn.Conv2d, nn.ConvTranspose2d)
    layer = net.layer(kind(net.widths[i], width, 3, padding=1, groups=groups))
    return (lambda x, f: f(x)), (i,), (layer,), [width]


def _depthwise(net: RandomNetwork) -> Any:
    i = net.pick(lambda width: width <= 12)
    if i is None:
        return None
    width = net.widths[i] * int(net.choose(1, 1, 2))
    kind = net.choose(nn.Conv2d, nn.ConvTranspose2d)
    layer = net.layer(kind(net.widths[i], width, 3, padding=1, groups=net.widths[i]))
    return (lambda x, f: f(x)), (i,), (layer,), [width]


def _norm(net: RandomNetwork) -> Any:
    i = net.pick()
    if i is None:
        return None
    width = net.widths[i]
    options = [nn.BatchNorm2d(width), nn.InstanceNorm2d(width, affine=True), nn.GroupNorm(1, width), nn.PReLU(width)]
    if width % 2 == 0:
        options.append(nn.GroupNorm(2, width))
    return (lambda x, f: f(x)), (i,), (net.layer(net.choose(*options)),), [width]


def _layer_norm(net: RandomNetwork) -> Any:
    i = net.pick()
    if i is None:
        return None
    layer = net.layer(nn.LayerNorm(net.widths[i], elementwise_affine=bool(net.choose(True, False))))
    return (lambda x, f: f(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)), (i,), (layer,), [net.widths[i]]


def _activate(net: RandomNetwork) -> Any:
    i = net.pick()
    functions = (F.relu, torch.sigmoid, lambda x: x * 0.5 + 1, lambda x: F.max_pool2d(x, 3, 1, 1), lambda x: -x.abs())
    return None if i is None else (net.choose(*functions), (i,), (), [net.widths[i]])


def _combine(net: RandomNetwork) -> Any:
    i = net.pick()
    j = net.pick(lambda width: i is not None and width == net.widths[i])
    if i is None or j is None:
        return None
    function = net.choose(torch.add, torch.mul, lambda a, b: a - b, torch.maximum)
    return function, (i, j), (), [net.widths[i]]


def _cat(net: RandomNetwork) -> Any:
    i, j = net.pick(), net.pick()
    if i is None or j is None or net.widths[i] + net.widths[j] > 30:
        return None
    return (lambda a, b: torch.cat([a, b], 1)), (i, j), (), [net.widths[i] + net.widths[j]]


def _chunk(net: RandomNetwork) -> Any:
    i = net.pick(lambda width: width % 2 == 0 and width >= 4)
    return None if i is None else ((lambda x: _two(x.chunk(2, 1))), (i,), (), [net.widths[i] // 2] * 2)


def _two(pieces: Any) -> tuple[Tensor, Tensor]:
    return pieces[0], pieces[1]


def _split(net: RandomNetwork) -> Any:
    i = net.pick(lambda width: width >= 4)
    if i is None:
        return None
    first = int(net.rng.integers(1, net.widths[i]))
    sizes = [first, net.widths[i] - first]
    return (lambda x: _two(x.split(sizes, 1))), (i,), (), sizes


def _slice(net: RandomNetwork) -> Any:
    i = net.pick(lambda width: width >= 4)
    if i is None:
        return None
    start = int(net.rng.integers(0, net.widths[i] - 2))
    stop = int(net.rng.integers(start + 2, net.widths[i] + 1))
    return (lambda x: x[:, start:stop]), (i,), (), [stop - start]


def _pad(net: RandomNetwork) -> Any:
    i = net.pick(lambda width: width <= 12)
    if i is None:
        return None
    before, after = int(net.rng.integers(3)), int(net.rng.integers(3))
    return (lambda x: F.pad(x, (0, 0, 0, 0, before, after))), (i,), (), [net.widths[i] + before + after]


def _shuffle(net: RandomNetwork) -> Any:
    groups = int(net.choose(2, 3))
    i = net.pick(lambda width: width % groups == 0)
    if i is None:
        return None

    def by_views(x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.contiguous().view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)

    return net.choose(by_views, lambda x: F.channel_shuffle(x, groups)), (i,), (), [net.widths[i]]


def _pixels(net: RandomNetwork) -> Any:
    i = net.pick(lambda width: width % 4 == 0)
    if i is None:
        return None
    if net.choose(True, False):
        return (lambda x: F.max_pool2d(F.pixel_shuffle(x, 2), 2)), (i,), (), [net.widths[i] // 4]
    if net.widths[i] > 8:
        return None
    return (lambda x: F.interpolate(F.pixel_unshuffle(x, 2), scale_factor=2)), (i,), (), [net.widths[i] * 4]


def _reshape(net: RandomNetwork) -> Any:
    i = net.pick(lambda width: width % 2 == 0)
    if i is None:
        return None
    half = net.widths[i] // 2

    def scaled(x: Tensor) -> Tensor:
        grid = x.reshape(x.size(0), 2, half, x.size(2), x.size(3))
        return (grid * grid.sum(2, keepdim=True)).flatten(1, 2)

    def halved(x: Tensor) -> Tensor:
        return x.unflatten(1, (half, 2)).sum(2)

    return net.choose((scaled, (i,), (), [net.widths[i]]), (halved, (i,), (), [half]))


def _excite(net: RandomNetwork) -> Any:
    i = net.pick()
    if i is None:
        return None
    width = net.widths[i]
    squeeze, expand = net.layer(nn.Linear(width, 4)), net.layer(nn.Linear(4, width))

    def function(x: Tensor, f: nn.Module, g: nn.Module) -> Tensor:
        return x * torch.sigmoid(g(F.relu(f(F.adaptive_avg_pool2d(x, 1).flatten(1))))).view(x.size(0), -1, 1, 1)

    return function, (i,), (squeeze, expand), [width]


def _mask(net: RandomNetwork) -> Any:
    i = net.pick()
    if i is None:
        return None
    layer = net.layer(nn.Conv2d(net.widths[i], 1, 1))
    return (lambda x, f: x * f(x).sigmoid()), (i,), (layer,), [net.widths[i]]


STEPS = (
    _convolve, _convolve, _convolve, _grouped, _grouped, _depthwise, _norm, _layer_norm, _activate, _combine, _combine,
    _cat, _cat, _chunk, _split, _slice, _pad, _shuffle, _shuffle, _pixels, _reshape, _excite, _mask,
)  # fmt: skip
