"""What a plan would leave."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from actprune.allocation.cost import Cost
from actprune.plan import Plan


@dataclass(frozen=True)
class Prediction:
    """What a plan would leave.

    Attributes:
        before, after: costs of the dense and of the cut network, exact.
        before_ms, after_ms: milliseconds of a forward pass, of measured ops.
    """

    plan: Plan
    before: Cost
    after: Cost
    before_ms: float
    after_ms: float

    def to_data(self) -> dict[str, Any]:
        """JSON values."""
        dense = {**asdict(self.before), "latency_ms": self.before_ms}
        groups = {
            name: {"before": group.width, "after": len(group.kept), "kept": list(group.kept)}
            for name, group in self.plan.groups.items()
        }
        return {"dense": dense, "pruned": {**asdict(self.after), "latency_ms": self.after_ms}, "groups": groups}
