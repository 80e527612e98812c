"""Claims on a clock of their own, for tests."""

from dataclasses import dataclass

from hybridiff.corpus import Corpus, ShardWriter
from hybridiff.corpus.claims import Claims
from tests.corpus.corpora import PER_SHARD, PNG, RUN_VALUES, USER_SCHEMA, files, result

LEASE_S = 60.0


@dataclass
class Clock:
    """A time that passes when someone sleeps."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def claims(corpus: Corpus, owner: str, clock: Clock, shards: int = 3) -> Claims:
    return Claims(corpus, shards, LEASE_S, owner, clock, clock.sleep)


def commit(one: Claims, corpus: Corpus, index: int) -> None:
    writer = ShardWriter(corpus, index, RUN_VALUES, USER_SCHEMA, PNG, lambda: one.require(index))
    for place in range(PER_SHARD):
        writer.write(result(index * PER_SHARD + place))
    try:
        writer.commit({})
    finally:
        writer.discard()
        one.release(index)


def live_claims(corpus: Corpus) -> list[str]:
    return [name for name in files(corpus) if name.startswith("claims/")]
