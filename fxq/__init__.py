"""fxq: a compiler pass suite on torch.fx.

``fxq.compile(model, calibration=loader)`` traces a float module, folds, fuses, quantises and lowers it, and returns a
rewritten ``torch.fx.GraphModule`` that explains itself: ``print(fxq.report(gm))``.
"""

from pathlib import Path as _Path

# In a checkout, passes/ and visualize/ lie beside this package and not inside it: let fxq.passes be found there.
if not (_Path(__file__).parent / "passes").is_dir():
    __path__.append(str(_Path(__file__).parent.parent))

from fxq import compression as compression
from fxq import passes as passes
from fxq import pruning as pruning
from fxq import qat as qat
from fxq import visualize as visualize
from fxq.analysis import benchmark as benchmark
from fxq.analysis import compare as compare
from fxq.analysis import profile as profile
from fxq.api import compile as compile
from fxq.compression import distill as distill
from fxq.errors import CalibrationError as CalibrationError
from fxq.errors import FxqError as FxqError
from fxq.errors import GraphError as GraphError
from fxq.errors import InputError as InputError
from fxq.errors import PassError as PassError
from fxq.errors import StorageError as StorageError
from fxq.errors import TargetError as TargetError
from fxq.errors import TraceError as TraceError
from fxq.errors import VerifyError as VerifyError
from fxq.manager import PassManager as PassManager
from fxq.manager import Report as Report
from fxq.manager import report_of as report
from fxq.pipelines import pipeline as pipeline
from fxq.pruner.api import plan_of as plan_of
from fxq.pruner.api import prune as prune
from fxq.pruner.sensitivity import sensitivity as prune_sensitivity
from fxq.pruning.plan import Plan as Plan
from fxq.qat.prepare import prepare_qat as prepare_qat
from fxq.quant.calibration import inputs as inputs
from fxq.quant.overrides import Override as Override
from fxq.quant.recipe import Recipe as Recipe
from fxq.storage import load as load
from fxq.storage import save as save
from fxq.tracing import trace as trace
from fxq.tuning.autotune import autotune as autotune
from fxq.tuning.sensitivity import sensitivity as sensitivity
from fxq.version import __version__ as __version__

__all__ = [
    "CalibrationError",
    "FxqError",
    "GraphError",
    "InputError",
    "Override",
    "PassError",
    "PassManager",
    "Plan",
    "Recipe",
    "Report",
    "StorageError",
    "TargetError",
    "TraceError",
    "VerifyError",
    "autotune",
    "benchmark",
    "compare",
    "compile",
    "compression",
    "distill",
    "inputs",
    "load",
    "passes",
    "pipeline",
    "plan_of",
    "prepare_qat",
    "profile",
    "prune",
    "prune_sensitivity",
    "pruning",
    "qat",
    "report",
    "save",
    "sensitivity",
    "trace",
    "visualize",
]
