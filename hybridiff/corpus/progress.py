"""How far a corpus is, and how fast it grows, from the corpus alone: while it is generated, or long after."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from hybridiff.corpus.corpus import REPAIR, Corpus
from hybridiff.corpus.layout import RUN_RECORD, marker_counts, marker_name, stats_name
from hybridiff.errors import UsageError, amount
from hybridiff.storage.folder import parse_json

_LATE = 2.0  # a group that has committed nothing for this many of its shards' durations has ended
_READERS = 16
_CHUNK = 64  # shards whose timings are read at a time, from the latest on


@dataclass(frozen=True)
class ShardTiming:
    """How long a group took for a shard.

    Args:
        committed: time of the commit, by the storage's clock.
        rows: number of images.
        seconds: duration; 0 if it is not known.
        leader: identity of the process that led the group.
    """

    committed: datetime
    rows: int
    seconds: float
    leader: str

    @classmethod
    def read(cls, committed: datetime, rows: int, stats: Any) -> "ShardTiming":
        """Reads the document of a shard's timings; a damaged one has no duration."""
        stats = stats if isinstance(stats, dict) else {}
        seconds, group = stats.get("group_s"), stats.get("group")
        says = isinstance(seconds, float) and math.isfinite(seconds) and seconds > 0
        return cls(committed, rows, seconds if says else 0.0, str(group.get("leader", "")) if isinstance(group, dict) else "")

    def recent(self, last: datetime) -> bool:
        """Whether its group may be generating another shard at the time of the corpus' last commit."""
        return (last - self.committed).total_seconds() < _LATE * self.seconds


@dataclass(frozen=True)
class Progress:
    """The state of a corpus.

    Args:
        shards: number of shards in the plan; ``done`` of them are committed.
        rows: number of rows in the plan; ``rows_done`` of them are in committed shards, ``failed`` of those failed.
        images_per_s: rate of all active groups together, see ``rate``; None if it is not known yet.
        group_rate: images/s of one group; None if no shard says.
        damaged: names of markers that can't be read: their shards are not done, though runs skip them.
    """

    shards: int
    done: int
    rows: int
    rows_done: int
    failed: int
    images_per_s: float | None
    group_rate: float | None
    damaged: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether all shards are done."""
        return self.done == self.shards

    @property
    def stuck(self) -> bool:
        """Whether runs have nothing left to generate, as every shard that is not done has a damaged marker."""
        return bool(self.damaged) and self.done + len(self.damaged) == self.shards

    @property
    def left_s(self) -> float | None:
        """Seconds that the rest takes at this rate; None if that is not known."""
        left = self.rows - self.rows_done
        return 0.0 if left <= 0 else None if not self.images_per_s else left / self.images_per_s

    def line(self) -> str:
        """The state in one line."""
        rate = "rate unknown" if self.images_per_s is None else f"{self.images_per_s:.3g} images/s"
        left = "time left unknown" if self.left_s is None else f"{span(self.left_s)} left"
        left = "whole" if self.whole else left
        if self.damaged:
            count = f", and {len(self.damaged) - 1} more" if len(self.damaged) > 1 else ""
            left += f"; damaged: {self.damaged[0]}{count}: {REPAIR}"
        images = f"{self.rows_done} of {self.rows} images"
        return f"{self.done} of {self.shards} shards, {images}, {amount(self.failed, 'failed row')}, {rate}, {left}"


@dataclass
class Seen:
    """What was read of a corpus before, by shard: counts of markers with the time of their commit, and timings."""

    markers: dict[int, tuple[datetime, dict[str, int]]] = field(default_factory=dict)
    timings: dict[int, ShardTiming] = field(default_factory=dict)


def read_progress(corpus: Corpus, seen: Seen | None = None) -> Progress:
    """Reads a corpus' progress: one listing, and the markers and timings of committed shards that were not read before.

    Damaged timings do not count for the rate.

    Args:
        corpus: the corpus, which may be being written.
        seen: what earlier calls have read; filled here.

    Raises:
        UsageError: there is no corpus yet, or its run record is damaged.
    """
    rows, shards = _planned(corpus)
    seen = Seen() if seen is None else seen
    times = corpus.commit_times()
    with ThreadPoolExecutor(_READERS) as readers:
        damaged = _read_new(corpus, times, seen, readers)
        times = {index: time for index, time in times.items() if index in seen.markers}
        recent = _read_recent(corpus, seen, times, readers)
    counts = [seen.markers[index][1] for index in times]
    return Progress(
        shards=shards,
        done=len(counts),
        rows=rows,
        rows_done=sum(count["rows"] for count in counts),
        failed=sum(count["failed"] for count in counts),
        images_per_s=rate(recent),
        group_rate=group_rate(recent),
        damaged=tuple(damaged),
    )


def span(seconds: float) -> str:
    """A duration in words: "45 s", "12 min", "3 h 20 min"."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _planned(corpus: Corpus) -> tuple[int, int]:
    """Rows and shards of the plan."""
    run = corpus.read_run()
    if run is None:
        raise UsageError(f"{corpus.url} holds no {RUN_RECORD}: no job has started on it yet")
    rows, shards = (run["plan"].get(name) for name in ("rows", "shards"))
    if not (isinstance(rows, int) and isinstance(shards, int)):
        raise UsageError(f"{corpus.url}: {RUN_RECORD} is no run record; its plan must hold numbers of rows and shards")
    return rows, shards


