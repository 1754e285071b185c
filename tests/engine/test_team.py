"""The engine on the threads of torch's OpenMP runtime while they spin: the same results, never in a forked child."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from tests.engine.programs import ISAS
from tests.engine.test_threads import chain
from tests.engine.test_workers import TASKS

pytestmark = pytest.mark.skipif(not ISAS, reason="the engine is not built")

FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")


def in_a_process_of_its_own(*lines: str) -> None:
    """Run a script that can tell whether the engine's own threads were made: those of other tests are not there."""
    start = (
        "import os, time, torch",
        "import fxq.engine.library",
        "torch.set_num_threads(2)",
        "def operator():",
        "    torch.zeros(1 << 20).add(1)",
    )
    command = [sys.executable, "-c", "\n".join((*start, *lines))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("images", [1, 2, 7])
def test_results_behind_an_operator_are_the_same(threads: int, images: int) -> None:
    program = chain((1, 2))
    x = torch.randint(0, 256, (images, 14, 14, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    (wanted,) = program.run([x], threads=1)
    for _ in range(5):
        torch.zeros(1 << 20).add(1)
        assert torch.equal(program.run([x], threads=threads)[0], wanted)


@pytest.mark.skipif(not TASKS.is_dir(), reason="the system does not show threads")
def test_a_call_behind_an_operator_leaves_the_engines_threads_asleep() -> None:
    """On a busy machine the operator's threads may not have a core when the engine looks; in some call they have."""
    in_a_process_of_its_own(
        "from tests.engine.test_workers import layers, rest, sleeps, workers",
        "program, x = layers(20, 128)",
        "program.run([x], threads=2)",
        "time.sleep(0.2)",
        "program.run([x], threads=2)  # behind a pause: makes the engine's own threads",
        "end = time.monotonic() + 10",
        "while not workers():  # a new thread names itself",
        "    assert time.monotonic() < end",
        "    time.sleep(0.001)",
        "def borrows():",
        "    rest()",
        "    before = sum(map(sleeps, workers()))",
        "    operator()",
        "    program.run([x], threads=2)",
        "    rest()",
        "    return sum(map(sleeps, workers())) == before",
        "end = time.monotonic() + 60",
        "while not borrows():",
        "    assert time.monotonic() < end",
    )


@FORKS
def test_a_forked_child_does_not_wait_for_the_team_of_its_parent() -> None:
    in_a_process_of_its_own(
        "from tests.engine.test_threads import chain",
        "program, x = chain(), torch.zeros(1, 14, 14, 48, dtype=torch.uint8)",
        "operator()",
        "program.run([x], threads=2)",
        "child = os.fork()",
        "if child == 0:",
        "    program.run([x], threads=2)",
        "    os._exit(0)",
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))",
    )


@FORKS
def test_a_child_that_loads_the_engine_first_does_not_wait_either() -> None:
    in_a_process_of_its_own(
        "operator()",
        "child = os.fork()",
        "if child == 0:",
        "    from tests.engine.test_threads import chain",
        "    chain().run([torch.zeros(1, 14, 14, 48, dtype=torch.uint8)], threads=2)",
        "    os._exit(0)",
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))",
    )


@FORKS
def test_a_child_that_makes_the_first_plan_does_not_wait_either() -> None:
    """Plans are made of weights by torch's own operations, which run on the parent's threads where they are large."""
    in_a_process_of_its_own(
        "from torch import nn",
        "import fxq",
        "torch.manual_seed(0)",
        "x = torch.randn(2, 3, 12, 12)",
        "net = nn.Sequential(nn.Conv2d(3, 256, 3), nn.ReLU(), nn.Conv2d(256, 512, 3), nn.ReLU()).eval()",
        "gm = fxq.compile(net, x, calibration=[x], target='native', progress=False)",
        "operator()",
        "child = os.fork()",
        "if child == 0:",
        "    gm(torch.randn(2, 3, 16, 16))",
        "    os._exit(0 if torch.get_num_threads() == 2 else 1)",
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))",
    )
