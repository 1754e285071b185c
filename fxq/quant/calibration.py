"""Calibration data in the forms that people have it in, as a stream of model inputs."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from fxq.errors import CalibrationError, InputError
from fxq.ir.metrics import tensors_in
from fxq.progress import track
from fxq.tracing import ModelInputs, clone_inputs, normalise_inputs


class MappedLoader:
    """A loader seen through a function; made by :func:`inputs`."""

    def __init__(self, loader: Iterable[Any], fn: Callable[[Any], Any]) -> None:
        self._loader = loader
        self._fn = fn

    def __iter__(self) -> Iterator[Any]:
        return map(self._fn, self._loader)

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]


def inputs(loader: Iterable[Any], fn: Callable[[Any], Any]) -> MappedLoader:
    """Return the batches of ``loader``, each passed through ``fn``, which returns what the model takes.

    ``fxq.inputs(loader, lambda batch: batch["image"])`` drops labels and other things that the model does not take.
    """
    return MappedLoader(loader, fn)


class Calibration:
    """Data to calibrate on, bound to the signature of one model.

    ``data`` is a DataLoader or any iterable of batches (a tensor, a tuple or list of arguments, a dict of keyword
    arguments), or a callable that runs the model itself. In a tuple, what the model does not take (labels) is left
    out: it takes as many arguments as the example inputs have, else as many as its signature requires.
    """

    def __init__(self, data: Any, model: nn.Module, example: ModelInputs | None = None) -> None:
        self._model = model
        self._run: Callable[[nn.Module], object] | None = None
        self._batches: Iterable[Any] = ()
        if isinstance(data, torch.Tensor | dict):
            raise InputError(
                f"calibration is a {type(data).__name__}", why="it is an iterable of batches, not one batch",
                fix="wrap it in a list: calibration=[batch]",
            )  # fmt: skip
        if isinstance(data, Iterable):
            self._batches = data
        elif callable(data):
            self._run = data
        else:
            raise InputError(
                f"calibration is a {type(data).__name__}",
                fix="give a DataLoader, an iterable of batches, or a callable that runs the model: f(model)",
            )
        self._arguments = len(example.args) if example is not None and example.args else _required(model)

    def first(self) -> ModelInputs | None:
        """Return the first batch without losing it; None where the data is a callable.

        Raises:
            CalibrationError: there is no batch, or it does not fit the model.
        """
        if self._run is not None:
            return None
        iterator = iter(self._batches)
        try:
            batch = next(iterator)
        except StopIteration:
            raise _empty() from None
        if iterator is self._batches:  # a generator gives each batch once
            self._batches = itertools.chain([batch], iterator)
        return self._bind(batch, 0)

    def __iter__(self) -> Iterator[ModelInputs]:
        """Yield each batch as model inputs; tensors are the caller's own and must not be written to."""
        for index, batch in enumerate(self._batches):
            yield self._bind(batch, index)

    def run(self, model: nn.Module, progress: bool | None = None) -> int:
        """Run ``model`` over the data and return the number of batches (of calls, for a callable).

        Raises:
            CalibrationError: there is no batch; one does not fit the model or is not finite (its number is named).
        """
        with torch.no_grad():
            if self._run is not None:
                return self._run_callable(model)
            count = 0
            total = len(self._batches) if hasattr(self._batches, "__len__") else None
            for batch in track(self, "calibrating", total=total, progress=progress):
                batch = clone_inputs(batch)
                try:
                    model(*batch.args, **batch.kwargs)
                except CalibrationError as error:
                    raise CalibrationError(error.what, where=f"{error.where}, calibration batch {count}",
                                           why=error.why, fix=error.fix) from error  # fmt: skip
                except (RuntimeError, TypeError, ValueError, IndexError) as error:
                    raise CalibrationError(
                        f"the model fails on calibration batch {count}: {type(error).__name__}: {error}",
                        fix="give batches that the model itself takes; fxq.inputs(loader, fn) picks the arguments",
                    ) from error
                count += 1
        if count == 0:
            raise _empty()
        return count

    def _run_callable(self, model: nn.Module) -> int:
        calls = 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1

        handle = model.register_forward_pre_hook(count)
        try:
            assert self._run is not None
            self._run(model)
        finally:
            handle.remove()
        if not calls:
            raise CalibrationError("the calibration callable never ran the model", fix="call model(batch) in it")
        return calls

    def _bind(self, batch: Any, index: int) -> ModelInputs:
        if isinstance(batch, tuple | list):
            batch = tuple(batch)[: self._arguments]
        try:
            bound = normalise_inputs(self._model, batch)
        except InputError as error:
            raise CalibrationError(
                f"calibration batch {index} does not fit the model: {error.what}", why=error.why,
                fix="fxq.inputs(loader, fn) turns a batch into what the model takes",
            ) from error  # fmt: skip
        assert bound is not None
        for tensor in tensors_in((*bound.args, bound.kwargs)):
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise CalibrationError(
                    f"calibration batch {index} holds NaN or infinity", fix="drop the batch, or clean the data"
                )
        return bound


def _required(model: nn.Module) -> int:
    parameters = inspect.signature(model.forward).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return 1 << 30
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return max(1, sum(p.default is p.empty for p in positional))


def _empty() -> CalibrationError:
    return CalibrationError("the calibration data is empty", why="it gave no batch",
                            fix="a generator that was already read gives nothing: pass a list or a DataLoader")  # fmt: skip
