"""Sizes that are written in the graph: of views, splits, slices, paddings and expansions, and attention's scale."""

from __future__ import annotations

import contextlib
import math
import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from fxq.errors import GraphError
from fxq.ir.identify import OpCall
from fxq.ir.meta import OnMeta, on_meta, runs_on_meta
from fxq.ir.ops import SPECS
from fxq.ir.provenance import node_info
from fxq.ir.rewriter import Rewriter
from fxq.ir.shapes import TENSOR_KEY, Recorder, TensorSpec, bind_placeholders
from fxq.structure.axes import Axes
from fxq.structure.group import Mask
from fxq.structure.structure import Structure, kept_shape
from fxq.tracing import ModelInputs, clone_inputs


def fit_sizes(rw: Rewriter, structure: Structure, kept: Mask, inputs: ModelInputs) -> None:
    """Rewrite the sizes in the graph of ``rw``, whose layers are pruned already, running it once on ``inputs``.

    It runs on the meta device, and on real data where it cannot. Sizes that the graph computes stay computed: where
    such a size is wrong by now, it is scaled by kept / dense.

    Raises:
        GraphError: the graph does not run, or a value has another shape than the structure says.
    """
    given = clone_inputs(inputs)
    values = bind_placeholders(rw.gm, given.args, given.kwargs)
    tensors = [v for v in (*tree_leaves(values), *rw.gm.parameters()) if isinstance(v, Tensor)]
    done: set[fx.Node] = set()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        if runs_on_meta(rw.gm, tensors):
            with contextlib.suppress(Exception):  # whatever it is, the run on real data shows it
                _MetaFitter(rw, structure, kept, done).run(*on_meta(values))
                return
        _Fitter(rw, structure, kept, done).run(*values)


