"""How far a corpus is, from the corpus alone: while it is made, or long after."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from hybridiff.corpus.corpus import REPAIR, Corpus
from hybridiff.corpus.names import RUN_RECORD, marker_counts, marker_name, stats_name
from hybridiff.corpus.rates import Drawn, group_rate, rate
from hybridiff.errors import UsageError

_READERS = 16
_CHUNK = 64  # shards whose timings are read at once, from the latest on


@dataclass(frozen=True)
class Progress:
    """The state of a corpus.

    Args:
        shards: In the plan; ``done`` of them are committed.
        rows: In the plan; ``rows_done`` of them are in committed shards, ``failed`` of those failed.
        images_per_s: Of all groups at work together, see ``rate``; None if it cannot be told yet.
        group_rate: Images/s of one group; None if no shard says.
        damaged: Names of markers that can't be read: their shards are not done, though runs leave them alone.
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
        """Whether runs have nothing left to make, as every shard that is not done has a damaged marker."""
        return bool(self.damaged) and self.done + len(self.damaged) == self.shards

    @property
    def left_s(self) -> float | None:
        """Seconds that the rest takes at this rate."""
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
        return f"{self.done} of {self.shards} shards, {images}, {self.failed} failed rows, {rate}, {left}"


@dataclass
class Seen:
    """What was read of a corpus before: counts of markers with the moment of their commit, and timings; by shard."""

    markers: dict[int, tuple[datetime, dict[str, int]]] = field(default_factory=dict)
    drawn: dict[int, Drawn] = field(default_factory=dict)


def read_progress(corpus: Corpus, seen: Seen | None = None) -> Progress:
    """Looks at a corpus: one listing, and those markers and timings of its committed shards that were not read before.

    Timings that are damaged say nothing of the rate.

    Args:
        corpus: Perhaps being written.
        seen: Kept from look to look, and filled here.

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
    """A time as a person says it: "45 s", "12 min", "3 h 20 min"."""
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
    """Reads the markers that are new or of another moment; names of those that are damaged, which are read again each time."""
    new = [index for index, time in times.items() if index not in seen.markers or seen.markers[index][0] != time]
    damaged = []
    for index, counts in zip(new, readers.map(partial(_counts, corpus), new), strict=True):
        seen.markers.pop(index, None)
        seen.drawn.pop(index, None)
        if isinstance(counts, dict):
            seen.markers[index] = times[index], counts
        elif counts is not None:
            damaged.append(marker_name(index))
    return damaged


def _counts(corpus: Corpus, index: int) -> dict[str, int] | ValueError | None:
    try:
        return marker_counts(corpus.read_marker(index), index)
    except FileNotFoundError:  # taken away since the listing, as where failed rows are drawn again
        return None
    except ValueError as error:
        return error


def _read_recent(corpus: Corpus, seen: Seen, times: dict[int, datetime], readers: ThreadPoolExecutor) -> list[Drawn]:
    """The latest of these shards with their timings, back to where no group at work has committed any."""
    latest = sorted(times, key=lambda index: (times[index], index), reverse=True)
    for start in range(0, len(latest), _CHUNK):
        chunk = latest[start : start + _CHUNK]
        unread = [index for index in chunk if index not in seen.drawn]
        for index, stats in zip(unread, readers.map(partial(_stats, corpus), unread), strict=True):
            seen.drawn[index] = Drawn.read(times[index], seen.markers[index][1]["rows"], stats)
        if not any(seen.drawn[index].lately(times[latest[0]]) for index in chunk):
            latest = latest[: start + _CHUNK]
            break
    return [seen.drawn[index] for index in latest]


def _stats(corpus: Corpus, index: int) -> Any:
    try:
        return json.loads(corpus.read(stats_name(index)))
    except (FileNotFoundError, ValueError):
        return None
