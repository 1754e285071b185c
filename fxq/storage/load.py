"""Reading a graph module from a file."""

from __future__ import annotations

import os
from collections.abc import Iterable

from torch import Tensor, fx, nn

from fxq.engine import library
from fxq.engine.form import form_segments
from fxq.errors import StorageError
from fxq.ir.module import TracedModule
from fxq.ir.rewriter import Rewriter
from fxq.ir.stage import set_graph_state
from fxq.manager.report import attach_report
from fxq.storage.checks import refuse
from fxq.storage.container import StoredFile, as_path, open_stored
from fxq.storage.document import GRAPH, REPORT, decode_report, unpack_document
from fxq.storage.module_plan import fill
from fxq.storage.plan import FORMAT, VERSION, Plan, misfits, plan_document
from fxq.storage.tensors import TensorPlan, load_tensor
from fxq.targets.backends import exchange_backends
from fxq.targets.resolve import module_backend
from fxq.tracing.record import INPUTS_KEY, keep_record
from fxq.tracing.tracer import ModelTracer


def load(path: str | os.PathLike[str], *, classes: Iterable[type] = ()) -> TracedModule:
    """Read the graph module that :func:`fxq.save` wrote; its outputs are bit for bit those of the saved one.

    What ran in the native engine does so again, with weights packed for this machine; on a machine without the engine,
    PyTorch's operators run it, whose results may differ by one quantum. Neither the model's class nor pickle is needed,
    and no code from the file is run: operations and modules are looked up in lists of fxq's, and torch.fx generates
    ``forward`` from the checked graph. The whole file is checked before memory for its tensors is allocated, its graph
    with the shapes of the inputs that it was traced on, where there were some; that
    memory is at most 512 times the size of the file (and about the size of the tensors that were saved, for a file of
    fxq's). Loading is safe; what a graph of a stranger's costs to run, in time and memory, is still what that graph
    computes.

    A result that was a dataclass or a named tuple of the user's comes back as an equivalent of the same name, with the
    same fields and without the class's own methods (:func:`fxq.nn.named_result`), or as the class itself where
    ``classes`` has it.

    Args:
        path: the file.
        classes: classes of the results, found by their names: ``fxq.load(path, classes=[Output])``. They must have the
            fields that they had when the graph was saved.

    Returns:
        A graph module on the CPU, in the mode that was saved, with its report.

    Raises:
        InputError: there is no such file, or its results are not of the ``classes``.
        StorageError: the file is damaged, is not one of fxq's, was written by a later version, or holds what fxq does
            not run.
        TargetError: the file needs int8 kernels that this machine cannot run.
    """
    path = as_path(path)
    try:
        with open_stored(path) as file:
            return _load(file, classes)
    except StorageError as error:
        where = f"{path}, {error.where}" if error.where else str(path)
        raise StorageError(
            f"the file cannot be loaded: {error.what}", where=where, why=error.why, fix=error.fix
        ) from error


def _load(file: StoredFile, classes: Iterable[type]) -> TracedModule:
    _check_format(file)
    plan = plan_document(unpack_document(file.bytes_of(GRAPH), "the graph"), file.entries, classes)
    for node, error in misfits(plan)[:1]:
        where = f"node `{node.name}`" + (f", layer `{node.target}`" if node.op == "call_module" else "")
        refuse("the example that the file was saved with does not go through the graph", where, error)
    report = None
    if REPORT in file.entries:
        report = decode_report(unpack_document(file.bytes_of(REPORT), "the report"))
    fill(plan.modules, plan.values, [_read(tensor, file) for tensor in plan.tensors])
    gm = _assemble(plan)
    set_graph_state(gm, stage=plan.state.stage, next_id=plan.state.next_id)
    if file.metadata.get("target") == "native":
        gm = _for_this_machine(gm)
    if plan.trace is not None:
        keep_record(gm, plan.trace)
    if plan.examples is not None:
        gm.meta[INPUTS_KEY] = plan.examples
    if report is not None:
        attach_report(gm, report)
    return gm


def _for_this_machine(gm: TracedModule) -> TracedModule:
    """Form the segments of the native engine anew; where there is none, let the best modules run the graph."""
    rw = Rewriter(gm, "load")
    if library.unavailable_reason() is None:
        form_segments(rw)
    exchange_backends(rw, module_backend("auto"))
    found = rw.finish()
    assert isinstance(found, TracedModule)
    return found


def _check_format(file: StoredFile) -> None:
    if file.metadata.get("format") != FORMAT or GRAPH not in file.entries:
        refuse("this safetensors file was not written by fxq.save")
    version = file.metadata.get("format_version", "")
    if version != str(VERSION):
        raise StorageError(
            f"the file has the format version {version[:20]!r}, this fxq reads {VERSION}",
            fix=f"load it with the fxq that wrote it: {file.metadata.get('fxq', 'unknown')[:20]}",
        )
    for name in (GRAPH, REPORT):
        if name in file.entries and (file.entries[name].code != "U8" or len(file.entries[name].shape) != 1):
            refuse("a document is not a row of bytes", name)


def _read(plan: TensorPlan, file: StoredFile) -> Tensor:
    try:
        return load_tensor(plan, file)
    except (MemoryError, RuntimeError) as error:  # numpy's and torch's words for the same
        refuse("there is not enough memory for a tensor", plan.name, error)


def _assemble(plan: Plan) -> TracedModule:
    """Return the graph module; torch.fx generates and compiles its code here."""
    empty = fx.Graph(tracer_cls=ModelTracer)
    empty.output(None)
    gm = TracedModule(nn.Module(), empty, plan.class_name)
    root = plan.root
    gm._modules, gm._parameters, gm._buffers = root._modules, root._parameters, root._buffers
    gm._non_persistent_buffers_set = root._non_persistent_buffers_set
    gm.training = root.training
    try:
        gm.graph = plan.graph
        gm.recompile()
    except Exception as error:  # torch.fx prints calls without looking at how many arguments they have
        refuse("torch.fx can generate no code for the graph", "the graph", error)
    return gm
