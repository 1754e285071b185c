"""Train six inverted residual blocks with quantisation, finish them as int8, and see what that costs and gains.

    python -m examples.inverted_residual_qat

A float network learns scikit-learn's digits, in three channels. It is prepared and trains on with fake quantisation, in
a plain PyTorch loop. The int8 network that comes out is compared with the float one: accuracy on images that neither
saw, size on disk, and latency on 50 images of 64 x 64.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, fx, nn
from torch.utils.data import DataLoader, TensorDataset

import fxq
from examples.digits_data import accuracy, load_digits, train
from examples.models import conv_bn_relu6
from examples.size import disk_bytes
from fxq.analysis.timing import format_time

_CHANNELS = (3, 16, 32, 64, 128, 128, 256)
_STRIDES = (1, 1, 2, 1, 2, 1)
_EXPANSION = 2
_BATCH = 64


class Block(nn.Module):
    """Widen by 1 x 1, filter each channel by 3 x 3, narrow by 1 x 1, add the input: projected where shapes differ."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        wide = channels_in * _EXPANSION
        self.expand = conv_bn_relu6(channels_in, wide, kernel=1)
        self.depthwise = conv_bn_relu6(wide, wide, kernel=3, stride=stride, groups=wide)
        self.project = _conv_bn(wide, channels_out, 1)
        same = stride == 1 and channels_in == channels_out
        self.shortcut = nn.Identity() if same else _conv_bn(channels_in, channels_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, channels_in, H, W]`` to ``[N, channels_out, H / stride, W / stride]``."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return y + self.shortcut(x)


class InvertedResiduals(nn.Module):
    """Six blocks and a linear head, for images of any size."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        pairs = zip(_CHANNELS[:-1], _CHANNELS[1:], _STRIDES, strict=True)
        self.blocks = nn.Sequential(*(Block(a, b, stride) for a, b, stride in pairs))
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(_CHANNELS[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[N, 3, H, W]`` to logits ``[N, classes]``."""
        logits: Tensor = self.classifier(self.dropout(self.blocks(x).mean((2, 3))))
        return logits


def main() -> None:
    """Train, train with quantisation, compile, compare."""
    options = _options()
    console = Console()
    data, held_out = colour_digits(options.side)
    torch.manual_seed(0)
    model = InvertedResiduals()
    start = time.perf_counter()
    with console.status("training in float"):
        train(model, data, epochs=options.epochs)
    console.print(f"trained in float: {options.epochs} epochs, {time.perf_counter() - start:.0f} s")
    start = time.perf_counter()
    with console.status("training with fake quantisation"):
        prepared = train_quantised(model, data, epochs=options.qat_epochs)
    console.print(f"trained with fake quantisation: {options.qat_epochs} epochs, {time.perf_counter() - start:.0f} s")
    models = {"float": model, "fake-quantised": prepared, "int8": fxq.compile(prepared, data.tensors[0][:2])}
    console.print(comparison(models, held_out, budget_s=options.budget))


def colour_digits(side: int = 32) -> tuple[TensorDataset, TensorDataset]:
    """The digits in three equal channels, ``[N, 3, side, side]``: those to train on, and those held out."""
    digits = load_digits()
    return _colour(digits.train, side), _colour(digits.test, side)


def train_quantised(model: nn.Module, data: TensorDataset, *, epochs: int, lr: float = 5e-4) -> fx.GraphModule:
    """Return ``model``, which stays as it is, trained on with fake quantisation; in eval mode."""
    loader = DataLoader(data, batch_size=_BATCH, shuffle=True, generator=torch.Generator().manual_seed(1))
    steps = epochs * len(loader)
    prepared = fxq.prepare_qat(model, data.tensors[0][:2]).train()
    schedule = fxq.qat.Schedule(prepared, freeze_batch_norm=steps // 2, freeze_observers=3 * steps // 4)
    optimiser = torch.optim.Adam(prepared.parameters(), lr=lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(epochs):
        for images, labels in loader:
            optimiser.zero_grad()
            F.cross_entropy(prepared(images), labels, label_smoothing=0.05).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            decay.step()
            schedule.step()
    return prepared.eval()


def comparison(models: Mapping[str, nn.Module], held_out: TensorDataset, *, budget_s: float) -> Table:
    """Return a table of accuracy, size on disk, and latency on 50 images of 64 x 64."""
    timed = {name: model for name, model in models.items() if name != "fake-quantised"}
    torch.manual_seed(0)
    latency = fxq.benchmark(timed, torch.randn(50, 3, 64, 64), budget_s=budget_s)
    table = Table(title=f"six inverted residual blocks, {latency.threads} threads", title_justify="left")
    table.add_column("")
    for heading in ("accuracy", "size on disk", "50 images of 64 x 64"):
        table.add_column(heading, justify="right", no_wrap=True)
    whole = disk_bytes(models["float"])
    for name, model in models.items():
        row = [name, f"{accuracy(model, held_out):.2%}"]
        if name in timed:
            size, result = disk_bytes(model), latency[name]
            row += [
                f"{size / 1e3:.0f} kB ({size / whole:.2f})",
                f"{format_time(result.median_s)} ({result.ratio:.2f}x)",
            ]
        table.add_row(*row)
    return table


def _conv_bn(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out))


def _colour(data: TensorDataset, side: int) -> TensorDataset:
    images, labels = data.tensors
    scaled = F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)
    return TensorDataset(scaled.expand(-1, 3, -1, -1).contiguous(), labels)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--epochs", type=int, default=5, help="in float")
    parser.add_argument("--qat-epochs", type=int, default=2, help="with fake quantisation")
    parser.add_argument("--side", type=int, default=24, help="of the images to train on")
    parser.add_argument("--budget", type=float, default=8.0, metavar="SECONDS", help="for the timings")
    return parser.parse_args()


if __name__ == "__main__":
    main()
