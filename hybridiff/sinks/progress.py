"""How far a corpus is, from the corpus alone: while it is made, or long after."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from hybridiff.config import UsageError
from hybridiff.sinks.corpus import Corpus
from hybridiff.sinks.names import RUN_RECORD, stats_name

_READERS = 16
_CHUNK = 64  # shards whose timings are read at once, from the latest on
_LATE = 2.0  # a group that has committed nothing for so many of its shards' times is at work no more


@dataclass(frozen=True)
class Progress:
    """The state of a corpus.

    Args:
        shards: In the plan; ``done`` of them are committed.
        rows: In the plan; ``rows_done`` of them are in committed shards, ``failed`` of those failed.
        images_per_s: Of all groups at work together, see ``rate``; None if it cannot be told yet.
        group_rate: Images/s of one group; None if no shard says.
    """

    shards: int
    done: int
    rows: int
    rows_done: int
    failed: int
    images_per_s: float | None
    group_rate: float | None

    @property
    def left_s(self) -> float | None:
        """Seconds that the rest takes at this rate."""
        left = self.rows - self.rows_done
        return 0.0 if left <= 0 else None if not self.images_per_s else left / self.images_per_s

    def line(self) -> str:
        """The state in one line."""
        rate = "rate unknown" if self.images_per_s is None else f"{self.images_per_s:.3g} images/s"
        left = "time left unknown" if self.left_s is None else f"{span(self.left_s)} left"
        left = "whole" if self.done == self.shards else left
        images = f"{self.rows_done} of {self.rows} images"
        return f"{self.done} of {self.shards} shards, {images}, {self.failed} failed rows, {rate}, {left}"


@dataclass
class Seen:
    """What was read of a corpus before: markers with the moment of their commit, and timings; by shard."""

    markers: dict[int, tuple[datetime, dict[str, Any]]] = field(default_factory=dict)
    stats: dict[int, dict[str, Any]] = field(default_factory=dict)


def read_progress(corpus: Corpus, seen: Seen | None = None) -> Progress:
    """Looks at a corpus: one listing, and those markers and timings of its committed shards that were not read before.

    Args:
        corpus: Perhaps being written.
        seen: Kept from look to look, and filled here.

    Raises:
        UsageError: there is no corpus yet.
    """
    run = corpus.read_run()
    if run is None:
        raise UsageError(f"{corpus.url} holds no {RUN_RECORD}: no job has started on it yet")
    seen = Seen() if seen is None else seen
    times = corpus.commit_times()
    new = [index for index, time in times.items() if index not in seen.markers or seen.markers[index][0] != time]
    with ThreadPoolExecutor(_READERS) as readers:
        for index, marker in zip(new, readers.map(corpus.read_marker, new), strict=True):
            seen.markers[index] = times[index], marker
            seen.stats.pop(index, None)
        recent = _read_recent(corpus, times, seen, readers)
    markers = {index: seen.markers[index][1] for index in times}
    rows = {index: int(marker["rows"]) for index, marker in markers.items()}
    return Progress(
        shards=int(run["plan"]["shards"]),
        done=len(rows),
        rows=int(run["plan"]["rows"]),
        rows_done=sum(rows.values()),
        failed=sum(int(marker["failed"]) for marker in markers.values()),
        images_per_s=rate([Drawn.read(times[index], rows[index], seen.stats[index]) for index in recent]),
        group_rate=_group_rate([(rows[index], seen.stats[index]) for index in recent]),
    )


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
    def read(cls, committed: datetime, rows: int, stats: dict[str, Any]) -> "Drawn":
        """From its timings."""
        return cls(committed, rows, float(stats.get("group_s") or 0.0), str(stats.get("group", {}).get("leader", "")))


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
    last = max((shard.committed for shard in shards), default=None)
    at_work = [drawn for drawn in groups.values() if any(_lately(shard, last) for shard in drawn)]
    return sum(sum(s.rows for s in drawn) / sum(s.seconds for s in drawn) for drawn in at_work) if at_work else None


def span(seconds: float) -> str:
    """A time as a person says it: "45 s", "12 min", "3 h 20 min"."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _lately(shard: Drawn, last: datetime | None) -> bool:
    return last is not None and (last - shard.committed).total_seconds() < _LATE * shard.seconds


def _read_recent(corpus: Corpus, times: dict[int, datetime], seen: Seen, readers: ThreadPoolExecutor) -> list[int]:
    """Reads the timings of the latest shards, back to where no group at work has committed any; their indices."""
    latest = sorted(times, key=lambda index: (times[index], index), reverse=True)
    for start in range(0, len(latest), _CHUNK):
        chunk = latest[start : start + _CHUNK]
        unread = [index for index in chunk if index not in seen.stats]
        for index, stats in zip(unread, readers.map(partial(_stats, corpus), unread), strict=True):
            seen.stats[index] = stats
        if not any(_lately(Drawn.read(times[index], 0, seen.stats[index]), times[latest[0]]) for index in chunk):
            return latest[: start + _CHUNK]
    return latest


def _stats(corpus: Corpus, index: int) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(corpus.read(stats_name(index)))
    except (OSError, ValueError):
        return {}
    return found


def _group_rate(shards: list[tuple[int, dict[str, Any]]]) -> float | None:
    known = [(rows, float(stats["group_s"])) for rows, stats in shards if stats.get("group_s")]
    return sum(rows for rows, _ in known) / sum(seconds for _, seconds in known) if known else None
