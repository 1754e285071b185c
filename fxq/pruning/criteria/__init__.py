"""Criteria: what makes a channel worth keeping."""

from fxq.pruning.criteria.activation import APoZ as APoZ
from fxq.pruning.criteria.activation import MeanActivation as MeanActivation
from fxq.pruning.criteria.base import Criterion as Criterion
from fxq.pruning.criteria.base import LayerCriterion as LayerCriterion
from fxq.pruning.criteria.base import MemberScores as MemberScores
from fxq.pruning.criteria.base import UserCriterion as UserCriterion
from fxq.pruning.criteria.batch_norm_scale import BatchNormScale as BatchNormScale
from fxq.pruning.criteria.coupling import COUPLINGS as COUPLINGS
from fxq.pruning.criteria.coupling import combine as combine
from fxq.pruning.criteria.geometric_median import GeometricMedian as GeometricMedian
from fxq.pruning.criteria.normalisation import NORMALISATIONS as NORMALISATIONS
from fxq.pruning.criteria.normalisation import normalise as normalise
from fxq.pruning.criteria.norms import L1 as L1
from fxq.pruning.criteria.norms import L2 as L2
from fxq.pruning.criteria.random import Random as Random
from fxq.pruning.criteria.scoring import GroupScores as GroupScores
from fxq.pruning.criteria.scoring import score_group as score_group
from fxq.pruning.criteria.scoring import score_groups as score_groups
from fxq.pruning.criteria.table import CRITERIA as CRITERIA
from fxq.pruning.criteria.table import check_needs as check_needs
from fxq.pruning.criteria.table import resolve_criterion as resolve_criterion
from fxq.pruning.criteria.taylor import Taylor as Taylor
from fxq.pruning.criteria.taylor import TaylorGate as TaylorGate
