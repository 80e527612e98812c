"""Is this corpus whole? Reads every file of it and compares sizes, checksums, keys and image headers.

    python jobs/verify.py runs/demo
    python jobs/verify.py runs/demo --repair

Prints a line per problem and, as its last line, JSON: {"shards", "rows", "ok", "failed", "missing", "corrupt"}.
Exits with 0 if nothing is missing or corrupt, 1 if something is (repaired or not), 2 if there is no corpus.
"""

import argparse
import json
import os
import sys

from hybridiff.config import UsageError, hide, redact, secrets_in
from hybridiff.sinks import Corpus, Report, repair, verify


def main(arguments: list[str] | None = None) -> int:
    """Checks the corpus that ``arguments`` name and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", metavar="URL", help="directory of the corpus: a path or any fsspec url")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="that read; by default one per core")
    help_repair = "remove the commit marker of each damaged shard, so that the next run of generate.py makes it again"
    parser.add_argument("--repair", action="store_true", help=help_repair)
    options = parser.parse_args(arguments)
    url = options.url
    try:
        corpus = Corpus(url)
        report = verify(corpus, options.processes)
        removed = repair(corpus, report) if options.repair else []
    except UsageError as error:
        return _refuse(str(error))
    except Exception as error:  # storage that can't be reached raises types of its own
        reason = hide(f"{type(error).__name__}: {error}", secrets_in(dict(os.environ)) | secrets_in(url))
        return _refuse(f"{redact(url)} can't be read: {reason}")
    for line in _lines(report, removed, redact(url)):
        print(line)
    return 0 if report.whole else 1


def _refuse(message: str) -> int:
    print("verify: " + " ".join(message.split()), file=sys.stderr)
    return 2


def _lines(report: Report, removed: list[str], url: str) -> list[str]:
    state = "whole" if report.whole else "NOT whole"
    counts = f"{report.shards} shards, {report.rows} rows, {report.ok} images, {report.failed} failed"
    return [
        *(f"note: {note}" for note in report.notes),
        *(f"problem: {problem}" for problem in report.problems),
        *(f"repair: {name} removed; the next run makes the shard again" for name in removed),
        f"{url} is {state}: {counts}; {report.missing} shards missing, {report.corrupt} corrupt",
        json.dumps(report.summary()),
    ]


if __name__ == "__main__":
    sys.exit(main())
