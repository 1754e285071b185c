"""The same bits whatever the number of threads, callers, repetitions and images; memory that is kept and reused."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
import torch
from torch import Tensor

from fxq.engine.abi import Code, Place
from fxq.engine.program import Program
from tests.engine.programs import ISAS, Builder, codes

pytestmark = pytest.mark.skipif(not ISAS, reason="the engine is not built")

SIZE, CHANNELS = 14, 48


def chain(group: tuple[int, ...] = (1,), layers: int = 5) -> Program:
    """Return a program of 3x3 convolutions, one after the other; the later half runs on the largest groups."""
    g = torch.Generator().manual_seed(0)
    b = Builder(group)
    top = len(group) - 1
    x = b.value((SIZE, SIZE, CHANNELS), halo=(1, 1, 1, 1), fill=3, level=0)
    b.operation(Code.LOAD, [b.input((SIZE, SIZE, CHANNELS), b.tensors[x].type)], x)
    for layer in range(layers):
        level = top if layer >= layers // 2 else 0
        holds = top if layer + 1 >= layers // 2 else 0
        y = b.value((SIZE, SIZE, CHANNELS), halo=(1, 1, 1, 1), fill=3, level=holds)
        weights = torch.randint(-127, 128, (CHANNELS, 3, 3, CHANNELS), generator=g).to(torch.int8)
        scale = torch.full((CHANNELS,), 30.0 / (73 * 73 * (9 * CHANNELS) ** 0.5))
        numbers = (weights, -100 * weights.int().sum((1, 2, 3), dtype=torch.int32), scale, torch.zeros(CHANNELS))
        ints = {0: 3, 1: 3, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1, 8: 1, 10: 100, 12: 255}
        b.operation(Code.CONV, [x], y, ints=ints, constants=[b.constant(t) for t in numbers], level=level)
        x = y
    output = b.value((SIZE, SIZE, CHANNELS), place=Place.OUTPUT)
    b.operation(Code.STORE, [x], output, level=top)
    return Program(b.records())


@pytest.fixture(scope="module")
def image() -> Tensor:
    """Nine images."""
    return codes(9, SIZE, SIZE, CHANNELS, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def wanted(image: Tensor) -> Tensor:
    """What one thread gives, image by image."""
    program = chain()
    return torch.cat([program.run([image[i : i + 1]], threads=1)[0] for i in range(len(image))])


@pytest.mark.parametrize("group", [(1,), (2,), (4,), (1, 2), (1, 2, 8)], ids=str)
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_every_number_of_threads_and_images_gives_the_same(
    group: tuple[int, ...], threads: int, image: Tensor, wanted: Tensor
) -> None:
    program = chain(group)
    for images in (1, 2, 3, 7, 9):
        (got,) = program.run([image[:images]], threads=threads)
        assert torch.equal(got, wanted[:images]), images


@pytest.mark.parametrize("images", [1, 5])
def test_forty_runs_give_the_same_bits(images: int, image: Tensor, wanted: Tensor) -> None:
    program = chain((1, 2))
    for _ in range(40):
        assert torch.equal(program.run([image[:images]], threads=2)[0], wanted[:images])


def test_callers_at_the_same_time_do_not_disturb_each_other(image: Tensor, wanted: Tensor) -> None:
    program = chain((1, 2))
    wrong: list[int] = []

    def call(first: int) -> None:
        for _ in range(15):
            (got,) = program.run([image[first : first + 3]], threads=2)
            if not torch.equal(got, wanted[first : first + 3]):
                wrong.append(first)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []
    assert 0 < program.held_bytes < 64 << 20


def test_memory_is_reused(image: Tensor) -> None:
    program = chain((1, 2))
    program.run([image], threads=2)
    program.run([image], threads=2)
    held = program.held_bytes
    for _ in range(5):
        program.run([image], threads=2)
    assert program.held_bytes == held > 0


def test_the_time_of_each_operation_is_reported(image: Tensor) -> None:
    program = chain()
    for images in (1, 9):
        seconds = np.zeros(7)
        program.run([image[:images]], threads=2, seconds=seconds)
        assert (seconds > 0).all()
        assert seconds.sum() < 5


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_runs_programs_of_its_parent(image: Tensor, wanted: Tensor) -> None:
    """os.fork itself, because the child must see the parent's worker threads gone; it answers by its exit status."""
    program = chain()
    program.run([image[:1]], threads=2)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            (got,) = program.run([image[:3]], threads=2)
            status = 0 if bytes(got.numpy()) == bytes(wanted[:3].numpy()) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.equal(program.run([image[:1]], threads=2)[0], wanted[:1])
