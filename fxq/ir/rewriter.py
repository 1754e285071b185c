"""The only thing that edits graphs: every edit keeps provenance and leaves the graph that it started from untouched."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from fxq.errors import GraphError
from fxq.ir.identify import Identifier, ModuleLookup, OpCall
from fxq.ir.module import TracedModule, build_module
from fxq.ir.module_tree import ModuleTree, reads
from fxq.ir.provenance import NodeInfo, Origin, add_origin, ensure_ids, node_info, set_node_info
from fxq.ir.stage import graph_state, set_graph_state


@dataclass(frozen=True)
class Matched:
    """A rule that fired: the names of the nodes that it matched, the module path of the first, and figures, if any."""

    rule: str
    nodes: tuple[str, ...]
    where: str
    detail: str = ""


@dataclass(frozen=True)
class Refused:
    """A candidate that a rule left alone, and why."""

    rule: str
    node: str
    where: str
    reason: str


def copy_graph_module(gm: fx.GraphModule) -> TracedModule:
    """Return a graph module with a graph of its own that shares the modules, parameters and buffers of ``gm``."""
    out = build_module(gm, copy.deepcopy(gm.graph))
    out.training = gm.training
    out.meta = dict(gm.meta)
    return out


class Rewriter:
    """Edits a copy of a graph module.

    Matches and refusals are collected in ``matched`` and ``refused``. Submodules are shared with the original: a
    rewrite that needs other weights makes a new module and sets it with :meth:`set_module`, it never writes into one.
    """

    def __init__(self, gm: fx.GraphModule, pass_name: str = "rewrite") -> None:
        ensure_ids(gm)
        self.gm = copy_graph_module(gm)
        self._lookup = ModuleLookup(self.gm)
        self._tree = ModuleTree(self.gm, pass_name)
        self._read = reads(self.gm.graph)
        self.identify = Identifier(self.gm, self._lookup)
        self.matched: list[Matched] = []
        self.refused: list[Refused] = []
        self._pass_name = pass_name
        self._origin: Origin | None = None
        self._current: fx.Node | None = None

    @property
    def graph(self) -> fx.Graph:
        """The graph being edited; read it freely, edit it through the methods below."""
        return self.gm.graph

    @property
    def current(self) -> str | None:
        """The name of the node that the running rule is anchored at, for an error message."""
        return self._current.name if self._current is not None else None

    def nodes(self) -> Iterator[fx.Node]:
        """Iterate over the nodes as they were at the call, in order, leaving out those erased on the way."""
        for node in list(self.graph.nodes):
            if not node._erased:
                yield node

    def calls(self) -> Iterator[OpCall]:
        """Like :meth:`nodes`, for the nodes that compute something, each read as an operation."""
        for node in self.nodes():
            if node.op.startswith("call_"):
                yield self.identify(node)

    def module_of(self, node: fx.Node) -> nn.Module | None:
        """Return the module that ``node`` calls, or None where it calls none."""
        return self._lookup(node)

    def callers(self, module: nn.Module) -> list[fx.Node]:
        """Return the nodes that call ``module``, under whichever path."""
        return [n for n in self.graph.nodes if n.op == "call_module" and self._lookup(n) is module]

    # -- what a rule did ---------------------------------------------------------------------------------------

    @contextmanager
    def rule(self, name: str, *nodes: fx.Node, detail: str = "") -> Iterator[None]:
        """Name the rule that the edits inside belong to, and count it as a match of ``nodes`` (the anchor first).

        ``detail`` is kept with the match: figures that a reader of the report may want.
        """
        record = replace(self.open_rule(name, *nodes), detail=detail)
        yield  # an error leaves the rule open: whoever reports it asks `current` which node was being rewritten
        self.close_rule(record)

    def open_rule(self, name: str, *nodes: fx.Node) -> Matched:
        """Let the edits that follow belong to the rule ``name``, anchored at the first of ``nodes``."""
        self._origin = Origin(self._pass_name, name, tuple(node_info(n).id for n in nodes))
        self._current = nodes[0] if nodes else None
        return Matched(name, tuple(n.name for n in nodes), node_info(nodes[0]).module_path if nodes else "")

    def close_rule(self, matched: Matched | None) -> None:
        """End the open rule; ``matched`` counts as a match, None says that the rule edited nothing."""
        if matched is not None:
            self.matched.append(matched)
        self._origin, self._current = None, None

    def refuse(self, rule: str, node: fx.Node, reason: str) -> None:
        """Record that ``rule`` left the candidate ``node`` alone, and why."""
        self.refused.append(Refused(rule, node.name, node_info(node).module_path, reason))

    # -- edits -------------------------------------------------------------------------------------------------

    def call_function(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
        *,
        after: fx.Node | None = None,
        before: fx.Node | None = None,
        like: fx.Node | None = None,
        name: str | None = None,
    ) -> fx.Node:
        """Insert a call of a function; it belongs to the module of ``like`` (by default its neighbour's)."""
        return self._insert("call_function", target, args, kwargs, after, before, like, name)

    def call_module(
        self,
        path: str,
        module: nn.Module,
        args: tuple[Any, ...],
        *,
        after: fx.Node | None = None,
        before: fx.Node | None = None,
        like: fx.Node | None = None,
        name: str | None = None,
    ) -> fx.Node:
        """Insert ``module`` at ``path`` and a call of it."""
        self.add_module(path, module)
        return self._insert("call_module", path, args, None, after, before, like, name)

    def call_shared_module(
        self, path: str, module: nn.Module, args: tuple[Any, ...], *, after: fx.Node | None = None,
        before: fx.Node | None = None, name: str | None = None,
    ) -> fx.Node:  # fmt: skip
        """Insert a call of the module at ``path``, which is ``module``: put there now or by an earlier call."""
        if not self._tree.has(path):
            self._assign(path, module)
        return self._insert("call_module", path, args, None, after, before, None, name)

    def get_attr(self, path: str, *, before: fx.Node) -> fx.Node:
        """Insert a read of an attribute that the module tree has."""
        return self._insert("get_attr", path, (), None, None, before, None, None)

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Let every user of ``old`` use ``new`` instead, and erase ``old``."""
        self.replace_uses(old, new)
        self.erase(old)

    def replace_uses(self, old: fx.Node, new: fx.Node, only: Callable[[fx.Node], bool] | None = None) -> None:
        """Let the users of ``old`` for which ``only`` holds (by default all but ``new``) use ``new`` instead."""
        old.replace_all_uses_with(new, delete_user_cb=only or (lambda user: user is not new), propagate_meta=False)

    def update(
        self,
        node: fx.Node,
        *,
        target: Any = None,
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
        op: str | None = None,
    ) -> None:
        """Change what ``node`` calls or with what; the node keeps its id."""
        node.op = op or node.op
        node.target = target if target is not None else node.target
        node.args = args if args is not None else node.args
        node.kwargs = kwargs if kwargs is not None else node.kwargs
        self._note(node)

    def set_module(self, node: fx.Node, module: nn.Module) -> None:
        """Let ``node``, the only caller of its module, call ``module`` under the same path."""
        self._own(node)
        self._assign(str(node.target), module)
        self._note(node)

    def give_own_module(self, node: fx.Node, module: nn.Module) -> None:
        """Let ``node`` call ``module``: under its path where it is the only caller, else under a path of its own."""
        if self._callers(str(node.target)) == [node.name]:
            self.set_module(node, module)
            return
        path = self.free_path(str(node.target))
        self._assign(path, module)
        self.update(node, target=path)

    def exchange_module(self, path: str, module: nn.Module) -> None:
        """Put ``module`` in the place of the one at ``path``, for all its callers."""
        self._assign(path, module)

    def set_tensor(self, path: str, tensor: torch.Tensor) -> None:
        """Put a parameter or buffer in the place of the one at ``path``, for all who read it there.

        Raises:
            GraphError: it belongs to a module of the caller's that the graph calls.
        """
        *parents, name = path.split(".")
        owner = self.gm.get_submodule(".".join(parents))
        if type(owner) is not nn.Module and owner is not self.gm:
            raise GraphError(
                f"`{path}` cannot be set: it belongs to a {type(owner).__name__} of the caller's model",
                where=self._pass_name, fix="give the graph a layer of its own first",
            )  # fmt: skip
        setattr(owner, name, tensor)

    def add_module(self, path: str, module: nn.Module) -> None:
        """Put ``module`` at a free ``path``."""
        if self._tree.has(path):
            raise GraphError(f"the path `{path}` is taken", where=self._pass_name, fix="ask free_path() for one")
        self._assign(path, module)

    def free_path(self, wanted: str) -> str:
        """Return ``wanted``, or with a number behind it where the module tree has that name already.

        Names that every module has (``to``, ``half``) are taken, too.

        Where ``wanted`` lies inside a module that the graph calls, which is the caller's: a name beside that module.
        """
        return self._tree.free_path(wanted)

    def open_container(self, node: fx.Node) -> None:
        """Put an empty container in the place of the module that ``node`` calls, and that ``node`` will call no more.

        Does nothing where another node uses the module or a part of it, or where it lies inside a module that the
        graph calls: :meth:`free_path` then finds a place beside it.
        """
        path = str(node.target)
        for other in self.graph.nodes:
            if other.op in ("call_module", "get_attr") and f"{other.target}.".startswith(f"{path}.") and other != node:
                return
        if self._tree.outside_layers(path) != path:
            return
        self._assign(path, self._tree.container())

    def erase(self, node: fx.Node) -> None:
        """Remove a node that nothing uses."""
        if node.users:
            users = ", ".join(u.name for u in node.users)
            raise GraphError(f"`{node.name}` cannot be erased: it is used by {users}", where=self._pass_name)
        self.graph.erase_node(node)

    def erase_unused(self, *nodes: fx.Node) -> None:
        """Remove those of ``nodes`` that nothing uses any more, users first."""
        for node in nodes:
            if not node.users and not node._erased:
                self.graph.erase_node(node)

    def move_before(self, node: fx.Node, anchor: fx.Node) -> None:
        """Move ``node`` in front of ``anchor`` in the order of execution."""
        anchor.prepend(node)

    def finish(self) -> fx.GraphModule:
        """Check the graph, drop what it no longer calls or reads, and return the rewritten graph module.

        Raises:
            GraphError: the edits left a graph that does not hold together.
        """
        try:
            self.graph.lint()
        except (RuntimeError, ValueError) as error:
            raise GraphError("the rewritten graph is not well formed", where=self._pass_name, why=str(error)) from error
        self._tree.drop_unread(self._read)
        self._tree.drop_uncalled()
        self.gm.recompile_on_use()
        return self.gm

    # -- inside ------------------------------------------------------------------------------------------------

    def _insert(
        self,
        op: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None,
        after: fx.Node | None,
        before: fx.Node | None,
        like: fx.Node | None,
        name: str | None,
    ) -> fx.Node:
        neighbour = after or before
        if neighbour is None or (after and before):
            raise GraphError("an insertion needs one neighbour: after= or before=", where=self._pass_name)
        place = self.graph.inserting_after(neighbour) if after else self.graph.inserting_before(neighbour)
        with place:
            node = self.graph.create_node(op, target, args, kwargs or {}, name)
        state = graph_state(self.gm)
        kin = node_info(like or neighbour)
        origins = (*kin.origins, self._origin) if self._origin and like else (self._origin,) if self._origin else ()
        set_node_info(node, NodeInfo(state.next_id, kin.module_path, kin.source, origins))
        set_graph_state(self.gm, next_id=state.next_id + 1)
        return node

    def _note(self, node: fx.Node) -> None:
        if self._origin is not None:
            add_origin(node, self._origin)

    def _own(self, node: fx.Node) -> None:
        callers = self._callers(str(node.target))
        if callers != [node.name]:
            raise GraphError(
                f"the module `{node.target}` has {len(callers)} callers and cannot be exchanged for one of them",
                where=self._pass_name, fix="refuse the match, or give the node a module of its own",
            )  # fmt: skip

    def _callers(self, path: str) -> list[str]:
        return [n.name for n in self.graph.nodes if n.op == "call_module" and n.target == path]

    def _assign(self, path: str, module: nn.Module) -> None:
        self._tree.assign(path, module)
        self._lookup.forget(path)
