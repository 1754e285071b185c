"""One process of a distributed training run: ``python distributed_worker.py rank folder``."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import fxq
from tests.qat.networks import images, loss, prepared

_STEPS = 4


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    torch.save({scales: run(rank, scales) for scales in ("observed", "learned")}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def run(rank: int, scales: str) -> dict[str, Any]:
    model = prepared(scales=scales)
    parallel = DistributedDataParallel(model)
    schedule = fxq.qat.Schedule(parallel, fake_quant=1, freeze_observers=3, freeze_batch_norm=3)
    optimiser = torch.optim.SGD(parallel.parameters(), lr=0.02)
    for step in range(_STEPS):
        torch.manual_seed(step)
        optimiser.zero_grad()
        loss(parallel((1 + rank) * images(2 * step + rank)), step).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    parallel.eval()
    with torch.no_grad():
        out = parallel(images(99))  # which takes the buffers from the first process once more
    int8 = fxq.compile(model.eval(), images(), target="reference")
    return {"state": model.state_dict(), "out": out, "int8": int8(images(99))}


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
