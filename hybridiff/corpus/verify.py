"""The check of a whole corpus: everything that its markers promise is read again, one sample in memory at a time."""

import re
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from multiprocessing import get_context

import numpy as np
from numpy.typing import NDArray

from hybridiff.columns import CAPTION
from hybridiff.corpus.check import Finding, ShardCheck, key_hash, read_keys
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.layout import LEASES, MARKER, RUN_RECORD, lease_of, marker_name, metadata_name, tar_name
from hybridiff.corpus.reader import check_regular
from hybridiff.errors import UsageError
from hybridiff.secrets import one_line
from hybridiff.storage.filesystem import expect_answers
from hybridiff.storage.lease import LEASE_S, Leases
from hybridiff.storage.lease_file import live_leases
from hybridiff.storage.owner import Owner

_SHOWN = 10  # problems of a shard, missing shards and unchecked names that are listed
_LIKE_MARKER = re.compile(r"\d+\.json")


@dataclass
class Report:
    """What ``verify`` found.

    Attributes:
        shards: number of shards with a commit marker.
        rows: sum over the readable markers, as are ``ok`` and ``failed``.
        missing: number of shards without a commit marker.
        corrupt: number of shards that are not what their marker says; a run record that is missing or damaged, and a file in
            commits/ that looks like a marker and is none, count as one more each.
        unreadable: number of shards of which storage did not give something that it has: whether they are whole is not known.
        problems: one line each.
        notes: files that no marker counts: not checked, and no problem.
        damaged: the corrupt shards with their markers: generating them again helps.
    """

    shards: int = 0
    rows: int = 0
    ok: int = 0
    failed: int = 0
    missing: int = 0
    corrupt: int = 0
    unreadable: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    damaged: dict[int, bytes] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether nothing is missing, corrupt or unreadable."""
        return not (self.missing or self.corrupt or self.unreadable)

    def summary(self) -> dict[str, int]:
        """The counts by name."""
        return {name: getattr(self, name) for name in ("shards", "rows", "ok", "failed", "missing", "corrupt", "unreadable")}

    def add(self, found: Finding) -> None:
        """Counts what was found in a shard."""
        for name, number in (found.counts or {}).items():
            setattr(self, name, getattr(self, name) + number)
        if not found.problems:
            return
        if found.unreadable:
            self.unreadable += 1
        else:
            self.corrupt += 1
            self.damaged[found.index] = found.marker
        self.problems += found.problems[:_SHOWN]
        if len(found.problems) > _SHOWN:
            self.problems.append(f"shard {found.index:05d}: {len(found.problems) - _SHOWN} more problems")


def verify(corpus: Corpus, processes: int = 1) -> Report:
    """Checks a corpus against its markers and its run record.

    Args:
        corpus: the corpus.
        processes: number of processes that read shards at the same time.

    Raises:
        UsageError: there is no corpus.
    """
    report = Report()
    committed = corpus.committed()
    planned = _planned(corpus, report, bool(committed))
    report.shards = len(committed)
    findings = list(_checked(corpus, sorted(committed), planned, processes))
    _find_twice(corpus, findings)
    _find_other_runs(report, findings, planned.fingerprint)
    for found in findings:
        if planned.shards is not None and found.index >= planned.shards:
            found.problem(f"{marker_name(found.index)}: the plan has only {planned.shards} shards")
        report.add(found)
    _find_missing(report, planned.shards or 0, committed)
    _find_odd_names(corpus, report)
    if planned.rows is not None and report.whole and report.rows != planned.rows:
        report.corrupt += 1
        report.problems.append(f"{RUN_RECORD}: the plan has {planned.rows} rows, the markers {report.rows}")
    report.notes += [*_uncommitted(corpus, committed), *_unchecked(corpus)]
    return report


def repair(corpus: Corpus, report: Report, owner: Owner | None = None) -> list[str]:
    """Removes the markers of damaged shards, so that the next run generates them again; returns the names of those it removed.

    It acquires the lease on each shard first. What it does not remove is one more problem of the report: the marker of a shard
    whose lease a live process holds, and one that storage does not remove. A marker that is not the one that was checked stays: a
    run has generated the shard again meanwhile.

    Args:
        corpus: whose shards were checked
        report: what was found
        owner: this process, with its batch job
    """
    leases = Leases(corpus, LEASES, LEASE_S, owner or Owner.here()) if corpus.creates_if_absent else None
    with leases.heartbeat() if leases else nullcontext():
        return [name for index in report.damaged if (name := _remove_marker(corpus, report, index, leases))]


def _remove_marker(corpus: Corpus, report: Report, index: int, leases: Leases | None) -> str | None:
    name, lease = marker_name(index), lease_of(index)
    try:
        if leases is not None and not leases.acquire(lease):
            holder = live_leases(corpus, LEASES).get(lease)
            report.problems.append(f"{name}: not removed, as its shard is being written by {holder or 'another process'}")
            return None
        if corpus.read(name) != report.damaged[index]:
            return None
        if leases is not None:
            leases.require(lease)
        corpus.remove(name)
        return name
    except FileNotFoundError:  # removed by another repair
        return None
    except Exception as error:  # of the storage
        report.problems.append(f"{name}: can't be removed ({one_line(error)})")
        return None
    finally:
        if leases is not None:
            with suppress(Exception):  # it expires
                leases.release(lease)


def _checked(corpus: Corpus, indices: list[int], planned: "_Planned", processes: int) -> Iterator[Finding]:
    """The findings of these shards, in order, by at most this many processes."""
    workers = min(processes, len(indices))
    if workers < 2:
        yield from map(partial(_check, corpus, planned), indices)
        return
    # forking would break remote file systems' threads
    with ProcessPoolExecutor(workers, get_context("spawn"), _end_at_once) as pool:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # of processes that begin here, too
        try:
            found = pool.map(partial(_check, corpus, planned), indices)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield from found


def _end_at_once() -> None:
    """In a process that reads: Ctrl-C ends it silently, as the one that started it prints the message."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _check(corpus: Corpus, planned: "_Planned", index: int) -> Finding:
    expect_answers(corpus.fs)  # it answered to the process that has listed the shards
    return ShardCheck(corpus, index, planned.sidecar, planned.text).run()


