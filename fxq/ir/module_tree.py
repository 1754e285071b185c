"""The modules of a graph module by path: what is free, what belongs to a layer, what nothing uses any more."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from fxq.errors import GraphError

_ANY_MODULE = nn.Module()


def reads(graph: fx.Graph) -> set[str]:
    """Return the paths of the attributes that ``graph`` reads."""
    return {str(n.target) for n in graph.nodes if n.op == "get_attr"}


class ModuleTree:
    """The submodules of ``gm``, where containers are plain ``nn.Module``s and all else belongs to a layer."""

    def __init__(self, gm: fx.GraphModule, pass_name: str) -> None:
        self._gm = gm
        self._pass_name = pass_name

    def has(self, path: str) -> bool:
        """Whether there is something at ``path``, or its last name is one that every module has (``to``, ``half``)."""
        module: Any = self._gm
        for part in path.split("."):
            if not hasattr(module, part):
                return hasattr(_ANY_MODULE, path.rpartition(".")[2])
            module = getattr(module, part)
        return True

    def free_path(self, wanted: str) -> str:
        """Return ``wanted``, with a number behind it where it is taken, beside a layer where it lies inside of one."""
        wanted = self.outside_layers(wanted)
        path, n = wanted, 0
        while self.has(path):
            n += 1
            path = f"{wanted}_{n}"
        return path

    def outside_layers(self, path: str) -> str:
        """Return ``path``, or one beside the layer that it lies inside of."""
        parent: Any = self._gm
        *parents, leaf = path.split(".")
        for i, part in enumerate(parents):
            parent = getattr(parent, part, None)
            if isinstance(parent, nn.Module) and type(parent) is not nn.Module:
                return ".".join([*parents[:i], "_".join([*parents[i:], leaf])])
        return path

    def container(self) -> nn.Module:
        """Return an empty container in the mode of the graph module."""
        made = nn.Module()
        made.training = self._gm.training
        return made

    def assign(self, path: str, module: nn.Module) -> None:
        """Put ``module`` at ``path``, with containers on the way where there are none.

        Raises:
            GraphError: the path lies inside a layer.
        """
        *parents, leaf = path.split(".")
        parent: nn.Module = self._gm
        for part in parents:
            child = getattr(parent, part, None)
            if not isinstance(child, nn.Module):
                child = self.container()
                setattr(parent, part, child)
            elif type(child) is not nn.Module:
                raise GraphError(
                    f"`{path}` cannot be set: `{part}` is a {type(child).__name__} that belongs to the caller's model",
                    where=self._pass_name, fix="ask free_path() for a path",
                )  # fmt: skip
            parent = child
        setattr(parent, leaf, module)

    def drop_unread(self, read_before: set[str]) -> None:
        """Delete the parameters and buffers that the graph read before, but for those of a layer."""
        for path in read_before - reads(self._gm.graph):
            owner, _, name = path.rpartition(".")
            module = self._gm.get_submodule(owner) if not owner or self.has(owner) else None
            if module is self._gm or type(module) is nn.Module:
                delattr(module, name)

    def drop_uncalled(self) -> None:
        """Delete the modules that the graph does not call, and in which it neither calls nor reads anything."""
        used = {str(n.target) for n in self._gm.graph.nodes if n.op in ("call_module", "get_attr")}
        ways = {path[:i] for path in used for i, c in enumerate(path) if c == "."}
        open_: list[tuple[str, nn.Module]] = [("", self._gm)]
        while open_:
            prefix, parent = open_.pop()
            for name, child in list(parent._modules.items()):
                path = f"{prefix}{name}"
                if child is None or path in used:
                    continue
                if path in ways:
                    open_.append((f"{path}.", child))
                else:
                    delattr(parent, name)
