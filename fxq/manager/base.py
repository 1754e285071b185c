"""What a pass is."""

from __future__ import annotations

import enum
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import fx

from fxq.errors import CalibrationError, InputError, PassError, TargetError
from fxq.ir.matcher import RuleTable, apply_rules
from fxq.ir.module import check_graph_module
from fxq.ir.rewriter import Matched, Refused, Rewriter
from fxq.ir.snapshot import GraphSnapshot, take_snapshot
from fxq.ir.stage import Stage, set_graph_state, stage_of
from fxq.ir.text import excerpt
from fxq.manager.context import PassContext
from fxq.manager.record import PassRecord
from fxq.manager.running import ensure_recorded
from fxq.tracing import normalise_inputs


class Numerics(enum.Enum):
    """What a pass promises about the output.

    EXACT: bit for bit what went in. CLOSE: the same up to float rounding. LOSSY: other values, whose
    signal-to-noise ratio is recorded.
    """

    EXACT = "EXACT"
    CLOSE = "CLOSE"
    LOSSY = "LOSSY"


class PassResult(NamedTuple):
    """A rewritten graph module and what the pass did to get there; unpacks as a pair."""

    graph_module: fx.GraphModule
    record: PassRecord

    @property
    def modified(self) -> bool:
        """Whether the pass changed anything."""
        return self.record.modified

    @property
    def matched(self) -> tuple[Matched, ...]:
        """The rules that fired."""
        return self.record.matched

    @property
    def refused(self) -> tuple[Refused, ...]:
        """The candidates left alone, with reasons."""
        return self.record.refused


@dataclass(frozen=True)
class Pass(ABC):
    """A named rewrite of a graph.

    A subclass is a frozen dataclass whose fields are its options. It sets the class attributes below and edits the
    graph in :meth:`rewrite` through the rewriter alone.

    Attributes:
        name: what the pass manager, the report and the diagrams call it.
        consumes: the stages of graphs that it takes.
        produces: the stage of the graph that it makes; None leaves the stage as it is.
        numerics: what it promises about the output.
        resizes: whether values inside the graph may get another shape, as by pruning; the output keeps its own.
    """

    name: ClassVar[str]
    consumes: ClassVar[tuple[Stage, ...]] = (Stage.FLOAT, Stage.CANONICAL, Stage.FUSED)
    produces: ClassVar[Stage | None] = None
    numerics: ClassVar[Numerics] = Numerics.EXACT
    resizes: ClassVar[bool] = False

    @abstractmethod
    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        """Edit the graph of ``rw``; every candidate ends as a match or as a refusal with a reason."""

    def applies(self, gm: fx.GraphModule) -> bool:
        """Whether ``gm`` may hold anything for the pass; where it does not, the pass gives ``gm`` itself back."""
        return True

    def __call__(
        self,
        gm: fx.GraphModule,
        example_inputs: Any = None,
        *,
        context: PassContext | None = None,
        before: GraphSnapshot | None = None,
    ) -> PassResult:
        """Run the pass on its own. ``gm`` is left as it was.

        Args:
            gm: a graph module at one of the stages that the pass consumes.
            example_inputs: inputs, for passes that run the graph; as :func:`fxq.trace` takes them.
            context: everything else that passes share; takes the place of ``example_inputs``.
            before: a snapshot of ``gm`` as it is, where the caller has one.

        Raises:
            InputError: ``gm`` is no graph module.
            PassError: ``gm`` is at another stage, or the pass failed; names the node and shows the graph around it.
            CalibrationError: the pass calibrates, and the data is missing or not usable.
            TargetError: the pass lowers to a target that is unknown or that this machine cannot run.
        """
        check_graph_module(gm, f"the pass `{self.name}`")
        context = context or PassContext(inputs=normalise_inputs(gm, example_inputs))
        check_stage(self, gm)
        ensure_recorded(gm, context.inputs)
        notes: list[str] = []
        before = take_snapshot(gm) if before is None else before.seen_now(gm)
        if not self.applies(gm):
            return PassResult(gm, PassRecord(self.name, repr(self), self.numerics.value, before, before))
        rw = Rewriter(gm, self.name)
        start = time.perf_counter()
        try:
            self.rewrite(rw, PassContext(context.inputs, context.calibration, context.progress, notes.append))
            out = rw.finish()
        except (PassError, InputError, CalibrationError, TargetError):  # about what the user gave, and clear as it is
            raise
        except Exception as error:
            raise _failure(self, rw, before, error) from error
        seconds = time.perf_counter() - start
        if self.produces is not None:
            set_graph_state(out, stage=max(self.produces, stage_of(gm)))
        record = PassRecord(
            self.name, repr(self), self.numerics.value, before, take_snapshot(out), tuple(rw.matched),
            tuple(rw.refused), tuple(notes), seconds,
        )  # fmt: skip
        return PassResult(out, record)


class RulePass(Pass):
    """A pass that is a table of rules and nothing else."""

    @abstractmethod
    def rules(self) -> RuleTable:
        """Return the rules; those named first are tried first."""

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        apply_rules(self.rules(), rw)


def check_stage(p: Pass, gm: fx.GraphModule) -> None:
    """Raise PassError where ``gm`` is not at a stage that ``p`` consumes."""
    stage = stage_of(gm)
    if stage in p.consumes:
        return
    wanted = " or ".join(map(str, p.consumes))
    late = stage > max(p.consumes)
    raise PassError(
        f"the pass `{p.name}` takes a {wanted} graph, this one is {stage}",
        fix="move the pass earlier in the pipeline" if late else f"run the passes that make a {wanted} graph first",
    )


def _failure(p: Pass, rw: Rewriter, before: GraphSnapshot, error: Exception) -> PassError:
    try:
        snapshot = take_snapshot(rw.gm)
    except (AttributeError, LookupError):  # the edits broke the graph: show it as it was
        snapshot = before
    current = rw.current
    where = next((n.module_path for n in snapshot.nodes if n.name == current), "")
    place = f"node `{current}`, module `{where or 'the root'}`" if current else "outside any rule"
    return PassError(
        f"the pass `{p.name}` failed: {type(error).__name__}: {error}", where=place,
        why="graph around it:\n" + excerpt(snapshot, current),
    )  # fmt: skip
