"""``hybridiff status``: the progress of a corpus and the owners of its shards, read from the corpus itself.

    hybridiff status runs/mine            # shards done, held by live owners and missing, images/s, failed rows, time left
    hybridiff status s3://b/mine --watch  # a line whenever that changes, until the corpus is complete or nobody works on it
    hybridiff status runs/parts           # the directory of a selection with --split: each of its splits in turn

The last line is the state as JSON, of splits under their names. Exit codes: 0 the state was shown, or with --watch: the corpus is
complete; 1 an error, or with --watch: shards are missing and neither a live owner nor a job of yours in SLURM's queue works on
them, or all of them are damaged; 2 a mistake in what was given, such as a directory without a corpus; 130 interrupted.
"""

import json
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hybridiff.cli import Parser, say
from hybridiff.cluster.exit_codes import DONE, NOT_DONE
from hybridiff.errors import access_error, amount
from hybridiff.secrets import one_line, refuse_credentials

if TYPE_CHECKING:
    from hybridiff.corpus.corpus import Corpus
    from hybridiff.corpus.progress import Progress, Seen
    from hybridiff.storage.lease_file import Lease

CORPUS = "CORPUS"  # the argument's name in the help and in messages
LOOK_S = 10.0


@dataclass(frozen=True)
class State:
    """The state of a corpus.

    Args:
        url: directory of the corpus.
        progress: progress of its shards.
        held: live leases by name, on shards that are not committed and on others.
    """

    url: str
    progress: "Progress"
    held: "dict[str, Lease]"

    @property
    def shards_held(self) -> int:
        """Number of shards that live owners hold."""
        return sum(name.isdigit() for name in self.held)

    @property
    def missing(self) -> int:
        """Number of shards that are neither done nor held."""
        return max(0, self.progress.shards - self.progress.done - self.shards_held)

    def owners(self) -> "dict[str, list[Lease]]":
        """Leases by owner, in the order of their names."""
        found: dict[str, list[Lease]] = {}
        for _, lease in sorted(self.held.items()):
            found.setdefault("an unknown owner" if lease.owner is None else str(lease.owner), []).append(lease)
        return found

    def line(self) -> str:
        """The state in one line, without the owners' names."""
        held = f"{amount(self.shards_held, 'shard')}, by {amount(len(self.owners()), 'process')}"
        return f"{self.progress.line()}; held: {held}"

    def lines(self) -> list[str]:
        """The state in some lines."""
        from hybridiff.corpus.progress import span

        progress, left = self.progress, self.progress.left_s
        rate = "unknown" if progress.images_per_s is None else f"{progress.images_per_s:.3g} images/s"
        remaining = "complete" if progress.whole else "time left unknown" if left is None else f"{span(left)} left"
        shards = f"{progress.done} of {progress.shards} done, {self.shards_held} held, {self.missing} missing"
        return [
            f"corpus:   {self.url}",
            f"shards:   {shards}",
            f"images:   {progress.rows_done} of {progress.rows}, {amount(progress.failed, 'failed row')}",
            f"rate:     {rate}, {remaining}",
            *(f"held:     {', '.join(lease.name for lease in leases)} by {leases[0]}" for leases in self.owners().values()),
            *(f"damaged:  {name}" for name in progress.damaged),
        ]

    def document(self) -> dict[str, Any]:
        """The state for programs."""
        progress = self.progress
        return {
            "url": self.url,
            "complete": progress.whole,
            "shards": progress.shards,
            "done": progress.done,
            "held": self.shards_held,
            "missing": self.missing,
            "rows": progress.rows,
            "rows_done": progress.rows_done,
            "failed": progress.failed,
            "images_per_s": progress.images_per_s,
            "seconds_left": progress.left_s,
            "damaged": list(progress.damaged),
            "owners": [_owner(leases) for leases in self.owners().values()],
        }


def main(arguments: list[str]) -> int:
    """Shows the state of a corpus, once or until it is complete."""
    options = parser().parse_args(arguments)
    refuse_credentials(CORPUS, options.corpus)
    from hybridiff.corpus.corpus import Corpus  # not before the arguments are right: this takes a second
    from hybridiff.corpus.splits import open_corpora

    if options.watch:
        return watch(Corpus(options.corpus, CORPUS))
    try:
        corpora = open_corpora(options.corpus, CORPUS)
        states = {name: read_state(corpus) for name, corpus in corpora.items()}
    except OSError as error:
        raise access_error(f"{options.corpus} can't be read ({one_line(error)})", error) from error
    documents = {name: state.document() for name, state in states.items()}
    whole = all(state.progress.whole for state in states.values())
    document = documents.get("", {"url": options.corpus, "complete": whole, "splits": documents})
    say([*(line for state in states.values() for line in state.lines()), json.dumps(document)], sys.stdout)
    return DONE


def watch(corpus: "Corpus") -> int:
    """Prints a line whenever the state has changed, until the corpus is complete or nobody works on it; the exit code."""
    from hybridiff.cluster.queue import queued_jobs
    from hybridiff.corpus.layout import RUN_RECORD
    from hybridiff.corpus.progress import Seen
    from hybridiff.corpus.splits import no_corpus, read_splits

    with suppress(OSError):  # storage is away for a while
        if corpus.modified(RUN_RECORD) is None and read_splits(corpus):
            raise no_corpus(corpus)
    seen, shown, over, state = Seen(), "", False, None
    while True:
        try:
            state = read_state(corpus, seen)
            line, whole, stuck = state.line(), state.progress.whole, state.progress.stuck
        except Exception as error:  # no job has begun, or storage is away for a while
            line, whole, stuck = one_line(error), False, False
        stuck = stuck and line == shown  # not only in the moment in which a marker is being written
        if line != shown:
            say([f"{time.strftime('%H:%M:%S')} {line}"], sys.stdout)
            shown = line
        if whole or stuck or over:
            if over and not whole:
                say(["nobody works on it any more; the same command again generates what is left"], sys.stdout)
            say([json.dumps(state.document() if state else {"url": corpus.url, "complete": False})], sys.stdout)
            return DONE if whole else NOT_DONE
        with suppress(Exception):  # and one more look after the last job
            over = queued_jobs(corpus, unnamed=True) == [] and not (state and state.held)
        time.sleep(LOOK_S)


def read_state(corpus: "Corpus", seen: "Seen | None" = None) -> State:
    """Reads what is committed, and who holds the rest.

    Args:
        corpus: the corpus, perhaps being written.
        seen: markers read before, each of which is read once.

    Raises:
        UsageError: there is no corpus yet, or its run record is damaged.
    """
    from hybridiff.corpus.layout import LEASES, lease_of
    from hybridiff.corpus.progress import read_progress
    from hybridiff.storage.lease_file import live_leases

    leases = live_leases(corpus, LEASES)  # before the markers: of a shard that is committed meanwhile, the marker counts
    progress = read_progress(corpus, seen)
    committed = {lease_of(index) for index in corpus.committed()}
    return State(corpus.url, progress, {name: lease for name, lease in leases.items() if name not in committed})


def parser() -> Parser:
    """The parser of this command."""
    found = Parser("status", __doc__)
    found.add_argument("corpus", metavar=CORPUS, help="directory or url of the corpus, the output.url of its configuration")
    found.add_argument("--watch", action="store_true", help="look again every 10 s, and print a line whenever something changed")
    return found


def _owner(leases: "list[Lease]") -> dict[str, Any]:
    owner = leases[0].owner
    named = {} if owner is None else {"host": owner.host, "job": owner.job, "pid": owner.pid}
    return {**named, "since": leases[0].since, "leases": [lease.name for lease in leases]}
