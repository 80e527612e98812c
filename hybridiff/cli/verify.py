"""``hybridiff verify``: reads every file of a corpus and compares sizes, checksums, keys and image headers.

    hybridiff verify runs/demo
    hybridiff verify runs/demo --repair

Prints a line per problem and, as its last line, JSON: {"shards", "rows", "ok", "failed", "missing", "corrupt", "unreadable"}.
The last counts shards that storage could not read, of which nothing is known and nothing is repaired. Notes name the files that
are not checked, as no commit marker counts them. Exit codes: 0 if the last three counts are 0; 1 if not, repaired or not; 2 if
there is no corpus; 130 if interrupted. --repair may run beside other commands: it skips shards that another process is writing.
"""

import json
import os
import sys
from concurrent.futures import BrokenExecutor
from dataclasses import astuple
from typing import TYPE_CHECKING

from hybridiff.cli import Parser, say, whole
from hybridiff.cluster.exit_codes import DONE, NOT_DONE
from hybridiff.cluster.launch import detect_batch_job
from hybridiff.errors import access_error
from hybridiff.secrets import one_line, refuse_credentials

if TYPE_CHECKING:
    from hybridiff.corpus import Report


CORPUS = "CORPUS"  # the argument's name in the help and in messages


def main(arguments: list[str]) -> int:
    """Checks a corpus, repairs it if asked to, and prints what it found."""
    options = parser().parse_args(arguments)
    refuse_credentials(CORPUS, options.corpus)
    from hybridiff.corpus import Corpus, repair, verify  # not before the arguments are right: this takes a second
    from hybridiff.storage.owner import Owner

    try:
        corpus = Corpus(options.corpus, CORPUS)
        report = verify(corpus, options.processes)
        found = len(report.problems)
        say([*(f"note: {note}" for note in report.notes), *_problems(report, 0)], sys.stdout)
        removed = repair(corpus, report, Owner.here(*astuple(detect_batch_job()))) if options.repair else []
    except (OSError, BrokenExecutor) as error:  # the latter where one of its processes was killed
        raise access_error(f"{options.corpus} can't be read ({one_line(error)})", error) from error
    say([*_problems(report, found), *_conclusion(report, removed, options.corpus), json.dumps(report.summary())], sys.stdout)
    return DONE if report.whole else NOT_DONE


def parser() -> Parser:
    """The parser of this command."""
    found = Parser("verify", __doc__)
    found.add_argument("corpus", metavar=CORPUS, help="directory of the corpus: a path or any fsspec url")
    cores = len(os.sched_getaffinity(0))
    found.add_argument(
        "--processes", type=whole(1), default=cores, metavar="N", help="processes that read shards; by default one per core"
    )
    help_repair = "remove the commit marker of each damaged shard, so that the next run of hybridiff generate generates it again"
    found.add_argument("--repair", action="store_true", help=help_repair)
    return found


def _problems(report: "Report", start: int) -> list[str]:
    return [f"problem: {problem}" for problem in report.problems[start:]]


def _conclusion(report: "Report", removed: list[str], url: str) -> list[str]:
    state = "whole" if report.whole else "NOT whole"
    counts = f"{report.shards} shards, {report.rows} rows, {report.ok} images, {report.failed} failed"
    return [
        *(f"repair: {name} removed; the next run generates the shard again" for name in removed),
        f"{url} is {state}: {counts}; {report.missing} shards missing, {report.corrupt} corrupt, {report.unreadable} unreadable",
    ]
