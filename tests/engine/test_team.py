"""The engine on the threads of torch's OpenMP runtime: the same results, none of its own workers, safe after a fork."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, fx, nn

import fxq
from fxq.engine.form import segments
from tests.engine.programs import ISAS
from tests.engine.test_threads import chain
from tests.engine.test_workers import TASKS

pytestmark = pytest.mark.skipif(not ISAS, reason="the engine is not built")


class Tokens(nn.Module):
    """An embedding, which the engine does not have, and a layer behind it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words, self.up, self.down = nn.Embedding(50, width), nn.Linear(width, 64), nn.Linear(64, width)

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.down(torch.relu(self.up(self.words(ids))))
        return y


def compiled(width: int) -> fx.GraphModule:
    torch.manual_seed(0)
    data = [torch.randint(0, 50, (2, 64)) for _ in range(2)]
    with torch.no_grad():
        return fxq.compile(Tokens(width).eval(), data[0], calibration=data, target="native", progress=False)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("images", [1, 2, 7])
def test_results_are_those_of_the_engines_threads(threads: int, images: int) -> None:
    program = chain((1, 2))
    x = torch.randint(0, 256, (images, 14, 14, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    (wanted,) = program.run([x], threads=1)
    for _ in range(5):
        assert torch.equal(program.run([x], threads=threads, team=True)[0], wanted)


@pytest.mark.skipif(not TASKS.is_dir(), reason="the system does not show threads")
def test_none_of_the_engines_threads_is_made() -> None:
    """In a process of its own: other tests have made workers."""
    code = (
        "import time, torch\n"
        "from tests.engine.test_threads import chain\n"
        "from tests.engine.test_workers import workers\n"
        "x = torch.zeros(4, 14, 14, 48, dtype=torch.uint8)\n"
        "program = chain()\n"
        "program.run([x], threads=2, team=True)\n"
        "assert workers() == []\n"
        "program.run([x], threads=2)\n"
        "end = time.monotonic() + 10\n"
        "while not workers():\n"  # a new thread names itself
        "    assert time.monotonic() < end\n"
        "    time.sleep(0.001)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_does_not_wait_for_the_team_of_its_parent() -> None:
    """os.fork itself, because the child must see its parent's threads gone; it answers by its exit status."""
    program = chain()
    x = torch.zeros(1, 14, 14, 48, dtype=torch.uint8)
    (wanted,) = program.run([x], threads=2, team=True)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = int(not torch.equal(program.run([x], threads=2, team=True)[0], wanted))
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
def test_a_child_that_loads_the_engine_first_does_not_wait_either() -> None:
    """In a process of its own, which must not have loaded the engine: its child waits for ever, or answers."""
    code = (
        "import os, torch, fxq.engine.library\n"
        "torch.set_num_threads(2)\n"
        "torch.zeros(1 << 20).add(1)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    from tests.engine.test_threads import chain\n"
        "    chain().run([torch.zeros(1, 14, 14, 48, dtype=torch.uint8)], threads=2, team=True)\n"
        "    os._exit(0)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_segment_behind_an_operator_on_several_threads_shares_them() -> None:
    gm = compiled(512)
    (_, segment), *others = segments(gm)
    assert not others
    assert segment.team
    ids = torch.arange(128).reshape(2, 64) % 50
    with torch.no_grad():
        got, words = gm(ids), gm.words(ids)
        assert torch.allclose(got, segment.reference(words), atol=0.05)


def test_a_segment_behind_a_small_operator_does_not() -> None:
    (_, segment), *_ = segments(compiled(32))
    assert not segment.team
