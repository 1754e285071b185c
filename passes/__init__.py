"""The passes, one a file; imported as fxq.passes."""

if __name__ != "fxq.passes":
    raise ImportError("import this package as fxq.passes, not as passes")

from fxq.passes.calibrate import Calibrate as Calibrate
from fxq.passes.convert_qdq import ConvertQDQ as ConvertQDQ
from fxq.passes.insert_observers import InsertObservers as InsertObservers
from fxq.passes.lower_int8 import LowerInt8 as LowerInt8

from fxq.manager import Numerics as Numerics
from fxq.manager import Pass as Pass
from fxq.manager import PassContext as PassContext
from fxq.manager import PassResult as PassResult
from fxq.manager import RulePass as RulePass