def _read_new(corpus: Corpus, times: dict[int, datetime], seen: Seen, readers: ThreadPoolExecutor) -> list[str]:
    """Reads new and changed markers; returns the names of damaged ones, which are read again each time."""
    new = [index for index, time in times.items() if index not in seen.markers or seen.markers[index][0] != time]
    damaged = []
    for index, counts in zip(new, readers.map(partial(_counts, corpus), new), strict=True):
        seen.markers.pop(index, None)
        seen.timings.pop(index, None)
        if isinstance(counts, dict):
            seen.markers[index] = times[index], counts
        elif counts is not None:
            damaged.append(marker_name(index))
    return damaged


def _counts(corpus: Corpus, index: int) -> dict[str, int] | ValueError | None:
    try:
        return marker_counts(corpus.read_marker(index), index)
    except FileNotFoundError:  # removed since the listing, as when failed rows are regenerated
        return None
    except ValueError as error:
        return error


def _read_recent(corpus: Corpus, seen: Seen, times: dict[int, datetime], readers: ThreadPoolExecutor) -> list[ShardTiming]:
    """The latest of these shards with their timings, back to where no active group has committed any."""
    latest = sorted(times, key=lambda index: (times[index], index), reverse=True)
    for start in range(0, len(latest), _CHUNK):
        chunk = latest[start : start + _CHUNK]
        unread = [index for index in chunk if index not in seen.timings]
        for index, stats in zip(unread, readers.map(partial(_stats, corpus), unread), strict=True):
            seen.timings[index] = ShardTiming.read(times[index], seen.markers[index][1]["rows"], stats)
        if not any(seen.timings[index].recent(times[latest[0]]) for index in chunk):
            latest = latest[: start + _CHUNK]
            break
    return [seen.timings[index] for index in latest]


def _stats(corpus: Corpus, index: int) -> Any:
    try:
        return parse_json(corpus.read(stats_name(index)))
    except (FileNotFoundError, ValueError):
        return None


def rate(shards: list[ShardTiming]) -> float | None:
    """Images/s of all active groups: the sum of the groups' own rates; None if no duration is known.

    A group is active if it has committed a shard less than two of its shards' durations before the corpus' last commit. So a
    group that has ended drops out, and a requeued one goes on under its new process.
    """
    groups: dict[str, list[ShardTiming]] = {}
    for shard in shards:
        if shard.seconds > 0:
            groups.setdefault(shard.leader, []).append(shard)
    last = max((shard.committed for shard in shards), default=datetime.min)
    active = [timings for timings in groups.values() if any(shard.recent(last) for shard in timings)]
    return sum(filter(None, map(group_rate, active))) if active else None


def group_rate(shards: list[ShardTiming]) -> float | None:
    """Images/s of one group, over all shards of known duration; None if there are none."""
    known = [shard for shard in shards if shard.seconds > 0]
    return sum(shard.rows for shard in known) / sum(shard.seconds for shard in known) if known else None
