"""Recipe "dynamic" beside eager float and PyTorch's own dynamic quantisation, timed in one interleaved run.

    python -m benchmarks.dynamic --threads 1 --budget 3 --json results/dynamic.json
    python -m benchmarks.dynamic --threads 1 --recipe weight4 --rows 1 4 16

Layers of one kind each, seeded weights and inputs; all three get the same. The SQNR is that of the output against
float. PyTorch's is ``torch.ao.quantization.quantize_dynamic``, which is deprecated and has no successor for recurrent
layers. Recipes "weight8" and "weight4", which quantise linear layers alone, can take the place of "dynamic".
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import fxq
from benchmarks import show
from fxq.analysis.timing import Row, format_time, interleave, noise_warning, summarise
from fxq.ir.metrics import distance
from fxq.nn.dynamic_codes import GRANULARITIES
from fxq.passes import QuantiseDynamically

_WIDTH = 140
_STEPS = 50
_RECIPES = ("dynamic", "weight8", "weight4")


@dataclass(frozen=True)
class Case:
    """A layer as wide as its input: ``rows`` of it for a linear layer, else sequences of 50 steps."""

    kind: str
    width: int
    rows: int

    def build(self, seed: int) -> tuple[nn.Module, Tensor]:
        """Return the model and its input."""
        torch.manual_seed(seed)
        if self.kind == "Linear":
            return nn.Sequential(nn.Linear(self.width, self.width)).eval(), torch.randn(self.rows, self.width)
        layer = {"LSTM": nn.LSTM, "GRU": nn.GRU}[self.kind](self.width, self.width)
        return Recurrent(layer).eval(), torch.randn(_STEPS, self.rows, self.width)


@dataclass(frozen=True)
class Result:
    """The timings of one case, float first, and the SQNR in dB of the other two."""

    case: Case
    rows: tuple[Row, ...]
    sqnr_db: dict[str, float]


class Recurrent(nn.Module):
    """A recurrent layer that gives its output alone."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """(steps, batch, width) -> the same shape."""
        y: Tensor = self.layer(x)[0]
        return y


CASES = (
    *(Case(kind, width, rows) for kind in ("LSTM", "GRU") for width in (128, 512, 1024) for rows in (1, 16)),
    *(Case("Linear", width, rows) for width in (128, 256, 512, 1024, 2048, 4096) for rows in (1, 4, 16, 64, 128, 512)),
)


def measure(case: Case, budget_s: float, granularity: str = "token", seed: int = 0, recipe: str = "dynamic") -> Result:
    """Time float, PyTorch's dynamic quantisation and fxq's ``recipe`` of ``case`` for about ``budget_s`` seconds."""
    model, x = case.build(seed)
    passes = None if granularity == "token" else [QuantiseDynamically(granularity=granularity)]
    own = fxq.compile(model, x, recipe=recipe, passes=passes)
    models = {"float": model, "torch": _torch_dynamic(model), "fxq": own}
    with torch.inference_mode():
        wanted = model(x)
        sqnr = {name: distance(wanted, m(x)).sqnr_db for name, m in models.items() if name != "float"}
        rows = summarise(interleave({n: _call(m, x) for n, m in models.items()}, budget_s=budget_s))
    return Result(case, rows, sqnr)


def _call(model: nn.Module, x: Tensor) -> Callable[[], object]:
    return lambda: model(x)


def _torch_dynamic(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, as its output and documentation say
        kinds = {nn.LSTM, nn.GRU, nn.Linear}
        made: nn.Module = torch.ao.quantization.quantize_dynamic(model, kinds, dtype=torch.qint8)
        return made


def table(results: Sequence[Result], recipe: str = "dynamic") -> Table:
    """Return a row for each case."""
    shown = Table(title=f"{torch.get_num_threads()} threads, medians", title_justify="left")
    shown.add_column("layer")
    for heading in ("float", "torch dynamic", f"fxq {recipe}", "over float", "over torch", "torch SQNR", "fxq SQNR"):
        shown.add_column(heading, justify="right")
    for result in results:
        plain, peer, own = result.rows
        shown.add_row(
            f"{result.case.kind} {result.case.width}, batch {result.case.rows}", *(format_time(r.median_s) for r in
            result.rows), f"{plain.median_s / own.median_s:.2f}x", f"{peer.median_s / own.median_s:.2f}x",
            f"{result.sqnr_db['torch']:.1f} dB", f"{result.sqnr_db['fxq']:.1f} dB",
        )  # fmt: skip
    noisy = [f"{r.case.kind} {r.case.width}, batch {r.case.rows}" for r in results if noise_warning(r.rows)]
    shown.caption = f"noisy, measure again on an idle machine: {'; '.join(noisy)}" if noisy else None
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark that the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dynamic", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kinds", nargs="+", default=["LSTM", "GRU", "Linear"], choices=["LSTM", "GRU", "Linear"])
    parser.add_argument("--widths", nargs="+", type=int, metavar="N", help="only these widths")
    parser.add_argument("--rows", nargs="+", type=int, metavar="N", help="only these numbers of rows, or of sequences")
    parser.add_argument("--recipe", default="dynamic", choices=_RECIPES, help="of fxq; weights alone: linear layers")
    parser.add_argument(
        "--granularity", default="token", choices=GRANULARITIES, help='what shares a scale in "dynamic"'
    )
    parser.add_argument("--budget", type=float, default=3.0, metavar="S", help="seconds for each layer (default 3)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    options = parser.parse_args(arguments)
    if options.recipe != "dynamic":
        options.kinds, options.granularity = ["Linear"], "token"
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    machine = show.environment()
    console.print(f"{machine['cpu']}: {' '.join(machine['flags'])}; torch {torch.__version__}")
    chosen = [c for c in CASES if c.kind in options.kinds and (not options.widths or c.width in options.widths)
              and (not options.rows or c.rows in options.rows)]  # fmt: skip
    results = []
    for case in chosen:
        with console.status(f"{case.kind} {case.width}, batch {case.rows}"):
            results.append(measure(case, options.budget, options.granularity, recipe=options.recipe))
    console.print(table(results, options.recipe))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(
            json.dumps(
                {"machine": machine, "recipe": options.recipe, "results": [asdict(r) for r in results]}, indent=2
            )
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
