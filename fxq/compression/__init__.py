"""Compression beside channel pruning: sparse and shared weights, smaller layers, and training that keeps them so.

The passes (:class:`fxq.passes.Sparsify`, :class:`~fxq.passes.ShareWeights`, :class:`~fxq.passes.SeparateConvolutions`,
:class:`~fxq.passes.Factorise`) rewrite graphs; what stands here helps in the user's own training loop.
"""

from fxq.compression.codebook import freeze_shared as freeze_shared
from fxq.compression.codebook import train_shared as train_shared
from fxq.compression.distillation import Distillation as Distillation
from fxq.compression.distillation import distill as distill
from fxq.compression.zeros import KeptZeros as KeptZeros
from fxq.compression.zeros import keep_zeros as keep_zeros
