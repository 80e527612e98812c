"""Threads and whole jobs that claim shards at once, in real time."""

import multiprocessing
import os
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from hybridiff.corpus import Corpus
from hybridiff.corpus.claims import Claims, ShardTaken
from hybridiff.corpus.renewal import Renewal
from tests.corpus.leases import LEASE_S, commit, live_claims


def test_renewing_on_a_thread_and_letting_go_at_the_end(tmp_path: Path) -> None:
    corpus = Corpus(str(tmp_path))
    one, two = (Claims(corpus, 1, 0.3, name) for name in ("one", "two"))
    with Renewal(one, 0.3):
        assert one.draw() == 0
        time.sleep(0.5)
        assert two.draw() is None
    assert two.draw() == 0


def test_threads_never_get_the_same_shard(tmp_path: Path) -> None:
    corpus, drawn = Corpus(str(tmp_path)), Counter[int]()
    together = threading.Barrier(6)

    def work(name: str) -> None:
        mine = Claims(corpus, 40, LEASE_S, name, sleep=lambda _: None)
        together.wait()
        for _ in range(5):
            index = mine.draw()
            assert index is not None
            drawn[index] += 1

    workers = [threading.Thread(target=work, args=(f"worker {n}",)) for n in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(drawn) == 30 and set(drawn.values()) == {1}


def make_all(url: str, name: str, shards: int, dies_after: int | None) -> None:
    """A whole separate job: draws and commits until nothing is left, or ends without a word holding a shard."""
    corpus = Corpus(url)
    mine = Claims(corpus, shards, 1.0, name)
    made = 0
    with Renewal(mine, 1.0):
        while (index := mine.draw()) is not None:
            if made == dies_after:
                os._exit(9)
            try:
                commit(mine, corpus, index)
            except ShardTaken:  # a machine as busy as to let a lease of a second lapse: the other's is as good
                continue
            made += 1
            corpus.publish(f"made/{name}-{index}", b"")


@pytest.mark.timeout(100)
def test_separate_jobs_make_one_corpus_and_outlive_one_that_dies(tmp_path: Path) -> None:
    shards, spawn = 12, multiprocessing.get_context("spawn")
    jobs = [spawn.Process(target=make_all, args=(str(tmp_path), f"job{n}", shards, 1 if n == 0 else None)) for n in range(3)]
    for job in jobs:
        job.start()
        while not Corpus(str(tmp_path)).names("made"):  # the first has a shard before there are others
            time.sleep(0.01)
    for job in jobs:
        job.join(90)
    assert [job.exitcode for job in jobs] == [9, 0, 0]
    corpus = Corpus(str(tmp_path))
    assert corpus.committed() == set(range(shards)) and live_claims(corpus) == []
    made = Counter(int(name.rpartition("-")[2]) for name in corpus.names("made"))
    assert made == Counter(range(shards)), "each committed once"
