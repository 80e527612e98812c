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
_WINDOW = 64  # latest shards that the rate is taken from


@dataclass(frozen=True)
class Progress:
    """The state of a corpus.

    Args:
        shards: In the plan; ``done`` of them are committed.
        rows: In the plan; ``rows_done`` of them are in committed shards, ``failed`` of those failed.
        images_per_s: Of all jobs that write it together, over the last shards; None if it cannot be told yet.
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
    timings = [index for index in _latest(times) if index in new or index not in seen.stats]
    with ThreadPoolExecutor(_READERS) as readers:
        for index, marker in zip(new, readers.map(corpus.read_marker, new), strict=True):
            seen.markers[index] = times[index], marker
        for index, stats in zip(timings, readers.map(partial(_stats, corpus), timings), strict=True):
            seen.stats[index] = stats
    markers = {index: seen.markers[index][1] for index in times}
    rows = {index: int(marker["rows"]) for index, marker in markers.items()}
    return Progress(
        shards=int(run["plan"]["shards"]),
        done=len(rows),
        rows=int(run["plan"]["rows"]),
        rows_done=sum(rows.values()),
        failed=sum(int(marker["failed"]) for marker in markers.values()),
        images_per_s=rate(times, rows),
        group_rate=_group_rate([(rows[index], seen.stats[index]) for index in _latest(times)]),
    )


def rate(times: dict[int, datetime], rows: dict[int, int]) -> float | None:
    """Images/s between the first and the last of the latest commits; None of fewer than two moments."""
    latest = _latest(times)
    span_s = (times[latest[-1]] - times[latest[0]]).total_seconds() if latest else 0.0
    first = times[latest[0]] if latest else None
    return sum(rows[index] for index in latest if times[index] != first) / span_s if span_s > 0 else None


def span(seconds: float) -> str:
    """A time as a person says it: "45 s", "12 min", "3 h 20 min"."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _latest(times: dict[int, datetime]) -> list[int]:
    return sorted(times, key=lambda index: (times[index], index))[-_WINDOW:]


def _stats(corpus: Corpus, index: int) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(corpus.read(stats_name(index)))
    except (OSError, ValueError):
        return {}
    return found


def _group_rate(shards: list[tuple[int, dict[str, Any]]]) -> float | None:
    known = [(rows, float(stats["group_s"])) for rows, stats in shards if stats.get("group_s")]
    return sum(rows for rows, _ in known) / sum(seconds for _, seconds in known) if known else None
