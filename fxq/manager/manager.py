"""Runs passes in order, verifies each, and keeps the record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import fx

from fxq.errors import CalibrationError, FxqError, InputError, PassError, TargetError, nearest
from fxq.ir.metrics import Distance, distance
from fxq.ir.module import check_graph_module
from fxq.ir.snapshot import GraphSnapshot, take_snapshot
from fxq.manager.base import Pass, PassResult
from fxq.manager.context import PassContext
from fxq.manager.record import PassRecord
from fxq.manager.report import Report
from fxq.manager.running import run_on_copy
from fxq.manager.verify import check_output, check_shapes, check_structure, run_rewritten
from fxq.tracing import normalise_inputs

Step = "Pass | PassManager"
OnPass = Callable[[PassRecord], None]


class ManagerResult(NamedTuple):
    """A rewritten graph module and the report of the run; unpacks as a pair."""

    graph_module: fx.GraphModule
    report: Report


@dataclass
class _Run:
    """One run: the context, the outputs to compare with, where the record goes, and the graph as it was seen last."""

    context: PassContext
    verify: bool
    report: Report
    on_pass: OnPass | None
    original: Any = None
    latest: Any = None
    outputs: bool = field(default=False)
    seen: GraphSnapshot | None = None


class PassManager:
    """A sequence of passes, itself usable as a pass of another manager.

    Args:
        passes: passes and managers, in order. Names must be unique within one manager.
        verify: check the stage's table, shapes, dtypes and, with example inputs, the output after every pass.
        name: what an outer manager calls this one.

    The methods that change a pipeline return a new manager: ``pm.without("fuse_residual")``.
    """

    def __init__(self, passes: Iterable[Pass | PassManager], verify: bool = True, name: str = "pipeline") -> None:
        self.passes: tuple[Pass | PassManager, ...] = tuple(passes)
        self.verify = verify
        self.name = name
        for p in self.passes:
            if not isinstance(p, Pass | PassManager):
                raise InputError(
                    f"{p!r} is not a pass", where=f"PassManager {name!r}",
                    fix="give instances of fxq.passes.Pass: FoldBatchNorm(), not FoldBatchNorm",
                )  # fmt: skip
        names = [p.name for p in self.passes]
        twice = {n for n in names if names.count(n) > 1}
        if twice:
            raise InputError(f"two passes of one manager are called {twice.pop()!r}", where=f"PassManager {name!r}",
                             fix="put one of them into a nested PassManager with a name of its own")  # fmt: skip

    def __repr__(self) -> str:
        return f"PassManager([{', '.join(map(repr, self.passes))}], verify={self.verify}, name={self.name!r})"

    def __iter__(self) -> Iterator[Pass | PassManager]:
        return iter(self.passes)

    # -- running -----------------------------------------------------------------------------------------------

    def __call__(
        self,
        gm: fx.GraphModule,
        example_inputs: Any = None,
        *,
        context: PassContext | None = None,
        report: Report | None = None,
        on_pass: OnPass | None = None,
    ) -> ManagerResult:
        """Run the passes on ``gm``, which is left as it was.

        Args:
            gm: a graph module.
            example_inputs: inputs as :func:`fxq.trace` takes them; without them outputs are not compared.
            context: what passes share; takes the place of ``example_inputs``.
            report: a report to go on with.
            on_pass: called with the record of each pass as soon as it ends, also of one that failed.

        Raises:
            InputError: ``gm`` is no graph module.
            PassError: a pass failed; ``error.report`` holds everything up to and including it.
            VerifyError: a pass ran, but what it made does not hold what it promises; likewise.
            CalibrationError, TargetError: as the pass raised them.
        """
        check_graph_module(gm, f"PassManager '{self.name}'")
        context = context or PassContext(inputs=normalise_inputs(gm, example_inputs))
        run = _Run(context, self.verify, report if report is not None else Report(), on_pass)
        try:
            return ManagerResult(self._run(gm, run, ""), run.report)
        except PassError as error:
            error.report = run.report
            raise

    def _run(self, gm: fx.GraphModule, run: _Run, prefix: str) -> fx.GraphModule:
        for p in self.passes:
            if isinstance(p, PassManager):
                gm = p._run(gm, run, f"{prefix}{p.name}/")
            else:
                gm = self._run_pass(p, gm, run, prefix)
        return gm

    def _run_pass(self, p: Pass, gm: fx.GraphModule, run: _Run, prefix: str) -> fx.GraphModule:
        self._ensure_outputs(gm, run)
        try:
            out, record = p(gm, context=run.context, before=run.seen)
        except (PassError, InputError, CalibrationError, TargetError) as error:
            self._record(_failed(p, gm, error), run, prefix)
            raise
        try:
            record = self._verified(p, gm, out, record, run)
        except PassError as error:
            self._record(replace(record, error=str(error)), run, prefix)
            raise
        self._record(record, run, prefix)
        run.seen = record.after
        return out

    def _record(self, record: PassRecord, run: _Run, prefix: str) -> None:
        record = replace(record, name=prefix + record.name)
        run.report.add(record)
        if run.on_pass is not None:
            run.on_pass(record)

    def _ensure_outputs(self, gm: fx.GraphModule, run: _Run) -> None:
        if run.outputs or run.context.inputs is None:
            return
        run.original = run.latest = run_on_copy(gm, run.context.inputs)
        run.outputs = True

    def _verified(
        self, p: Pass, before: fx.GraphModule, after: fx.GraphModule, record: PassRecord, run: _Run
    ) -> PassRecord:
        if run.verify and self.verify:
            check_structure(p, after)
        inputs = run.context.inputs
        if inputs is None or not record.modified:
            return record
        output = run_rewritten(p, after, inputs)
        if run.verify and self.verify:
            check_shapes(p, before, after)
            check_output(p, before, after, run.latest, output, inputs)
        step, total = _distance(run.latest, output), _distance(run.original, output)
        run.latest = output
        return replace(record, after=take_snapshot(after), step=step, total=total)

    # -- changing the pipeline ---------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Return the names of all passes, nested ones with their manager's name and a slash before them."""
        out: list[str] = []
        for p in self.passes:
            out += [f"{p.name}/{n}" for n in p.names()] if isinstance(p, PassManager) else [p.name]
        return out

    def without(self, name: str) -> PassManager:
        """Return a manager that lacks the pass ``name``."""
        return self._edit(name, lambda _: [])

    def replace(self, name: str, new: Pass | PassManager) -> PassManager:
        """Return a manager with ``new`` in the place of the pass ``name``."""
        return self._edit(name, lambda _: [new])

    def insert_before(self, name: str, new: Pass | PassManager) -> PassManager:
        """Return a manager with ``new`` in front of the pass ``name``."""
        return self._edit(name, lambda old: [new, old])

    def insert_after(self, name: str, new: Pass | PassManager) -> PassManager:
        """Return a manager with ``new`` behind the pass ``name``."""
        return self._edit(name, lambda old: [old, new])

    def append(self, new: Pass | PassManager) -> PassManager:
        """Return a manager with ``new`` at the end."""
        return self._with((*self.passes, new))

    def move(self, name: str, *, before: str | None = None, after: str | None = None) -> PassManager:
        """Return a manager with the pass ``name`` moved in front of, or behind, another one."""
        if (before is None) == (after is None):
            raise InputError("move() takes one of before= and after=")
        moved = self.find(name)
        rest = self.without(name)
        return rest.insert_before(before, moved) if before is not None else rest.insert_after(str(after), moved)

    def find(self, name: str) -> Pass | PassManager:
        """Return the pass or nested manager ``name``; ``"outer/inner"`` reaches into a nested manager."""
        found: list[Pass | PassManager] = []
        self._edit(name, lambda old: found.append(old) or [old])  # type: ignore[func-returns-value]
        return found[0]

    def _edit(self, name: str, edit: Callable[[Pass | PassManager], list[Pass | PassManager]]) -> PassManager:
        head, _, tail = name.partition("/")
        out: list[Pass | PassManager] = []
        found = False
        for p in self.passes:
            if p.name != head:
                out.append(p)
                continue
            if tail and not isinstance(p, PassManager):
                break  # a pass has nothing inside it
            found = True
            out += [p._edit(tail, edit)] if tail and isinstance(p, PassManager) else edit(p)
        if not found:
            raise InputError(f"there is no pass {name!r}", where=f"PassManager {self.name!r}",
                             fix=nearest(name, self.names()))  # fmt: skip
        return self._with(out)

    def _with(self, passes: Iterable[Pass | PassManager]) -> PassManager:
        return PassManager(passes, verify=self.verify, name=self.name)


def _distance(reference: Any, actual: Any) -> Distance | None:
    """The distance of two outputs; None where an unchecked pass changed their structure."""
    try:
        return distance(reference, actual)
    except ValueError:
        return None


def _failed(p: Pass, gm: fx.GraphModule, error: FxqError) -> PassRecord:
    snapshot = take_snapshot(gm)
    return PassRecord(p.name, repr(p), p.numerics.value, snapshot, snapshot, error=str(error))


__all__ = ["ManagerResult", "PassManager", "PassResult"]
