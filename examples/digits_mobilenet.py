"""The demo: train a small MobileNetV2 on handwritten digits, compile it to int8, and see what that costs and gains.

    python -m examples.digits_mobilenet

Prints the accuracy, size on disk and latency of the float, fused and int8 networks, and the diagrams of every pass.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, Subset

import fxq
from examples.digits_data import Digits, accuracy, load_digits, train
from examples.models import DigitsMobileNet
from examples.size import disk_bytes
from fxq.analysis.timing import format_time

_CALIBRATION_IMAGES = 256


def main() -> None:
    """Train, compile, compare, and list the diagrams."""
    options = _options()
    console = Console()
    digits = load_digits()
    model = trained(digits, options.epochs, console)
    example = digits.train[0][0].unsqueeze(0)
    calibration = DataLoader(Subset(digits.train, range(_CALIBRATION_IMAGES)), batch_size=32)
    models = {
        "float": model,
        "fused": fxq.compile(model, example, recipe="float"),
        "int8": fxq.compile(model, example, calibration=calibration, recipe="int8", diagrams=options.diagrams),
    }
    console.print(comparison(models, digits, budget_s=options.budget))
    console.print("diagrams of the graph before and after each pass:")
    for path in fxq.report(models["int8"]).diagrams:
        console.print(f"  {path}")


def trained(digits: Digits, epochs: int, console: Console) -> nn.Module:
    """Return a `DigitsMobileNet` trained from a fixed seed, in evaluation mode."""
    torch.manual_seed(0)
    model = DigitsMobileNet()
    with console.status("training") as status:
        train(model, digits.train, epochs=epochs, progress=lambda done: status.update(f"epoch {done} of {epochs}"))
    return model


def comparison(models: Mapping[str, nn.Module], digits: Digits, *, budget_s: float) -> Table:
    """Return a table of the accuracy on held-out images, the size on disk and the latency of ``models``."""
    images = torch.stack([digits.test[i][0] for i in range(32)])
    one = fxq.benchmark(models, images[:1], budget_s=budget_s / 2)
    many = fxq.benchmark(models, images, budget_s=budget_s / 2)
    table = Table(title=f"MobileNetV2 on handwritten digits, {one.threads} threads", title_justify="left")
    table.add_column("")
    for heading in ("accuracy", "size on disk", "latency, batch 1", "latency, batch 32"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, model in models.items():
        latencies = [f"{format_time(r[name].median_s)} ({r[name].ratio:.2f}x)" for r in (one, many)]
        table.add_row(name, f"{accuracy(model, digits.test):.2%}", f"{disk_bytes(model) / 1e3:.0f} kB", *latencies)
    return table


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--budget", type=float, default=8.0, metavar="SECONDS", help="for the timings")
    parser.add_argument("--diagrams", default="diagrams", metavar="FOLDER")
    return parser.parse_args()


if __name__ == "__main__":
    main()
