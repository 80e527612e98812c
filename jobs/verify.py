"""Is this corpus whole? Reads every file of it and compares sizes, checksums, keys and image headers.

Prints a line per problem and, as its last line, JSON: {"shards", "rows", "ok", "failed", "missing", "corrupt"}.
Exits with 0 if nothing is missing or corrupt, 1 if something is, 2 if there is no corpus.
"""

import argparse
import json
import sys

from hybridiff.config import UsageError, redact
from hybridiff.sinks import Corpus, Report, verify


def main(arguments: list[str] | None = None) -> int:
    """Checks the corpus that ``arguments`` name and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", metavar="URL", help="directory of the corpus: a path or any fsspec url")
    url = parser.parse_args(arguments).url
    try:
        report = verify(Corpus(url))
    except UsageError as error:
        return _refuse(str(error))
    except Exception as error:  # storage that can't be reached raises types of its own
        return _refuse(f"{redact(url)} can't be read: {redact(f'{type(error).__name__}: {error}')}")
    for line in _lines(report, redact(url)):
        print(line)
    return 0 if report.whole else 1


def _refuse(message: str) -> int:
    print("verify: " + " ".join(message.split()), file=sys.stderr)
    return 2


def _lines(report: Report, url: str) -> list[str]:
    state = "whole" if report.whole else "NOT whole"
    counts = f"{report.shards} shards, {report.rows} rows, {report.ok} images, {report.failed} failed"
    return [
        *(f"note: {note}" for note in report.notes),
        *(f"problem: {problem}" for problem in report.problems),
        f"{url} is {state}: {counts}; {report.missing} shards missing, {report.corrupt} corrupt",
        json.dumps(report.summary()),
    ]


if __name__ == "__main__":
    sys.exit(main())
