"""Passes, the manager that runs them, and the report."""

from fxq.manager.base import Numerics as Numerics
from fxq.manager.base import Pass as Pass
from fxq.manager.base import PassResult as PassResult
from fxq.manager.base import RulePass as RulePass
from fxq.manager.context import PassContext as PassContext
from fxq.manager.manager import ManagerResult as ManagerResult
from fxq.manager.manager import PassManager as PassManager
from fxq.manager.record import PassRecord as PassRecord
from fxq.manager.report import LayerRecord as LayerRecord
from fxq.manager.report import Report as Report
from fxq.manager.report import report_of as report_of
