"""Is this corpus whole? Reads every file of it and compares sizes, checksums, keys and image headers.

    hybridiff verify runs/demo
    hybridiff verify runs/demo --repair

Prints a line per problem and, as its last line, JSON: {"shards", "rows", "ok", "failed", "missing", "corrupt",
"unreadable"}; the last counts shards that storage did not give, of which nothing is known and nothing repaired. Exits with 0 if
these three are 0, 1 if not (repaired or not), 2 if there is no corpus, 130 if interrupted. --repair may run beside other
commands: it leaves out shards that another process is writing.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Set
from dataclasses import astuple

from hybridiff.cluster.launch import detect_batch_job
from hybridiff.corpus import Corpus, Report, repair, verify
from hybridiff.errors import UsageError, require
from hybridiff.secrets import hide, known_secrets
from hybridiff.storage.lease import Owner

FORMAT = argparse.RawDescriptionHelpFormatter


def main(arguments: list[str]) -> int:
    """Checks the corpus that ``arguments`` name and returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        return check(options)
    except KeyboardInterrupt:
        print("verify: interrupted", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The parser of the options."""
    found = argparse.ArgumentParser(
        prog="hybridiff verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("url", metavar="URL", help="directory of the corpus: a path or any fsspec url")
    found.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="that read; by default one per core")
    help_repair = "remove the commit marker of each damaged shard, so that the next run of hybridiff generate makes it again"
    found.add_argument("--repair", action="store_true", help=help_repair)
    return found


def check(options: argparse.Namespace) -> int:
    """Checks, repairs if asked to, prints, and returns the exit code."""
    url, known = options.url, known_secrets([options.url])
    try:
        require(options.processes >= 1, "processes", options.processes, "1 or more")
        corpus = Corpus(url)
        report = verify(corpus, options.processes)
        found = len(report.problems)
        _say([*(f"note: {note}" for note in report.notes), *_problems(report, 0)], known)
        removed = repair(corpus, report, Owner.here(*astuple(detect_batch_job()))) if options.repair else []
    except UsageError as error:
        return _refuse(hide(str(error), known))
    except Exception as error:  # storage that can't be reached raises types of its own
        return _refuse(hide(f"{url} can't be read: {type(error).__name__}: {error}", known))
    _say([*_problems(report, found), *_conclusion(report, removed, url)], known)
    print(json.dumps(report.summary()))
    return 0 if report.whole else 1


def _refuse(message: str) -> int:
    print("verify: " + " ".join(message.split()), file=sys.stderr)
    return 2


def _say(lines: Iterable[str], known: Set[str]) -> None:
    for line in lines:
        print(hide(line, known))


def _problems(report: Report, start: int) -> list[str]:
    return [f"problem: {problem}" for problem in report.problems[start:]]


def _conclusion(report: Report, removed: list[str], url: str) -> list[str]:
    state = "whole" if report.whole else "NOT whole"
    counts = f"{report.shards} shards, {report.rows} rows, {report.ok} images, {report.failed} failed"
    return [
        *(f"repair: {name} removed; the next run makes the shard again" for name in removed),
        f"{url} is {state}: {counts}; {report.missing} shards missing, {report.corrupt} corrupt, {report.unreadable} unreadable",
    ]
