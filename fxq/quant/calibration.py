"""Calibration data in the forms that people have it in, as a stream of model inputs."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from fxq.errors import CalibrationError, FxqError, InputError
from fxq.ir.metrics import tensors_in
from fxq.ir.state import state_kept
from fxq.progress import track
from fxq.tracing import ModelInputs, clone_inputs, normalise_inputs

#: Batches that stay in memory for passes that look at the data a second time, and the bytes that they may take.
_KEPT, _KEPT_BYTES = 16, 256 << 20


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
    arguments), or a callable that runs the model itself. What the model does not take (labels) is left out: of a
    tuple it takes as many arguments as the example inputs have, else as many as its signature requires; of a dict the
    keywords of the example inputs, else those that its signature has.
    """

    def __init__(self, data: Any, model: nn.Module, example: ModelInputs | None = None) -> None:
        self._model = model
        self._run: Callable[[nn.Module], object] | None = None
        self._batches: Iterable[Any] = ()
        self._kept: list[ModelInputs] = []
        self._started: Iterator[Any] | None = None  # an iteration of which first() took a batch, with that batch
        if isinstance(data, torch.Tensor | Mapping):
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
        self._keywords = set(example.kwargs) if example is not None and example.kwargs else _keywords(model)

    def first(self) -> ModelInputs | None:
        """Return the first batch without losing it, also of data that can be read only once; None for a callable.

        Raises:
            CalibrationError: there is no batch, or it does not fit the model.
        """
        found = self.peek(1)
        return found[0] if found else None

    def peek(self, count: int) -> list[ModelInputs]:
        """Return up to ``count`` of the first batches, as copies, without losing them; none of a callable.

        Raises:
            CalibrationError: there is no batch, or one does not fit the model.
        """
        if self._run is not None:
            return []
        iterator = self._begin()
        batches = [_copied(batch) for batch in itertools.islice(iterator, count)]
        if not batches:
            raise _empty()
        self._started = itertools.chain(batches, iterator)
        return [self._bind(batch, index) for index, batch in enumerate(batches)]

    def __iter__(self) -> Iterator[ModelInputs]:
        """Yield each batch as model inputs; tensors are the caller's own and must not be written to."""
        self._kept = []
        room = _KEPT_BYTES
        for index, batch in enumerate(self._begin()):
            bound = self._bind(batch, index)
            room -= sum(t.numel() * t.element_size() for t in tensors_in((*bound.args, bound.kwargs)))
            if index < _KEPT and (room >= 0 or index == 0):
                self._kept.append(clone_inputs(bound))  # a loader may fill the same tensors with the next batch
            yield bound

    def _begin(self) -> Iterator[Any]:
        """Return the iteration that first() has begun, else a new one: a generator gives each batch only once."""
        started, self._started = self._started, None
        return self._read() if started is None else started

    def _read(self) -> Iterator[Any]:
        read = 0
        try:
            for batch in self._batches:
                yield batch
                read += 1
        except Exception as error:  # whatever the user's loader raises
            if isinstance(error, FxqError):
                raise
            raise CalibrationError(f"reading the calibration data failed: {type(error).__name__}: {error}",
                                   where=f"calibration batch {read}", fix="iterate over the data to see where",
                                   ) from error  # fmt: skip

    def again(self) -> Iterator[ModelInputs]:
        """Yield up to 16 of the first batches once more, also of data that can be read only once.

        They are copies, of at most 256 MiB together, or of the first batch alone where that is larger: memory does not
        grow with the data. Nothing for a callable, whose inputs are not seen.
        """
        return iter(self._kept)

    def run(self, model: nn.Module, progress: bool | None = None) -> int:
        """Run ``model`` over the data and return the number of batches (of calls, for a callable).

        What the model keeps from call to call (:func:`fxq.ir.state.state_kept`) goes on from batch to batch, and is put
        back at the end.

        Raises:
            CalibrationError: there is no batch; one does not fit the model or is not finite (its number is named).
        """
        with torch.no_grad(), state_kept(model):
            if self._run is not None:
                return self._run_callable(model)
            count = 0
            for batch in track(self, "calibrating", total=_length(self._batches), progress=progress):
                batch = clone_inputs(batch)
                try:
                    model(*batch.args, **batch.kwargs)
                except CalibrationError as error:
                    raise _in_batch(error, count) from error
                except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError) as error:
                    raise CalibrationError(
                        f"the model fails on calibration batch {count}: {type(error).__name__}: {error}",
                        why=self._why_keys(batch),
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
        except CalibrationError as error:
            raise _in_batch(error, calls - 1) from error
        except Exception as error:  # whatever the user's function raises
            raise CalibrationError(
                f"the calibration callable failed: {type(error).__name__}: {error}",
                where=f"after {calls} calls of the model", fix="run it on the float model to see where",
            ) from error  # fmt: skip
        finally:
            handle.remove()
        if not calls:
            raise CalibrationError("the calibration callable never ran the model", fix="call model(batch) in it")
        return calls

    def _bind(self, batch: Any, index: int) -> ModelInputs:
        try:
            bound = normalise_inputs(self._model, self._without_labels(batch))
        except InputError as error:
            what = error.what.replace("example_inputs do not fit the model: ", "").replace("example_inputs is", "it is")
            raise CalibrationError(
                f"calibration batch {index} does not fit the model: {what}", where=error.where, why=error.why,
                fix="fxq.inputs(loader, fn) turns a batch into what the model takes",
            ) from error  # fmt: skip
        if bound is None:
            raise CalibrationError(f"calibration batch {index} is None", fix="drop it, or look for why it is empty")
        for name, value in _named(self._model, bound):
            for tensor in tensors_in(value):
                _check_memory(tensor, index)
                # minus infinity has a use (attention masks); where it has none, the observers find it
                if tensor.is_floating_point() and not bool((tensor < float("inf")).all()):
                    raise CalibrationError(f"calibration batch {index} holds NaN or infinity",
                                           where=f"the argument `{name}`",
                                           fix="drop the batch, or clean the data")  # fmt: skip
        return bound

    def _why_keys(self, batch: ModelInputs) -> str | None:
        """What a dict that went in whole holds, and what the model takes; None where there is no such dict."""
        given = next((value for value in batch.args if isinstance(value, Mapping)), None)
        if given is None:
            return None
        keys = f"with the keys {', '.join(map(repr, given))}" if given else "without keys"
        return f"a dict went in {keys}, the model takes {', '.join(map(repr, sorted(self._keywords)))}"

    def _without_labels(self, batch: Any) -> Any:
        if isinstance(batch, tuple | list):
            return tuple(batch)[: self._arguments]
        if isinstance(batch, Mapping) and self._keywords and self._keywords & set(batch):
            return {name: value for name, value in batch.items() if name in self._keywords}
        return batch


def _check_memory(tensor: torch.Tensor, index: int) -> None:
    """Raise CalibrationError for a tensor whose values cannot be looked at."""
    if tensor.is_meta:
        raise CalibrationError(f"calibration batch {index} holds a tensor on the meta device", why="it has no values",
                               fix="load the data on the device of the model")  # fmt: skip
    if tensor.layout is not torch.strided:
        layout = str(tensor.layout).removeprefix("torch.")
        raise CalibrationError(f"calibration batch {index} holds a tensor of the layout {layout}",
                               fix="give dense tensors: tensor.to_dense()")  # fmt: skip


def _copied(batch: Any) -> Any:
    """A loader may fill the same tensors with the next batch."""
    return tree_map_only(torch.Tensor, torch.Tensor.clone, batch)


def _length(batches: Iterable[Any]) -> int | None:
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:  # a loader over an iterable dataset has a __len__ that raises
        return None


def _in_batch(error: CalibrationError, index: int) -> CalibrationError:
    where = ", ".join(filter(None, [error.where, f"calibration batch {index}"]))
    return CalibrationError(error.what, where=where, why=error.why, fix=error.fix)


def _required(model: nn.Module) -> int:
    parameters = inspect.signature(model.forward).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return 1 << 30
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return max(1, sum(p.default is p.empty for p in positional))


def _named(model: nn.Module, inputs: ModelInputs) -> Iterator[tuple[str, Any]]:
    """Yield what goes into ``model`` with the names of its parameters; numbers for those of ``*args``."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in inspect.signature(model.forward).parameters.values() if p.kind in kinds]
    for i, value in enumerate(inputs.args):
        yield names[i] if i < len(names) else str(i), value
    yield from inputs.kwargs.items()


def _keywords(model: nn.Module) -> set[str]:
    """The names that ``model`` takes as keywords; none where it takes any."""
    parameters = inspect.signature(model.forward).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return set()
    return {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _empty() -> CalibrationError:
    return CalibrationError(
        "the calibration data is empty", why="it gave no batch",
        fix="a generator that was already read gives nothing: pass a list or a DataLoader",
    )  # fmt: skip
