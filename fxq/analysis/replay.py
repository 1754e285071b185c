"""Run a graph, keep every value, and run parts of it again from other values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

from fxq.errors import GraphError
from fxq.ir.metrics import tensors_in
from fxq.ir.shapes import Recorder, bind_placeholders, run_recorded
from fxq.tracing import ModelInputs, clone_inputs

Values = dict[fx.Node, Any]


class Replay:
    """One graph on one batch after another.

    Nodes that write into their inputs are found at the first batch. They get copies where nobody reads the overwritten
    value later, so that kept values stay what they were.

    Attributes:
        partial: whether a part of the graph can be run by itself. Where a value is overwritten that is read again
            later, it cannot, and :meth:`again` computes everything that it was not given.
        writers: the nodes that write into their inputs.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        self._gm = gm
        self._nodes: list[fx.Node] = list(gm.graph.nodes)
        self._begun = False
        self.partial = True
        self.writers: frozenset[fx.Node] = frozenset()

    def values(self, inputs: ModelInputs) -> Values:
        """Run the graph and return the value of each node, the output's included.

        Raises:
            GraphError: a node fails; names the node and its module path.
        """
        own = clone_inputs(inputs)
        if not self._begun:
            self._begun = True
            self._find_writes(own)
            own = clone_inputs(inputs)
        placeholders = [n for n in self._nodes if n.op == "placeholder"]
        given = bind_placeholders(self._gm, own.args, dict(own.kwargs))
        known: Values = {}
        for i, node in enumerate(placeholders):
            known[node] = given[i:] if str(node.target).startswith("*") else given[i]
        return self._compute(known, self._nodes)

    def again(self, known: Mapping[fx.Node, Any]) -> Any:
        """Return the output, computed from known values: only what it needs and they do not tell is run.

        Args:
            known: must hold the placeholders that the output needs. Where the graph is not ``partial``, their values
                may be written to.
        """
        nodes = self.needed(known) if self.partial else self._nodes
        return self._compute(dict(known), nodes)[self._nodes[-1]]

    def needed(self, known: Iterable[fx.Node]) -> list[fx.Node]:
        """Return the nodes that the output needs and that are not known, in order."""
        stop, wanted = set(known), {self._nodes[-1]}
        for node in reversed(self._nodes):
            if node in wanted and node not in stop:
                wanted.update(node.all_input_nodes)
        return [n for n in self._nodes if n in wanted and n not in stop]

    def _compute(self, values: Values, nodes: Iterable[fx.Node]) -> Values:
        interpreter = Recorder(self._gm)
        interpreter.env = values
        with torch.no_grad():
            for node in nodes:
                if node not in values:
                    values[node] = self._run(node, interpreter)
        return values

    def _run(self, node: fx.Node, interpreter: fx.Interpreter) -> Any:
        args, kwargs = interpreter.fetch_args_kwargs_from_env(node)
        if self.partial and node in self.writers:
            args, kwargs = tree_map_only(Tensor, torch.clone, (args, kwargs))
        try:
            return getattr(interpreter, node.op)(node.target, args, kwargs)
        except Exception as error:
            raise GraphError(
                f"the graph fails at node `{node.name}`", why=f"{type(error).__name__}: {error}"
            ) from error

    def _find_writes(self, inputs: ModelInputs) -> None:
        """Find the nodes after which a tensor that they read has another version, and who else can see that."""
        versions: dict[fx.Node, list[tuple[Tensor, int]]] = {}
        writers: set[fx.Node] = set()

        def watch(node: fx.Node, value: Any) -> None:
            for source in node.all_input_nodes:
                if any(t._version != version for t, version in versions.get(source, ())):
                    writers.add(node)
                    written = {t.untyped_storage().data_ptr() for t, _ in versions[source]}
                    self.partial = self.partial and not self._read_later(node, written, versions)
                    versions[source] = [(t, t._version) for t, _ in versions[source]]
            versions[node] = [(t, t._version) for t in tensors_in(value) if not t.is_inference()]

        run_recorded(self._gm, inputs.args, dict(inputs.kwargs), watch)
        self.writers = frozenset(writers)

    def _read_later(
        self, writer: fx.Node, written: set[int], versions: Mapping[fx.Node, list[tuple[Tensor, int]]]
    ) -> bool:
        position = {n: i for i, n in enumerate(self._nodes)}
        return any(
            position[user] > position[writer]
            for node, tensors in versions.items()
            if any(t.untyped_storage().data_ptr() in written for t, _ in tensors)
            for user in node.users
        )


def downstream(gm: fx.GraphModule, changed: Iterable[fx.Node]) -> set[fx.Node]:
    """Return ``changed`` and every node whose value depends on one of them."""
    found = set(changed)
    for node in gm.graph.nodes:
        if any(i in found for i in node.all_input_nodes):
            found.add(node)
    return found
