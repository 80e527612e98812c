"""Claims as small objects beside the corpus: all that is asked of the storage."""

import json
from contextlib import suppress
from functools import partial

from hybridiff.config.data import LONGEST_LEASE_S
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.layout import claim_name, marker_name
from hybridiff.errors import UsageError
from hybridiff.storage.folder import read_each
from hybridiff.storage.patience import patience_s
from hybridiff.storage.protocols import protocols
from hybridiff.storage.publish import publish_bytes

MARGIN_S = 30.0  # of a lease, beyond the patience with the storage
EXCLUSIVE = frozenset({"file", "local", "s3", "s3a", "memory"})  # the last within one process only


def check_place(corpus: Corpus) -> None:
    """Raises UsageError if a corpus lies where nothing can be created only if absent."""
    if not protocols(corpus.fs) & EXCLUSIVE:
        raise UsageError(f"data.assignment is 'claims' and output.url {corpus.url}; allowed: local files or s3, or static")


def check_lease(corpus: Corpus, lease_s: float) -> None:
    """Raises UsageError if a lease may end while the storage is still waited for, so that its owner writes after its heir."""
    least_s = patience_s(corpus.fs) and patience_s(corpus.fs) + MARGIN_S
    if lease_s < least_s:
        allowed = f"{least_s:g} to {LONGEST_LEASE_S:g} seconds there, where requests are repeated for {patience_s(corpus.fs):g} s"
        raise UsageError(f"data.lease_s is {lease_s:g} and output.url {corpus.url}; allowed: {allowed}")


class ClaimFiles:
    """The claims on a corpus, as one owner reads and writes them.

    Args:
        corpus: Whose shards are claimed.
        owner: Named in its claims.

    Raises:
        UsageError: If the corpus lies where nothing can be created only if absent.
    """

    def __init__(self, corpus: Corpus, owner: str) -> None:
        check_place(corpus)
        self._corpus, self._owner = corpus, owner

    def create(self, index: int, generation: int, expires: float) -> bool:
        """Writes a claim that is not there yet; returns whether it was not."""
        try:
            self._write(index, generation, expires, exclusive=True)
        except FileExistsError:
            return False
        return True

    def rewrite(self, index: int, generation: int, expires: float) -> None:
        """Writes one's own claim again."""
        self._write(index, generation, expires, exclusive=False)

    def remove(self, index: int, generation: int) -> None:
        """Removes a claim, if it is there."""
        with suppress(FileNotFoundError):
            self._corpus.fs.rm_file(self._corpus.path(claim_name(index, generation)))

    def is_there(self, index: int, generation: int) -> bool:
        """Whether there is such a claim."""
        return self._exists(claim_name(index, generation))

    def is_mine(self, index: int, generation: int) -> bool:
        """Whether a claim names this owner: storage may let several create it in the same moment (Swift), and keep the last."""
        try:
            return bool(json.loads(self._corpus.read(claim_name(index, generation)))["owner"] == self._owner)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return False

    def is_committed(self, index: int) -> bool:
        """Whether the shard itself is done."""
        return self._exists(marker_name(index))

    def expiries(self, generations: dict[int, int]) -> dict[int, float]:
        """When claims expire, given the generation of each shard's."""
        return read_each(partial(self._expires, generations), generations)

    def _expires(self, generations: dict[int, int], index: int) -> float:
        """Not a number if the claim was let go since it was listed, the past if it can't be read."""
        try:
            return float(json.loads(self._corpus.read(claim_name(index, generations[index])))["expires"])
        except FileNotFoundError:
            return float("nan")
        except (ValueError, KeyError, TypeError):
            return float("-inf")

    def _write(self, index: int, generation: int, expires: float, exclusive: bool) -> None:
        content = (json.dumps({"owner": self._owner, "expires": expires}) + "\n").encode()
        path = self._corpus.path(claim_name(index, generation))
        publish_bytes(self._corpus.fs, path, content, exclusive=exclusive, sweep=False)

    def _exists(self, name: str) -> bool:
        try:
            self._corpus.read(name)
        except FileNotFoundError:
            return False
        return True
