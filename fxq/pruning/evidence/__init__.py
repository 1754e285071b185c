"""What scoring knows beside the weights: gradients, activation statistics, and what follows each layer."""

from fxq.pruning.evidence.activations import ChannelStatistics as ChannelStatistics
from fxq.pruning.evidence.activations import collect_activations as collect_activations
from fxq.pruning.evidence.activations import layers_of as layers_of
from fxq.pruning.evidence.chains import Chains as Chains
from fxq.pruning.evidence.gradients import Gradients as Gradients
from fxq.pruning.evidence.gradients import collect_gradients as collect_gradients
from fxq.pruning.evidence.gradients import cross_entropy as cross_entropy
