"""What a model costs, how fast it is, and how far a compiled one lies from its reference."""

from fxq.analysis.benchmark import BenchmarkResult as BenchmarkResult
from fxq.analysis.benchmark import benchmark as benchmark
from fxq.analysis.compare import Comparison as Comparison
from fxq.analysis.compare import LayerError as LayerError
from fxq.analysis.compare import Uncompared as Uncompared
from fxq.analysis.compare import compare as compare
from fxq.analysis.costs import LayerCost as LayerCost
from fxq.analysis.costs import Profile as Profile
from fxq.analysis.profile import profile as profile
