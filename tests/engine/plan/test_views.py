"""Views against torch: the same moves on a tensor and on the view of a buffer that holds it."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor

from fxq.engine.abi import Type
from fxq.engine.plan import moves
from fxq.engine.plan.views import BATCH, Buffer, View, maps, whole

HEIGHT, WIDTH, CHANNELS = 4, 6, 12


def elements(view: View) -> Tensor:
    """Return what a view of an image shows, with the number of each element of the buffer, and an image in front."""
    steps = (view.buffer.width * view.buffer.channels, view.buffer.channels, 1)
    index = np.full((1,), sum(o * s for o, s in zip(view.origin, steps, strict=True)))
    for dim in view.dims:
        along = np.zeros(1, np.int64)
        for axis in dim if dim != (BATCH,) else ():
            step = axis.y * steps[0] + axis.x * steps[1] + axis.c * steps[2]
            along = (along[:, None] + np.arange(axis.size)[None] * step).reshape(-1)
        index = index[..., None] + along
    return torch.from_numpy(index[0])


def start() -> tuple[View, Tensor]:
    buffer = Buffer(HEIGHT, WIDTH, CHANNELS, Type.U8)
    numbers = torch.arange(HEIGHT * WIDTH * CHANNELS).reshape(1, HEIGHT, WIDTH, CHANNELS).permute(0, 3, 1, 2)
    return maps(buffer), numbers


def test_random_moves() -> None:
    rng = random.Random(0)
    done = 0
    for _ in range(300):
        view, tensor = start()
        for _ in range(4):
            found = step(view, tensor, rng)
            if found is None:
                break
            view, tensor = found
            done += 1
            assert torch.equal(elements(view), tensor)
    assert done > 500


def step(view: View, tensor: Tensor, rng: random.Random) -> tuple[View, Tensor] | None:
    kind, count = rng.choice(("permute", "narrow", "reshape")), tensor.dim()
    if kind == "permute":
        order = [0, *rng.sample(range(1, count), count - 1)]
        return moves.permute(view, order), tensor.permute(order)
    if kind == "narrow":
        dim = rng.randrange(1, count) if count > 1 else 0
        size = tensor.shape[dim]
        first = rng.randrange(size)
        length = rng.randrange(1, size - first + 1)
        try:
            return moves.narrow(view, dim, first, length), tensor.narrow(dim, first, length)
        except LookupError:
            return None
    shape = [-1, *factors(tensor[0].numel(), rng)]
    found = moves.reshape(view, shape)
    return None if found is None else (found, tensor.reshape(1, *shape[1:]))


def factors(number: int, rng: random.Random) -> list[int]:
    found = []
    while number > 1 and len(found) < 4:
        divisor = rng.choice([d for d in range(1, number + 1) if number % d == 0])
        found.append(divisor)
        number //= divisor
    return [*found, number]


def test_a_halo_forbids_that_rows_follow_each_other() -> None:
    view, _ = start()
    rows_and_columns = (*view.dims[2], *view.dims[3])
    assert moves.merge(view, rows_and_columns) is not None
    assert not view.buffer.widen((0, 1, 0, 0))
    other, _ = start()
    assert other.buffer.widen((0, 1, 0, 0))
    assert moves.merge(other, (*other.dims[2], *other.dims[3])) is None


def test_every_second_pixel() -> None:
    region = whole(Buffer(4, 6, 3, Type.U8)).every(2, 3, 1, 2, 2, 2)
    assert region.size == (2, 2, 3)
    assert region.origin == (1, 2, 0)
    assert (region.y.y, region.x.x) == (2, 3)
