"""Which units stay: from the scores of groups, and a ratio or a budget, to masks. Pure functions."""

from fxq.pruning.selection.budget import TOLERANCE as TOLERANCE
from fxq.pruning.selection.budget import Found as Found
from fxq.pruning.selection.budget import bisect as bisect
from fxq.pruning.selection.budget import check_budget as check_budget
from fxq.pruning.selection.budget import check_reached as check_reached
from fxq.pruning.selection.budget import fit as fit
from fxq.pruning.selection.family import Counts as Counts
from fxq.pruning.selection.family import Family as Family
from fxq.pruning.selection.family import Threshold as Threshold
from fxq.pruning.selection.family import Uniform as Uniform
from fxq.pruning.selection.family import masks as masks
from fxq.pruning.selection.ladder import Ladder as Ladder
from fxq.pruning.selection.ladder import build_ladder as build_ladder
from fxq.pruning.selection.limits import Choices as Choices
from fxq.pruning.selection.limits import Limits as Limits
from fxq.pruning.selection.limits import check_limits as check_limits
from fxq.pruning.selection.limits import check_ratio as check_ratio
from fxq.pruning.selection.limits import choices as choices
from fxq.pruning.selection.limits import kept_count as kept_count
