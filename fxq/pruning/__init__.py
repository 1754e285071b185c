"""Which channels to remove: criteria, selection under limits, reconstruction, and helpers for sparse training.

``fxq.prune`` puts these together; each works by itself, too.
"""

from fxq.pruning.criteria import CRITERIA as CRITERIA
from fxq.pruning.lasso import Lasso as Lasso
from fxq.pruning.masking import Equivalence as Equivalence
from fxq.pruning.masking import compare_with_masked as compare_with_masked
from fxq.pruning.plan import Plan as Plan
from fxq.pruning.reconstruct import kept_outputs as kept_outputs
from fxq.pruning.reconstruct import reconstruct as reconstruct
from fxq.pruning.reconstruction import reconstruction_of as reconstruction_of
from fxq.pruning.reestimate import reestimate as reestimate
from fxq.pruning.structure_selection import add_block_scales as add_block_scales
from fxq.pruning.structure_selection import block_scales as block_scales
from fxq.pruning.structure_selection import remove_blocks as remove_blocks
from fxq.pruning.thinet import ThiNet as ThiNet
from fxq.pruning.training import ProximalStep as ProximalStep
from fxq.pruning.training import group_lasso as group_lasso
from fxq.pruning.training import slimming_subgradient as slimming_subgradient
from fxq.pruning.view import GroupView as GroupView
