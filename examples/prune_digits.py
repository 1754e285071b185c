"""Prune a trained network to half of its multiply-adds, fine-tune it, quantise it, and keep it in a file.

    python -m examples.prune_digits

Prints accuracy, multiply-adds, size of the file and latency after each step.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, Subset

import fxq
from examples.digits_data import Digits, accuracy, load_digits, train
from examples.digits_mobilenet import trained
from fxq.analysis.timing import format_time

_EPOCHS = 10


def main() -> None:
    """Prune, train, compile, save and load, and show what each step costs and gains."""
    console = Console()
    digits = load_digits()
    model = trained(digits, _EPOCHS, console)
    example = digits.train[0][0].unsqueeze(0)

    pruned = fxq.prune(model, example, macs=0.5)
    before = accuracy(pruned, digits.test)
    with console.status("fine-tuning"):
        train(pruned, digits.train, epochs=_EPOCHS // 2)

    calibration = DataLoader(Subset(digits.train, range(256)), batch_size=32)
    int8 = fxq.compile(pruned, example, calibration=calibration)

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "digits.fxq"
        fxq.save(int8, file)
        loaded = fxq.load(file)

    steps = {"dense": model, "pruned, fine-tuned": pruned, "int8, from its file": loaded}
    console.print(comparison(steps, digits))
    console.print(f"accuracy after pruning, before fine-tuning: {before:.2%}")


def comparison(models: dict[str, nn.Module], digits: Digits) -> Table:
    """Return a table of the accuracy on held-out images, the multiply-adds, the size as a file and the latency."""
    images = digits.test.tensors[0][:32]
    times = fxq.benchmark(models, images, budget_s=6)
    table = Table(title=f"MobileNetV2 on handwritten digits, {times.threads} threads", title_justify="left")
    table.add_column("")
    for heading in ("accuracy", "MACs an image", "file", "latency, batch 32"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, model in models.items():
        macs = fxq.profile(model, images[:1]).macs
        row = times[name]
        latency = f"{format_time(row.median_s)} ({row.ratio:.2f}x)"
        table.add_row(
            name, f"{accuracy(model, digits.test):.2%}", f"{macs / 1e6:.2f} M", f"{file_kb(model, images)} kB", latency
        )
    return table


def file_kb(model: nn.Module, images: object) -> int:
    """Return the size in kB of what ``fxq.save`` writes."""
    graph = model if hasattr(model, "graph") else fxq.trace(model, images)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.fxq"
        fxq.save(graph, file)
        return round(file.stat().st_size / 1e3)


if __name__ == "__main__":
    main()