def _find_other_runs(report: Report, findings: Sequence[Finding], fingerprint: str | None) -> None:
    """Finds markers of another run than run.json, or run.json itself if several markers agree and none with it."""
    named = [found.fingerprint for found in findings if found.fingerprint is not None]
    others = [found for found in findings if fingerprint is not None and found.fingerprint not in (None, fingerprint)]
    if len(others) == len(named) > 1 == len(set(named)):
        report.corrupt += 1
        report.problems.append(f"{RUN_RECORD}: of another run ({fingerprint}) than all markers ({named[0]})")
        return
    for found in others:
        found.problem(f"{marker_name(found.index)}: of another run ({found.fingerprint}) than {RUN_RECORD}")


def _find_twice(corpus: Corpus, findings: Sequence[Finding]) -> None:
    """Finds keys that occur in several shards, and names them in the later one."""
    suspects = _repeated([np.frombuffer(found.keys, np.uint64) for found in findings if found.keys])
    hashes, seen = set(suspects.tolist()), set[str]()
    for found in findings if hashes else ():
        if not found.keys or not np.isin(np.frombuffer(found.keys, np.uint64), suspects).any():
            continue
        try:
            for key in read_keys(corpus, found.index):
                if key_hash(key) in hashes:
                    if key in seen:
                        found.problem(f"{metadata_name(found.index)}: key {key!r} occurs twice in the corpus")
                    seen.add(key)
        except Exception as error:  # of the storage: these rows were read before
            found.problem(f"{metadata_name(found.index)}: {one_line(error)}")
            found.unreadable = True


def _repeated(hashes: list[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """Values that occur more than once."""
    if not hashes:
        return np.empty(0, np.uint64)
    together = np.concatenate(hashes)
    together.sort()
    return np.unique(together[1:][together[1:] == together[:-1]])


@dataclass(frozen=True)
class _Planned:
    """What a corpus should hold; None if not known."""

    rows: int | None = None
    shards: int | None = None
    sidecar: bool | None = None
    fingerprint: str | None = None
    text: str | None = None


def _planned(corpus: Corpus, report: Report, any_marker: bool) -> _Planned:
    """What run.json says; nothing, and a problem, if it is missing or damaged."""
    try:
        with_record = _has_record(corpus)
        run = corpus.read_run() if with_record else None
        if run is not None:
            rows, shards = (run["plan"][name] for name in ("rows", "shards"))
            if not all(type(number) is int and number >= 0 for number in (rows, shards)) or shards > rows:
                raise ValueError(f"its plan has {shards!r} shards of {rows!r} rows in all")
            output = run["configuration"].get("output", {})
            text = "prompt" if output.get(CAPTION) is None else CAPTION
            return _Planned(rows, shards, output.get("sidecar", "json") == "json", run["fingerprint"], text)
        text = f"{RUN_RECORD}: missing"
    except (UsageError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        text = f"{RUN_RECORD}: {one_line(error)}"
        run = {}
    if run is None and not any_marker:
        raise UsageError(f"{corpus.url} holds no corpus: neither {RUN_RECORD} nor a marker in commits/")
    report.corrupt += 1
    report.problems.append(text)
    return _Planned()


def _has_record(corpus: Corpus) -> bool:
    """Whether there is a run record; raises ValueError if it is no file that can be read in a moment."""
    try:
        check_regular(corpus, RUN_RECORD)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _find_missing(report: Report, shards: int, committed: set[int]) -> None:
    """Counts shards without a marker, and names the first."""
    report.missing = shards - sum(index < shards for index in committed)
    absent = (index for index in range(shards) if index not in committed)
    report.problems += [f"{marker_name(index)}: missing" for index in islice(absent, min(_SHOWN, report.missing))]
    if report.missing > _SHOWN:
        report.problems.append(f"commits/: {report.missing - _SHOWN} more markers missing")


def _find_odd_names(corpus: Corpus, report: Report) -> None:
    """Finds files in commits/ that look like markers and are no shard's, as 000000.json beside 00000.json."""
    odd = [name for name in corpus.names("commits") if _LIKE_MARKER.fullmatch(name) and not MARKER.fullmatch(name)]
    report.corrupt += len(odd)
    report.problems += [f"commits/{name}: no shard's marker has this name" for name in odd[:_SHOWN]]
    if len(odd) > _SHOWN:
        report.problems.append(f"commits/: {len(odd) - _SHOWN} more names that no shard's marker has")


def _uncommitted(corpus: Corpus, committed: set[int]) -> list[str]:
    """Files in the directories of shards that no marker counts."""
    known = {name for index in committed for name in (tar_name(index), metadata_name(index))}
    found = (f"{directory}/{name}" for directory in ("images", "metadata") for name in corpus.names(directory))
    return [f"{name}: without a marker; ignored" for name in found if name not in known]


def _unchecked(corpus: Corpus) -> list[str]:
    """A line on everything else in the corpus."""
    names = [name for name in corpus.names("") if name not in (RUN_RECORD, "images", "metadata", "commits")]
    names += [f"commits/{name}" for name in corpus.names("commits") if not _LIKE_MARKER.fullmatch(name)]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"not checked, as no marker counts them: {', '.join(names[:_SHOWN])}{more}"] if names else []
