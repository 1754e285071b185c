"""`fxq.benchmark`: the latency of several models, measured side by side."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.utils import _pytree

from fxq.analysis.timing import Row, format_time, interleave, noise_warning, summarise
from fxq.errors import InputError
from fxq.ir.state import state_kept
from fxq.tracing.inputs import ModelInputs, clone_inputs, normalise_inputs


@dataclass(frozen=True)
class BenchmarkResult:
    """What `benchmark` measured: one row a model, in the order they were given, and the conditions."""

    rows: tuple[Row, ...]
    threads: int
    shapes: tuple[tuple[int, ...], ...]
    torch_version: str

    def __getitem__(self, name: str) -> Row:
        """Return the row of the model called ``name``; KeyError where there is none."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain dicts, lists, numbers and strings, ready for JSON."""
        conditions = {"threads": self.threads, "shapes": [list(s) for s in self.shapes], "torch": self.torch_version}
        return {"rows": [asdict(row) for row in self.rows], **conditions}

    def table(self) -> Table:
        """Return the result as a rich table."""
        shapes = ", ".join(str(list(shape)) for shape in self.shapes)
        threads = f"{self.threads} thread" + ("s" if self.threads != 1 else "")
        table = Table(title=f"Latency: input {shapes}, {threads}, torch {self.torch_version}", title_justify="left")
        table.caption, table.caption_justify = noise_warning(self.rows), "left"
        table.add_column("model")
        for heading in ("median", "spread (IQR)", "min", "speed-up"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in self.rows:
            times = [format_time(t) for t in (row.median_s, row.iqr_s, row.min_s)]
            table.add_row(row.name, *times, f"{row.ratio:.2f}x")
        return table

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=100, color_system=None)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get().rstrip("\n")


def benchmark(
    models: Mapping[str, nn.Module | Callable[..., Any]],
    example_inputs: object,
    *,
    budget_s: float = 10.0,
    warmup: int = 3,
    threads: int | None = None,
    progress: bool | None = None,
) -> BenchmarkResult:
    """Measure the latency of ``models``, interleaved, on ``example_inputs``.

    Args:
        models: what to time, by name; the first is the one that the speed-ups are relative to. Modules must be in
            evaluation mode. Any other callable is called with the same arguments.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments, as `fxq.trace` takes them. Each
            model runs on a copy of its own. What a model keeps in buffers from call to call is put back at the end.
        budget_s: about how long to measure, all models together, in seconds. At least five rounds run in any case.
        warmup: untimed calls of each model before the first round.
        threads: torch's intra-op threads while measuring; by default as they are. Restored afterwards.
        progress: show a progress bar; None shows it on a terminal only.

    Raises:
        InputError: no models, a module in training mode, inputs that do not fit a model, or a number out of range.
    """
    _check(models, budget_s, warmup, threads)
    inputs = {name: _inputs(model, example_inputs) for name, model in models.items()}
    calls = {name: _bind(model, inputs[name]) for name, model in models.items()}
    with _states_kept(models.values()), _threads(threads), _bar(progress, budget_s) as show, torch.inference_mode():
        samples = interleave(calls, budget_s=budget_s, warmup=warmup, progress=show)
        used = torch.get_num_threads()
    return BenchmarkResult(summarise(samples), used, _shapes(next(iter(inputs.values()))), torch.__version__)


def _inputs(model: Callable[..., Any], example_inputs: object) -> ModelInputs:
    """Return ``example_inputs`` as arguments of ``model``; a plain function is read as a module's ``forward``."""
    module = model if isinstance(model, nn.Module) else nn.Module()
    if module is not model:
        module.forward = model
    inputs = normalise_inputs(module, example_inputs)
    if inputs is None:
        raise InputError("a benchmark needs example_inputs", fix="give inputs of the shape that is to be timed")
    return inputs


def _bind(model: Callable[..., Any], inputs: ModelInputs) -> Callable[[], object]:
    """Return a call of ``model`` on its own copy of the inputs: one that writes into them disturbs nobody else."""
    own = clone_inputs(inputs)
    return lambda: model(*own.args, **own.kwargs)


def _shapes(inputs: ModelInputs) -> tuple[tuple[int, ...], ...]:
    leaves = _pytree.tree_leaves((inputs.args, inputs.kwargs))
    return tuple(tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor))


@contextmanager
def _states_kept(models: Iterable[Callable[..., Any]]) -> Iterator[None]:
    with ExitStack() as stack:
        for model in models:
            if isinstance(model, nn.Module):
                stack.enter_context(state_kept(model))
        yield


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _bar(progress: bool | None, budget_s: float) -> Iterator[Callable[[float], None] | None]:
    """Yield what moves a progress bar to the seconds spent, or None where none is shown.

    The bar is drawn between rounds only: a thread that refreshes it would take part in the timings.
    """
    shown = sys.stderr.isatty() if progress is None else progress
    if not shown:
        yield None
        return
    columns = (TextColumn("benchmark"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as bar:
        task = bar.add_task("benchmark", total=budget_s)

        def show(spent: float) -> None:
            bar.update(task, completed=spent)
            bar.refresh()

        yield show


def _check(models: Mapping[str, Any], budget_s: float, warmup: int, threads: int | None) -> None:
    if not isinstance(models, Mapping):
        raise InputError(f"models is a {type(models).__name__}", fix='give a dict such as {"float": model}')
    if not models:
        raise InputError("there is no model to measure", fix='pass a dict such as {"float": model, "int8": compiled}')
    for name, model in models.items():
        if not callable(model):
            raise InputError(f"the model {name!r} is a {type(model).__name__}, not a module or a function")
        if isinstance(model, nn.Module):
            _check_mode(name, model)
    if not budget_s > 0:
        raise InputError(f"budget_s is {budget_s}, it must be more than 0 seconds")
    if warmup < 0:
        raise InputError(f"warmup is {warmup}, it must be 0 or more calls")
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}, it must be 1 or more")


def _check_mode(name: str, model: nn.Module) -> None:
    """Refuse a model that would not run as at inference.

    Only the model itself and the layers whose behaviour depends on the mode count: the containers inside a
    GraphModule are in training mode whatever the model was.
    """
    for path, module in model.named_modules():
        if module.training and (module is model or isinstance(module, _NormBase | _DropoutNd)):
            raise InputError(
                f"the model {name!r} is in training mode",
                where=f"{path} ({type(module).__name__})" if path else None,
                why="its latency is not that of inference, and running it could change its batch norms",
                fix="call .eval() on the model first",
            )
