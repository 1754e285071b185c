"""Writing a graph module to a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, fx

from fxq.engine.dissolve import dissolve
from fxq.errors import InputError, StorageError
from fxq.ir.stage import graph_state
from fxq.manager.report import Report
from fxq.storage.checks import parse_json
from fxq.storage.container import Entry, as_path, replacing, write_stored
from fxq.storage.document import GRAPH, REPORT, decode_report, encode_report, pack_document, to_json
from fxq.storage.dtypes import STORED, dtype_name
from fxq.storage.examples import encode_examples
from fxq.storage.graph_json import encode_graph
from fxq.storage.module_tree import TreeWriter
from fxq.storage.names import is_identifier
from fxq.storage.plan import FORMAT, VERSION, misfits, plan_document
from fxq.storage.records import RecordWriter
from fxq.storage.tensors import TensorWriter
from fxq.tracing.record import INPUTS_KEY, RECORD_KEY, TraceRecord
from fxq.version import __version__

StrPath = str | os.PathLike[str]
#: Where a graph module keeps its report.
REPORT_KEY: Final = "fxq_report"


def save(gm: fx.GraphModule, path: StrPath) -> None:
    """Write ``gm`` to one file, which :func:`fxq.load` reads without the classes of the model.

    Segments of the native engine are saved as the modules that they stand for. Any stage can be saved, with parameters,
    buffers, modes, names, provenance, recorded shapes and the report. Sparse and shared weights are stored compactly
    and without loss (:func:`fxq.storage.stored_bytes`). The file appears whole or not at all: it is written beside
    ``path`` and takes its place at the end. Of results that are dataclasses or named tuples, also nested, the names of
    the class and of the fields are saved.

    Not saved: type annotations of nodes, entries of ``meta`` other than fxq's own, gradients, the device (a loaded
    module is on the CPU), and that two tensors overlap, unless they are the same memory seen alike.

    Args:
        gm: what :func:`fxq.compile`, :func:`fxq.trace` or a pass returned.
        path: the file; one that exists is replaced. The folder must exist.

    Raises:
        InputError: ``gm`` is no graph module, or holds what no file can: a module that is not one of torch's or fxq's,
            a function of the user's, hooks, a class of results that does more than hold fields. Names the node or
            module. Or the file cannot be written. What was at ``path`` stays.
    """
    if not isinstance(gm, fx.GraphModule):
        raise InputError(f"fxq.save takes a graph module, not a {type(gm).__name__}",
                         fix="give what fxq.compile or fxq.trace returned")  # fmt: skip
    whole = dissolve(gm)
    with replacing(as_path(path)) as temporary:
        tensors = TensorWriter()
        document = _describe(whole, tensors)
        _check_graph(document, tensors.entries)
        entries = {GRAPH: pack_document(to_json(document)), **tensors.entries}
        if isinstance(gm.meta.get(REPORT_KEY), Report):
            entries[REPORT] = pack_document(_checked_report(gm.meta[REPORT_KEY]))
        write_stored(temporary, entries, _metadata("native" if whole is not gm else "modules"))


def _metadata(target: str) -> dict[str, str]:
    versions = {"fxq": __version__, "torch": str(torch.__version__)}
    return {"format": FORMAT, "format_version": str(VERSION), "target": target, **versions}


def _describe(gm: fx.GraphModule, tensors: TensorWriter) -> dict[str, Any]:
    tree = TreeWriter(gm, tensors)
    trace = gm.meta.get(RECORD_KEY)
    name = type(gm).__name__
    document = {
        "class": name if is_identifier(name) else "GraphModule",
        "state": RecordWriter().encode(graph_state(gm)),
        "trace": RecordWriter().encode(trace) if isinstance(trace, TraceRecord) else None,
        "nodes": encode_graph(gm.graph),
        "modules": tree.modules,
        "values": tree.values,
        "tensors": tensors.descriptions,
    }
    names = {str(n.target).strip("*") for n in gm.graph.nodes if n.op == "placeholder"}
    examples = gm.meta.get(INPUTS_KEY)
    return document | {"examples": encode_examples(examples)} if examples and set(examples) == names else document


def _check_graph(document: dict[str, Any], entries: Mapping[str, Tensor]) -> None:
    """Let the loader check what is about to be written: what it would refuse is refused now, while there is a model.

    Where shapes alone do not tell how the graph runs, which it does, the nodes are marked: a loader takes them as they
    are.
    """
    header = {n: Entry(STORED[dtype_name(t.dtype)].code, tuple(t.shape), 0, t.nbytes) for n, t in entries.items()}
    try:
        plan = plan_document(parse_json(to_json(document), "the graph"), header)
        unchecked = {node.name for node, _ in misfits(plan)}
    except StorageError as error:
        raise InputError(f"this graph module cannot be saved: {error.what}", where=error.where, why=error.why,
                         fix="make it with torch's and fxq's own layers and names that are plain identifiers",
                         ) from error  # fmt: skip
    for node in document["nodes"]:
        if node["name"] in unchecked:
            node["unchecked"] = True


def _checked_report(report: Report) -> bytes:
    """The report as JSON from which it can be made again."""
    try:
        raw = to_json(encode_report(report))
        decode_report(parse_json(raw, "the report"))
    except (StorageError, TypeError, ValueError) as error:
        raise InputError("the report of this graph module cannot be saved", why=f"{type(error).__name__}: {error}",
                         fix=f"gm.meta.pop({REPORT_KEY!r}) leaves it out") from error  # fmt: skip
    return raw
