"""What fusing and int8 each do to the size and speed of a plain CNN with 70 million parameters.

    python -m examples.cnn_size_latency

Four versions of one network: float, fused, int8 without fusing, and both. Batch 32, 224 x 224 images.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import fxq
from examples.models import PlainCnn
from examples.size import disk_bytes
from fxq.analysis.timing import format_time

_IMAGE = (3, 224, 224)


def main() -> None:
    """Compile the four versions and compare them."""
    options = _options()
    torch.manual_seed(0)
    model = PlainCnn().eval()
    example = torch.randn(options.batch, *_IMAGE)
    calibration = [torch.randn(8, *_IMAGE) for _ in range(4)]
    Console().print(comparison(versions(model, example, calibration), example, budget_s=options.budget))


def versions(model: nn.Module, example: Tensor, calibration: list[Tensor]) -> dict[str, nn.Module]:
    """Return the network as it is, fused, in int8 layer by layer, and in int8 with its layers fused."""
    return {
        "float": model,
        "fused": fxq.compile(model, example, recipe="float"),
        "int8": fxq.compile(model, example, calibration=calibration, recipe="int8", passes=int8_without_fusing()),
        "fused int8": fxq.compile(model, example, calibration=calibration, recipe="int8"),
    }


def int8_without_fusing() -> fxq.PassManager:
    """Return the int8 passes less those that fuse layers."""
    passes = fxq.pipeline(fxq.Recipe("int8"), "auto")
    for name in passes.names():
        if name.startswith("fuse"):
            passes = passes.without(name)
    return passes


def comparison(models: Mapping[str, nn.Module], example: Tensor, *, budget_s: float) -> Table:
    """Return a table of the size on disk and the latency of ``models``, and how far their outputs are from float."""
    result = fxq.benchmark(models, example, budget_s=budget_s)
    first = next(iter(models))
    with torch.inference_mode():
        outputs = {name: model(example) for name, model in models.items()}
    title = f"Plain CNN, input {list(example.shape)}, {result.threads} threads"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for heading in ("size on disk", "latency", "speed-up", "largest difference in probability"):
        table.add_column(heading, justify="right")
    for name, model in models.items():
        row = result[name]
        difference = float((outputs[name] - outputs[first]).abs().max())
        size = f"{disk_bytes(model) / 1e6:.1f} MB"
        table.add_row(name, size, format_time(row.median_s), f"{row.ratio:.2f}x", f"{difference:.5f}")
    return table


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--budget", type=float, default=30.0, metavar="SECONDS", help="for the timings")
    return parser.parse_args()


if __name__ == "__main__":
    main()
