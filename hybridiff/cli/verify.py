"""Is this corpus whole? Reads every file of it and compares sizes, checksums, keys and image headers.

    hybridiff verify runs/demo
    hybridiff verify runs/demo --repair

Prints a line per problem and, as its last line, JSON: {"shards", "rows", "ok", "failed", "missing", "corrupt", "unreadable"}.
The last counts shards that storage could not read, of which nothing is known and nothing is repaired. Notes name the files that
are not checked, as no commit marker counts them. Exit codes: 0 if the last three counts are 0; 1 if not, repaired or not; 2 if
there is no corpus; 130 if interrupted. --repair may run beside other commands: it skips shards that another process is writing.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import astuple
from typing import TYPE_CHECKING, NoReturn, TextIO

from hybridiff.cluster.exit_codes import DONE, INTERRUPTED, MISTAKE, NOT_DONE
from hybridiff.cluster.launch import detect_batch_job
from hybridiff.errors import UsageError, require
from hybridiff.secrets import one_line, redact, refuse_credentials

if TYPE_CHECKING:
    from hybridiff.corpus import Report


class _Parser(argparse.ArgumentParser):
    """Mistakes are one line, as those of the other commands."""

    def error(self, message: str) -> NoReturn:
        """Raises ``UsageError``."""
        raise UsageError(message)


def main(arguments: list[str] | None = None) -> int:
    """Checks the corpus that the arguments name and returns the exit code.

    Args:
        arguments: the arguments of the command; None takes those of the process.
    """
    try:
        return check(_parse(arguments))
    except UsageError as error:
        _say([f"verify: error: {error}"], sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        _say(["verify: interrupted"], sys.stderr)
        return INTERRUPTED


def check(options: argparse.Namespace) -> int:
    """Checks, repairs if asked to, prints, and returns the exit code.

    Raises:
        UsageError: there is no corpus that can be read.
    """
    from hybridiff.corpus import Corpus, repair, verify  # not before the arguments are right: this takes a second
    from hybridiff.storage.lease import Owner

    try:
        corpus = Corpus(options.url)
        report = verify(corpus, options.processes)
        found = len(report.problems)
        _say([*(f"note: {note}" for note in report.notes), *_problems(report, 0)])
        removed = repair(corpus, report, Owner.here(*astuple(detect_batch_job()))) if options.repair else []
    except UsageError:
        raise
    except Exception as error:  # storage clients raise types of their own
        raise UsageError(f"{options.url} can't be read: {one_line(error)}") from error
    _say([*_problems(report, found), *_conclusion(report, removed, options.url), json.dumps(report.summary())])
    return DONE if report.whole else NOT_DONE


def parser() -> argparse.ArgumentParser:
    """The parser of the options."""
    found = _Parser(prog="hybridiff verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("url", metavar="URL", help="directory of the corpus: a path or any fsspec url")
    help_processes = "number of processes that read shards; by default one per core"
    found.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help=help_processes)
    help_repair = "remove the commit marker of each damaged shard, so that the next run of hybridiff generate generates it again"
    found.add_argument("--repair", action="store_true", help=help_repair)
    return found


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    options = parser().parse_args(arguments)
    refuse_credentials("URL", options.url)
    require(options.processes >= 1, "processes", options.processes, "1 or more")
    return options


def _say(lines: Iterable[str], where: TextIO | None = None) -> None:
    """Prints redacted lines, each as one line."""
    for line in lines:
        print(redact(" ".join(line.split()) if where is not None else line), file=where or sys.stdout)


def _problems(report: "Report", start: int) -> list[str]:
    return [f"problem: {problem}" for problem in report.problems[start:]]


def _conclusion(report: "Report", removed: list[str], url: str) -> list[str]:
    state = "whole" if report.whole else "NOT whole"
    counts = f"{report.shards} shards, {report.rows} rows, {report.ok} images, {report.failed} failed"
    return [
        *(f"repair: {name} removed; the next run generates the shard again" for name in removed),
        f"{url} is {state}: {counts}; {report.missing} shards missing, {report.corrupt} corrupt, {report.unreadable} unreadable",
    ]
