"""What the figures are to be: a target that is missed is printed as it was, and fails nothing."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """Bounds of a figure, on a quiet machine of two cores."""

    at_least: float = float("-inf")
    at_most: float = float("inf")

    def miss(self, name: str, value: float) -> str | None:
        """Return what is to be said of a value outside the bounds, None for one within."""
        if value < self.at_least:
            return f"missed: {name} is {value:.6g}, and is to be at least {self.at_least:.6g}"
        if value > self.at_most:
            return f"missed: {name} is {value:.6g}, and is to be at most {self.at_most:.6g}"
        return None


def missed(figures: Mapping[str, float], targets: Mapping[str, Target]) -> list[str]:
    """Return a line for each figure that was measured and misses its target."""
    lines = [targets[name].miss(name, value) for name, value in figures.items() if name in targets]
    return [line for line in lines if line]
