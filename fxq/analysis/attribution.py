"""How much each operation of a compiled graph adds to the error of its output.

Let ``v_1 ... v_n`` be the values of the compiled graph, in its order, that stand for values of the reference graph, and
``F(v_1 ... v_k)`` the reference's output where these k values are put in the place of its own and all later operations
run in float. Then

    c_k = F(v_1 ... v_k) - F(v_1 ... v_(k-1))

is what operation k adds: its own error, made on the inputs that it really gets, carried to the output in float. The c_k
sum up to the whole error ``e = y' - y`` exactly, but for what happens behind ``v_n``:
``e = c_1 + ... + c_n + (y' - F(v_1 ... v_n))``. Two numbers speak of each:

- added: ``10 log10(sum y^2 / sum c_k^2)``, the signal-to-noise ratio if there were this error alone;
- share: ``sum(c_k e) / sum(e^2)``. Shares sum up to 1; one below 0 takes back an error that was made before.

Where operations stand side by side, the order of the graph decides who bears what they make only together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxq.analysis.replay import Replay, downstream
from fxq.analysis.running import evaluation
from fxq.ir.metrics import tensors_in
from fxq.tracing import ModelInputs


@dataclass
class _Sums:
    energy: float = 0.0
    dot: float = 0.0


@dataclass(frozen=True)
class Added:
    """What one operation adds.

    Attributes:
        db: signal-to-noise ratio of the output if there were this error alone, in dB; ``inf`` where it adds none.
        share: of the output's error; all shares sum up to 1.
    """

    db: float
    share: float


class Attribution:
    """Adds up, batch by batch, what each operation adds.

    Args:
        reference: the reference graph.
        pairs: the nodes of the compiled graph with those of the reference that they stand for, in the compiled order.
    """

    def __init__(self, reference: fx.GraphModule, pairs: Sequence[tuple[fx.Node, fx.Node]]) -> None:
        self._reference = reference
        self._pairs = pairs
        self._replay = Replay(reference)
        self._sums: dict[fx.Node, _Sums] = {}
        self._signal = self._noise = 0.0
        self._rest = _Sums()

    def add(self, inputs: ModelInputs, values: Mapping[fx.Node, Tensor], actual: Any) -> None:
        """Take one batch.

        Args:
            inputs: of both graphs; they stay as they are.
            values: of the compiled graph's nodes, in real numbers; what is not in it is not put in.
            actual: the compiled graph's output, of the reference's structure and shapes.
        """
        with evaluation(self._reference):
            base = self._replay.values(inputs)
            expected = _vector(base[next(reversed(base))])
            error = _vector(actual) - expected
            self._signal += _product(expected, expected)
            self._noise += _product(error, error)
            before, put = expected, dict[fx.Node, Tensor]()
            for node, source in self._pairs:
                value, own = values.get(node), base.get(source)
                if value is None or not isinstance(own, Tensor) or own.shape != value.shape:
                    continue
                if not self._replay.partial and source in self._replay.writers:
                    continue  # what it writes must be written
                put[source] = value.to(own.dtype)
                after = self._output(base, put)
                _count(self._sums.setdefault(node, _Sums()), after - before, error)
                before = after
        _count(self._rest, _vector(actual) - before, error)

    def added(self) -> dict[fx.Node, Added]:
        """Return what each node of the compiled graph adds, over all batches."""
        return {node: self._result(sums) for node, sums in self._sums.items()}

    def rest(self) -> Added:
        """Return what no node bears: what the compiled graph does behind the last value that could be put in."""
        return self._result(self._rest)

    def _output(self, base: Mapping[fx.Node, Any], put: Mapping[fx.Node, Tensor]) -> Tensor:
        if not self._replay.partial:  # everything runs, and may write into what it is given
            inputs = {n: value for n, value in base.items() if n.op == "placeholder"}
            known: dict[fx.Node, Any] = {n: _copy(v) for n, v in {**inputs, **put}.items()}
            return _vector(self._replay.again(known))
        changed = downstream(self._reference, put)
        return _vector(self._replay.again({**{n: v for n, v in base.items() if n not in changed}, **put}))

    def _result(self, sums: _Sums) -> Added:
        share = sums.dot / self._noise if self._noise > 0 else 0.0
        if sums.energy == 0:
            return Added(math.inf, share)
        ratio = self._signal / sums.energy
        return Added(10 * math.log10(ratio) if ratio > 0 and math.isfinite(ratio) else -math.inf, share)


def _count(sums: _Sums, part: Tensor, error: Tensor) -> None:
    sums.energy += _product(part, part)
    sums.dot += _product(part, error)


def _product(a: Tensor, b: Tensor) -> float:
    return float(torch.nan_to_num(a, 0.0, 0.0, 0.0) @ torch.nan_to_num(b, 0.0, 0.0, 0.0))  # infinities have no error


def _vector(output: Any) -> Tensor:
    """All floating point tensors of an output as one vector, float64."""
    parts = [t.detach().double().flatten() for t in tensors_in(output) if t.is_floating_point()]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
