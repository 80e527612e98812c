"""Is a corpus whole? Everything its markers promise is read again, one sample in memory at a time."""

import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import numpy as np
from numpy.typing import NDArray

from hybridiff.corpus.check import Finding, ShardCheck, key_hash, read_keys
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.names import LEASES, RUN_RECORD, lease_of, marker_name, metadata_name, tar_name
from hybridiff.corpus.report import Report
from hybridiff.errors import UsageError
from hybridiff.secrets import one_line
from hybridiff.storage.filesystem import expect_answers
from hybridiff.storage.lease import Leases, Owner, live_leases

REPAIR_LEASE_S = 150.0  # beyond the retry budget of any storage


def verify(corpus: Corpus, processes: int = 1) -> Report:
    """Checks a corpus against its markers and its run record.

    Args:
        corpus: What to check.
        processes: That read shards at the same time.

    Raises:
        UsageError: If there is no corpus at all.
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
    absent = sorted(set(range(planned.shards or 0)) - committed)
    report.missing = len(absent)
    report.problems += [f"{marker_name(index)}: missing" for index in absent]
    if planned.rows is not None and report.whole and report.rows != planned.rows:
        report.corrupt += 1
        report.problems.append(f"{RUN_RECORD}: the plan has {planned.rows} rows, the markers {report.rows}")
    report.notes += _uncommitted(corpus, committed)
    return report


def repair(corpus: Corpus, report: Report, owner: Owner | None = None) -> list[str]:
    """Removes the markers of damaged shards, so that the next run generates them again; returns the names of those it removed.

    It acquires the lease on each shard first. What it does not remove is one more problem of the report: the marker of a shard
    whose lease a live process holds, and one that storage does not remove. A marker that is not the one that was checked stays: a
    run has made the shard anew meanwhile.

    Args:
        corpus: whose shards were checked
        report: what was found
        owner: this process, with its batch job
    """
    leases = Leases(corpus, LEASES, REPAIR_LEASE_S, owner or Owner.here()) if corpus.creates_if_absent else None
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
    """What is found in these shards, in order, by as many processes at most."""
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
    """In a process that reads: Ctrl-C ends it without a word, as the one that started it will say so."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _check(corpus: Corpus, planned: "_Planned", index: int) -> Finding:
    expect_answers(corpus.fs)  # to the process that has listed the shards
    return ShardCheck(corpus, index, planned.sidecar).run()


def _find_other_runs(report: Report, findings: Sequence[Finding], fingerprint: str | None) -> None:
    """Notes markers of another run than run.json, or run.json where several markers agree with one another and none with it."""
    named = [found.fingerprint for found in findings if found.fingerprint is not None]
    others = [found for found in findings if fingerprint is not None and found.fingerprint not in (None, fingerprint)]
    if len(others) == len(named) > 1 == len(set(named)):
        report.corrupt += 1
        report.problems.append(f"{RUN_RECORD}: of another run ({fingerprint}) than all markers ({named[0]})")
        return
    for found in others:
        found.problem(f"{marker_name(found.index)}: of another run ({found.fingerprint}) than {RUN_RECORD}")


def _find_twice(corpus: Corpus, findings: Sequence[Finding]) -> None:
    """Notes keys that occur more than once, in the shard in which they do so again."""
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
    """What a corpus should hold; None of what is not known."""

    rows: int | None = None
    shards: int | None = None
    sidecar: bool | None = None
    fingerprint: str | None = None


def _planned(corpus: Corpus, report: Report, any_marker: bool) -> _Planned:
    """What run.json says; nothing, and a problem, if it does not."""
    try:
        run = corpus.read_run()
        if run is not None:
            rows, shards = (int(run["plan"][name]) for name in ("rows", "shards"))
            sidecar = run["configuration"].get("output", {}).get("sidecar", "json") == "json"
            return _Planned(rows, shards, sidecar, run["fingerprint"])
        text = f"{RUN_RECORD}: missing"
    except (UsageError, AttributeError, KeyError, TypeError, ValueError) as error:
        text = f"{RUN_RECORD}: {one_line(error)}"
        run = {}
    if run is None and not any_marker:
        raise UsageError(f"{corpus.url} holds no corpus: neither {RUN_RECORD} nor a marker in commits/")
    report.corrupt += 1
    report.problems.append(text)
    return _Planned()


def _uncommitted(corpus: Corpus, committed: set[int]) -> list[str]:
    """Files in the directories of shards that no marker vouches for."""
    known = {name for index in committed for name in (tar_name(index), metadata_name(index))}
    found = (f"{directory}/{name}" for directory in ("images", "metadata") for name in corpus.names(directory))
    return [f"{name}: without a marker; ignored" for name in found if name not in known]
