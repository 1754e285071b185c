"""Int8 modules of a graph on another backend than the one that they were lowered for."""

from __future__ import annotations

import copy

from torch import nn

from fxq.ir.rewriter import Rewriter
from fxq.ir.writing_order import writing_order
from fxq.nn.qlayer import QLayer
from fxq.nn.qoperation import QOperation


def exchange_backends(rw: Rewriter, backend: str) -> None:
    """Let the int8 modules that the graph calls run on ``backend``; they share their buffers with the old ones.

    A result of which the graph takes a view, and then writes into that memory, has to have the layout that the float
    layer gave it, which the plain operations of "reference" do: of another layout, ``reshape`` would be a copy.
    """
    shared = writing_order(rw.graph, rw.identify).shared
    plain = {str(node.target) for node in shared if node.op == "call_module"}
    done: dict[int, nn.Module] = {}
    for node in rw.nodes():
        module = rw.module_of(node)
        wanted = "reference" if str(node.target) in plain else backend
        if not isinstance(module, QLayer | QOperation) or module.backend == wanted:
            continue
        if id(module) not in done:
            done[id(module)] = _on(module, wanted)
        rw.exchange_module(str(node.target), done[id(module)])


def _on(module: QLayer | QOperation, backend: str) -> nn.Module:
    found = copy.copy(module)
    found._buffers = dict(module._buffers)
    found.backend = backend
    return found
