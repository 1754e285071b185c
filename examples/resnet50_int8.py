"""Compile torchvision's ResNet-50 to int8 and print the report, the error that it adds, and the latency.

    pip install -c constraints.txt -r benchmarks/requirements.txt
    python -m examples.resnet50_int8

The weights are random, so the error is that of these weights; size and latency are those of any ResNet-50.
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console

import fxq
from benchmarks import zoo
from benchmarks.measure import sqnr_db
from examples.size import disk_bytes

_NAME = "resnet50"


def main() -> None:
    """Compile, report, compare, time."""
    options = _options()
    console = Console()
    model, _ = zoo.build(_NAME)
    example = zoo.images(1, options.batch, zoo.image_size(_NAME), seed=0)[0]
    models = {
        "float": model,
        "fused": fxq.compile(model, example, recipe="float"),
        "int8": fxq.compile(model, example, calibration=zoo.calibration(_NAME), recipe="int8", target=options.target),
    }
    print(fxq.report(models["int8"]))
    images = torch.cat(zoo.evaluation(_NAME))
    with torch.inference_mode():
        outputs = {name: compiled(images) for name, compiled in models.items()}
    for name, compiled in models.items():
        sqnr = sqnr_db(outputs["float"], outputs[name])
        console.print(f"{name}: {disk_bytes(compiled) / 1e6:.1f} MB on disk, SQNR against float {sqnr:.1f} dB")
    console.print(fxq.benchmark(models, example, budget_s=options.budget).table())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--target", default="auto", choices=("auto", "native", "onednn", "reference"))
    parser.add_argument("--budget", type=float, default=15.0, metavar="SECONDS", help="for the timings")
    return parser.parse_args()


if __name__ == "__main__":
    main()
