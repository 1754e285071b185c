"""What criteria have in common that look at what a group's consumers do with its channels on data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, Self

from torch import Tensor, fx

from fxq.errors import InputError
from fxq.pruning.unit_moments import UnitMoments, collect_unit_moments
from fxq.structure.group import Group


class Named(Protocol):
    """A group, or a view of one."""

    @property
    def name(self) -> str:
        """The group's name."""


@dataclass(frozen=True, eq=False)
class SampledCriterion(ABC):
    """A criterion on second moments of the units' contributions; :meth:`fitted` collects them, in one run.

    Attributes:
        points: output positions of each image for each consumer; None takes all.
        filters: random filters at each position; None sums over all of them.
        seed: of the positions and filters.
        moments: what was collected, by the name of the group.
    """

    points: int | None = 10
    filters: int | None = None
    seed: int = 0
    moments: Mapping[str, UnitMoments] | None = None
    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset({"data"})

    @property
    def sequential(self) -> bool:
        """Whether the scores depend on what was decided in other groups."""
        return False

    def fitted(
        self,
        model: fx.GraphModule,
        groups: Iterable[Group],
        data: Any,
        *,
        original: fx.GraphModule | None = None,
        progress: bool | None = None,
    ) -> Self:
        """Return this criterion with the moments of ``groups``; arguments as of `collect_unit_moments`.

        A fitted one is returned as it is.
        """
        if self.moments is not None:
            return self
        moments = collect_unit_moments(
            model, groups, data, original=original, points=self.points, filters=self.filters, seed=self.seed,
            progress=progress,
        )  # fmt: skip
        return replace(self, moments=moments)

    def __call__(self, group: Named) -> Tensor:
        """Return the scores of the group's units, float64 of shape (size,).

        Raises:
            InputError: no data was seen, or no convolution or linear layer reads the group.
        """
        if self.moments is None:
            raise InputError(
                f"criterion {self.name!r} has seen no data", where=f"group {group.name!r}",
                fix=f"give {type(self).__name__}(...).fitted(model, groups, data)",
            )  # fmt: skip
        if group.name not in self.moments:
            raise InputError(
                f"criterion {self.name!r} has nothing to score in a group", where=f"group {group.name!r}",
                why="no convolution or linear layer that reads its channels was sampled",
                fix="protect it, or choose another criterion",
            )  # fmt: skip
        return self.score(self.moments[group.name])

    @abstractmethod
    def score(self, moments: UnitMoments) -> Tensor:
        """Score the units of one group."""
