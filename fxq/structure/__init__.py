"""Which channels of a graph can only be removed together, where they lie in its parameters, and what they cost."""

from fxq.structure.analyse import analyse
from fxq.structure.analysis import Opaque
from fxq.structure.group import Group, Mask, Member, per_unit, rows, tensor_of
from fxq.structure.structure import Costs, Keep, Structure

__all__ = [
    "Costs",
    "Group",
    "Keep",
    "Mask",
    "Member",
    "Opaque",
    "Structure",
    "analyse",
    "per_unit",
    "rows",
    "tensor_of",
]
