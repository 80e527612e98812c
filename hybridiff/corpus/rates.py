"""How fast a corpus grows, from when its shards were committed and how long their groups took for them."""

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Any

_LATE = 2.0  # a group that has committed nothing for so many of its shards' times is at work no more


@dataclass(frozen=True)
class Drawn:
    """A shard as its group tells of it.

    Args:
        committed: When.
        rows: Images in it.
        seconds: That the group took for it; 0 if it does not say.
        leader: The process that led the group, by which groups are told apart.
    """

    committed: datetime
    rows: int
    seconds: float
    leader: str

    @classmethod
    def read(cls, committed: datetime, rows: int, stats: Any) -> "Drawn":
        """From the document of its timings, which may be damaged and then says nothing."""
        stats = stats if isinstance(stats, dict) else {}
        seconds, group = stats.get("group_s"), stats.get("group")
        says = isinstance(seconds, float) and math.isfinite(seconds) and seconds > 0
        return cls(committed, rows, seconds if says else 0.0, str(group.get("leader", "")) if isinstance(group, dict) else "")

    def lately(self, last: datetime) -> bool:
        """Whether its group may be drawing another shard, when the last of all was committed."""
        return (last - self.committed).total_seconds() < _LATE * self.seconds


def rate(shards: list[Drawn]) -> float | None:
    """Images/s of all groups at work: the sum of the rates at which each has drawn its own shards; None if none says.

    At work is whoever has committed a shard so lately before the corpus' last one that two of its shards would take longer. So
    a group that has ended drops out, and one of a requeued job goes on under its new process; how the moments of commits lie
    does not matter.
    """
    groups: dict[str, list[Drawn]] = {}
    for shard in shards:
        if shard.seconds > 0:
            groups.setdefault(shard.leader, []).append(shard)
    last = max((shard.committed for shard in shards), default=datetime.min)
    at_work = [drawn for drawn in groups.values() if any(shard.lately(last) for shard in drawn)]
    return sum(filter(None, map(group_rate, at_work))) if at_work else None


def group_rate(shards: list[Drawn]) -> float | None:
    """Images/s of one group, over all shards whose groups say how long they took; None if none does."""
    known = [shard for shard in shards if shard.seconds > 0]
    return sum(shard.rows for shard in known) / sum(shard.seconds for shard in known) if known else None
