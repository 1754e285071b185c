"""One tool on one network, in a process of its own: what it did is written to a file after every stage.

    python -m benchmarks.pruning_peers.worker fxq resnet50 result.json --ratio 0.5 --runs 3 --threads 2

A run that does not end can be killed, and one that takes the process with it is seen.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from benchmarks import pruning_zoo
from benchmarks.pruning_peers import PEERS
from benchmarks.pruning_peers.peer import Peer
from benchmarks.show import write_json
from fxq.analysis.profile import profile

_BATCHES = (1, 3)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit status."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model, example = pruning_zoo.build(options.model)
    batches = [pruning_zoo.batch(options.model, size, seed=1) for size in _BATCHES]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        examine(PEERS[options.peer], model, example, batches, options.ratio, options.runs, options.result)
    return 0


def examine(
    peer: Peer, model: nn.Module, example: Tensor, batches: Sequence[Tensor], ratio: float, runs: int, path: Path
) -> None:
    """Prune copies of ``model`` ``runs`` times, count and run the result, and write all of it to ``path``.

    The file holds ``stage``, what is being done, and ``failure`` where that failed, as well as what was found so far:
    ``seconds``, the median of ``times``, and ``cpu_seconds``, that of the process's own time; MACs and parameters
    before and after; whether the result ``runs`` on every batch with outputs of the dense shapes; the ``check`` with
    its own time.
    """
    found: dict[str, Any] = {"stage": "pruning", "failure": None, "times": [], "cpu_times": []}
    write_json(path, found)
    try:
        for stage in _stages(peer, model, example, batches, ratio, runs, found):
            found["stage"] = stage
            write_json(path, found)
    except Exception as error:  # a tool's failure is a result: it belongs in the table
        found["failure"] = f"{type(error).__name__}: {error}"
    write_json(path, found)


def _stages(
    peer: Peer,
    model: nn.Module,
    example: Tensor,
    batches: Sequence[Tensor],
    ratio: float,
    runs: int,
    found: dict[str, Any],
) -> Any:
    """Fill ``found``, and yield the name of each stage as it begins."""
    with torch.no_grad():
        model(example)  # so that no tool pays for the first call of the kernels
    for _ in range(runs):
        own = copy.deepcopy(model)
        start, worked = time.perf_counter(), time.process_time()
        pruned = peer.prune(own, example, ratio)
        found["times"].append(time.perf_counter() - start)
        found["cpu_times"].append(time.process_time() - worked)
        found["seconds"], found["cpu_seconds"] = (statistics.median(found[k]) for k in ("times", "cpu_times"))
        yield "pruning"
    yield "counting"
    found["before"], found["after"] = _counts(model, example), _counts(pruned, example)
    yield "forward"
    _run(model, pruned, batches)
    found["runs"] = list(map(len, batches))
    if peer.check is not None:
        yield "check"
        start, worked = time.perf_counter(), time.process_time()
        check = peer.check(copy.deepcopy(model), example, ratio)
        found["check"] = {
            "difference": check.difference, "compared": check.compared, "note": check.note,
            "seconds": max(time.perf_counter() - start - found["seconds"], 0.0),
            "cpu_seconds": max(time.process_time() - worked - found["cpu_seconds"], 0.0),
        }  # fmt: skip
    yield "done"


def _counts(model: nn.Module, example: Tensor) -> dict[str, int]:
    counted = profile(model, example)
    return {"macs": counted.macs, "params": counted.params}


def _run(model: nn.Module, pruned: nn.Module, batches: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for batch in batches:
            wanted, given = (_shapes(m(batch)) for m in (model, pruned))
            if given != wanted:
                raise ValueError(f"outputs are {given}, not {wanted}")


def _shapes(outputs: Any) -> list[list[int]]:
    return [list(leaf.shape) for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pruning_peers.worker")
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("model")
    parser.add_argument("result", type=Path)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
