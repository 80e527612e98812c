"""The claims that there are on a corpus, whoever made them."""

import json
import time
from collections.abc import Callable
from contextlib import suppress

from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.layout import CLAIM, claim_name


def at_work(corpus: Corpus, clock: Callable[[], float] = time.time) -> list[str]:
    """Owners of claims that have not expired, on shards that are not committed; sorted."""
    owners: set[str] = set()
    latest = latest_claims(corpus)
    committed = corpus.committed() if latest else set()
    for index in latest.keys() - committed:
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError):  # let go meanwhile, or not to be read
            claim = json.loads(corpus.read(claim_name(index, latest[index])))
            owners |= {str(claim["owner"])} if float(claim["expires"]) > clock() else set()
    return sorted(owners)


def latest_claims(corpus: Corpus) -> dict[int, int]:
    """The newest generation of each shard's claims, with one listing."""
    found = [(int(match[1]), int(match[2])) for match in map(CLAIM.fullmatch, corpus.names("claims")) if match]
    return dict(sorted(found))
