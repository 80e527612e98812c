"""``hybridiff verify``: reads every file of a corpus and compares sizes, checksums, keys and image headers.

    hybridiff verify runs/demo
    hybridiff verify runs/demo --repair
    hybridiff verify runs/parts          # the directory of a selection with --split: each of its splits in turn

Prints a line per problem and, as its last line, JSON: {"shards", "rows", "ok", "failed", "missing", "corrupt", "unreadable"}.
The last counts shards that storage could not read, of which nothing is known and nothing is repaired. Of splits these are sums,
and "splits" holds the counts of each. Notes name the files that are not checked, as no commit marker counts them. Exit codes: 0
if the last three counts are 0; 1 if not, repaired or not; 2 if there is no corpus; 130 if interrupted. --repair may run beside
other commands: it skips shards that another process is writing.
"""

import json
import os
import sys
from argparse import Namespace
from concurrent.futures import BrokenExecutor
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from hybridiff.cli import Parser, say, whole
from hybridiff.cluster.exit_codes import DONE, NOT_DONE
from hybridiff.cluster.launch import detect_batch_job
from hybridiff.errors import access_error, amount
from hybridiff.secrets import one_line, refuse_credentials

if TYPE_CHECKING:
    from hybridiff.corpus import Corpus, Report


CORPUS = "CORPUS"  # the argument's name in the help and in messages


def main(arguments: list[str]) -> int:
    """Checks a corpus, repairs it if asked to, and prints what it found."""
    options = parser().parse_args(arguments)
    refuse_credentials(CORPUS, options.corpus)
    from hybridiff.corpus.splits import open_corpora  # not before the arguments are right: this takes a second
    from hybridiff.storage.folder import Folder

    try:
        corpora = open_corpora(options.corpus, CORPUS)
        for split in corpora if options.repair else ():
            Folder(options.corpus, CORPUS).target(f"{split}/any")  # nothing is removed through a link
        reports = {name: _check(name, corpus, options) for name, corpus in corpora.items()}
    except (OSError, BrokenExecutor) as error:  # the latter where one of its processes was killed
        raise access_error(f"{options.corpus} can't be read ({one_line(error)})", error) from error
    summaries = {name: report.summary() for name, report in reports.items()}
    say([json.dumps(summaries[""] if "" in summaries else _summed(summaries))], sys.stdout)
    return DONE if all(report.whole for report in reports.values()) else NOT_DONE


def _check(split: str, corpus: "Corpus", options: Namespace) -> "Report":
    """Checks one corpus, repairs it if asked to, and prints what was found; ``split`` is empty where it is none."""
    from hybridiff.corpus import repair, verify
    from hybridiff.storage.owner import Owner

    report = verify(corpus, options.processes)
    found, where = len(report.problems), f"{split}: " if split else ""
    say([*(f"note: {where}{note}" for note in report.notes), *_problems(report, 0, where)], sys.stdout)
    removed = repair(corpus, report, Owner.here(*astuple(detect_batch_job()))) if options.repair else []
    say([*_problems(report, found, where), *_conclusion(report, [where + name for name in removed], corpus.url)], sys.stdout)
    return report


def _summed(summaries: dict[str, dict[str, int]]) -> dict[str, Any]:
    """The counts of all splits together, and of each."""
    names = next(iter(summaries.values()))
    return {**{name: sum(one[name] for one in summaries.values()) for name in names}, "splits": summaries}


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


def _problems(report: "Report", start: int, where: str) -> list[str]:
    return [f"problem: {where}{problem}" for problem in report.problems[start:]]


def _conclusion(report: "Report", removed: list[str], url: str) -> list[str]:
    state = "whole" if report.whole else "NOT whole"
    counts = f"{amount(report.shards, 'shard')}, {amount(report.rows, 'row')}, {amount(report.ok, 'image')}"
    faults = f"{amount(report.missing, 'shard')} missing, {report.corrupt} corrupt, {report.unreadable} unreadable"
    return [
        *(f"repair: {name} removed; the next run generates the shard again" for name in removed),
        f"{url} is {state}: {counts}, {report.failed} failed; {faults}",
    ]
