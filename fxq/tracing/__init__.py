"""From a ``torch.nn.Module`` to a ``torch.fx.GraphModule``."""

from fxq.ir.module import TracedModule
from fxq.tracing.capture import check_traceable, trace
from fxq.tracing.inputs import ModelInputs, clone_inputs, normalise_inputs
from fxq.tracing.record import OpaqueLeaf, SpecialisedArgument, TraceRecord

__all__ = [
    "ModelInputs",
    "OpaqueLeaf",
    "SpecialisedArgument",
    "TraceRecord",
    "TracedModule",
    "check_traceable",
    "clone_inputs",
    "normalise_inputs",
    "trace",
]
