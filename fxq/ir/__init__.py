"""The graph representation: operations, patterns, the rewriter, snapshots, and the stages of a graph."""

from fxq.ir.diff import Change as Change
from fxq.ir.diff import GraphDiff as GraphDiff
from fxq.ir.diff import diff as diff
from fxq.ir.identify import OpCall as OpCall
from fxq.ir.identify import identify as identify
from fxq.ir.matcher import Rule as Rule
from fxq.ir.matcher import RuleTable as RuleTable
from fxq.ir.matcher import apply_rules as apply_rules
from fxq.ir.pattern import AnyOf as AnyOf
from fxq.ir.pattern import Anything as Anything
from fxq.ir.pattern import Call as Call
from fxq.ir.pattern import Match as Match
from fxq.ir.pattern import Maybe as Maybe
from fxq.ir.pattern import call as call
from fxq.ir.rewriter import Rewriter as Rewriter
from fxq.ir.snapshot import GraphSnapshot as GraphSnapshot
from fxq.ir.snapshot import NodeRecord as NodeRecord
from fxq.ir.snapshot import take_snapshot as take_snapshot
from fxq.ir.stage import Stage as Stage
from fxq.ir.stage import stage_of as stage_of
from fxq.ir.text import graph_text as graph_text