class _Fitter(Recorder):
    """Runs the pruned graph and records its shapes; before each node runs, its sizes are made to fit.

    Args:
        done: nodes whose sizes fit already.
    """

    def __init__(self, rw: Rewriter, structure: Structure, kept: Mask, done: set[fx.Node]) -> None:
        super().__init__(rw.gm)
        self._rw, self._structure, self._kept, self._done = rw, structure, kept, done

    def run_node(self, n: fx.Node) -> Any:
        if n in self._structure.values and n.op.startswith("call_") and n not in self._done:
            self._fit(n)
            self._done.add(n)
        value = super().run_node(n)
        self._check(n, value)
        return value

    def _fit(self, n: fx.Node) -> None:
        op = self._rw.identify(n)
        if op.kind == "reshape":
            self._fit_reshape(op)
        elif op.kind == "unflatten":
            self._fit_unflatten(op)
        elif op.kind in ("split", "chunk"):
            self._fit_split(op)
        elif op.kind == "getitem":
            self._fit_slice(op)
        elif op.kind == "pad":
            self._fit_pad(op)
        elif op.kind == "attention":
            self._fit_scale(op)
        elif op.kind == "method:expand":
            self._fit_expand(op)

    def _axes(self, node: Any) -> Any:
        return self._structure.values.get(node)

    def _dense(self, node: Any) -> tuple[int, ...]:
        spec = self._structure.shapes.get(node)
        return spec.shape if isinstance(spec, TensorSpec) else ()

    def _expected(self, node: fx.Node) -> tuple[int, ...]:
        return kept_shape(self._axes(node), self._dense(node), self._kept)

    def _fit_reshape(self, op: OpCall) -> None:
        sizes = op.attrs["shape"]
        if isinstance(sizes, fx.Node):
            return  # the shape of another value
        self._set(op, shape=self._fitted(op.node, sizes, self._expected(op.node)))

    def _fit_unflatten(self, op: OpCall) -> None:
        sizes, ndim = op.attrs["sizes"], len(self._dense(op.inputs[0]))
        dim = op.attrs["dim"] % ndim
        self._set(op, sizes=self._fitted(op.node, sizes, self._expected(op.node)[dim : dim + len(sizes)]))

    def _fitted(self, node: fx.Node, sizes: tuple[Any, ...], expected: tuple[int, ...]) -> tuple[Any, ...]:
        return tuple(self._size(node, size, right) for size, right in zip(sizes, expected, strict=True))

    def _size(self, node: fx.Node, size: Any, right: int) -> Any:
        if not isinstance(size, fx.Node):
            return size if size == -1 else right
        value = self.env[size]
        if value == right:
            return size
        if self._counts_channels(size):
            return right
        if not value:
            raise GraphError(
                f"`{size.name}`, a size that `{node.name}` takes, is 0 after pruning", why="it is rounded down",
                where=node_info(node).module_path or "the root module", fix="protect the layers that it reads",
            )  # fmt: skip
        common = math.gcd(value, right)
        scaled = self._insert(node, operator.mul, size, right // common)
        return self._insert(node, operator.floordiv, scaled, value // common)

    def _counts_channels(self, size: fx.Node) -> bool:
        """Whether nothing but numbers of channels went into ``size``, so that it is the same for every input."""
        if size.op == "call_function" and size.target is operator.getitem:
            source, index = size.args
            tensor = source.args[0] if isinstance(source, fx.Node) and source.args else None
            return isinstance(index, int) and self._is_pruned(tensor, index)
        if size.op == "call_method" and size.target == "size":
            dim = size.kwargs.get("dim", size.args[1] if len(size.args) > 1 else None)
            return isinstance(dim, int) and self._is_pruned(size.args[0], dim)
        return size.op == "call_function" and all(map(self._counts_channels, size.all_input_nodes))

    def _is_pruned(self, tensor: Any, dim: int) -> bool:
        axes = self._axes(tensor) if isinstance(tensor, fx.Node) else None
        return isinstance(axes, tuple) and -len(axes) <= dim < len(axes) and axes[dim] is not None

    def _insert(self, before: fx.Node, function: Any, left: fx.Node, right: int) -> fx.Node:
        node = self._rw.call_function(function, (left, right), before=before)
        self.env[node] = function(self.env[left], right)
        node.meta[TENSOR_KEY] = "int"
        return node

    def _fit_split(self, op: OpCall) -> None:
        ids = self._axes(op.inputs[0])[op.attrs["dim"]]
        if ids is None or bool(self._kept[ids].all()):
            return
        dim = op.attrs["dim"]
        sections = [int(self._kept[piece[dim]].sum()) for piece in self._axes(op.node)]
        self._rw.update(op.node, op="call_function", target=torch.split, args=tuple(op.inputs),
                        kwargs={"split_size_or_sections": sections, "dim": dim})  # fmt: skip

    def _fit_slice(self, op: OpCall) -> None:
        axes, index = self._axes(op.inputs[0]), op.attrs["index"]
        if not isinstance(axes, tuple):
            return
        entries = index if isinstance(index, tuple) else (index,)
        d, fitted = 0, []
        for i, entry in enumerate(entries):
            if entry is Ellipsis:
                d = len(axes) - sum(e is not None for e in entries[i + 1 :])
            elif isinstance(entry, slice):
                entry = self._slice(entry, axes, d, self._dense(op.inputs[0]))
                d += 1
            elif entry is not None:
                d += 1
            fitted.append(entry)
        new = tuple(fitted) if isinstance(index, tuple) else fitted[0]
        if new != index:
            self._rw.update(op.node, args=(op.inputs[0], new), kwargs={})

    def _slice(self, entry: slice, axes: Axes, d: int, dense: tuple[int, ...]) -> slice:
        ids = axes[d]
        computed = any(isinstance(v, fx.Node) for v in (entry.start, entry.stop, entry.step))
        if ids is None or computed or entry == slice(None) or bool(self._kept[ids].all()):
            return entry
        start, stop, _ = entry.indices(dense[d])
        counts = self._kept[ids]
        return slice(int(counts[:start].sum()), int(counts[:stop].sum()))

    def _fit_pad(self, op: OpCall) -> None:
        axes, out = self._axes(op.inputs[0]), self._axes(op.node)
        amounts = list(op.attrs["pad"])
        for i in range(len(amounts) // 2):
            ids = out[len(out) - 1 - i]
            if ids is None or axes[len(axes) - 1 - i] is None:
                continue
            before, after = amounts[2 * i], amounts[2 * i + 1]
            if before > 0 or after > 0:
                amounts[2 * i] = int(self._kept[ids[:before]].sum())
                amounts[2 * i + 1] = int(self._kept[ids[len(ids) - after :]].sum())
        self._set(op, pad=tuple(amounts))

    def _fit_scale(self, op: OpCall) -> None:
        width = self._axes(op.inputs[0])[-1]
        if width is not None and op.attrs["scale"] is None and not bool(self._kept[width].all()):
            self._set(op, scale=1.0 / math.sqrt(len(width)))

    def _fit_expand(self, op: OpCall) -> None:
        node = op.node
        sizes = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], tuple | list) else node.args[1:]
        if len(sizes) == len(self._dense(node)):
            self._rw.update(node, args=(node.args[0], *self._fitted(node, tuple(sizes), self._expected(node))))

    def _set(self, op: OpCall, **changed: Any) -> None:
        if all(op.attrs[name] == value for name, value in changed.items()):
            return
        function = SPECS[str(op.kind)].function
        self._rw.update(
            op.node, op="call_function", target=function, args=tuple(op.inputs), kwargs={**op.attrs, **changed}
        )

    def _check(self, n: fx.Node, value: Any) -> None:
        axes = self._axes(n)
        if isinstance(value, Tensor) and isinstance(axes, tuple) and tuple(value.shape) != self._expected(n):
            raise GraphError(
                f"`{n.name}` has the shape {list(value.shape)} after pruning, not {list(self._expected(n))}",
                where=node_info(n).module_path or "the root module",
                why="a size in the graph depends on the channels in a way that fxq does not see",
                fix="protect the layers that it reads",
            )


class _MetaFitter(OnMeta, _Fitter):
    """Runs it without computing anything."""
