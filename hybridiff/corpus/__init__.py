"""CORPUS. What is written, when it counts as committed, and whether it still is what was committed."""

from hybridiff.corpus.card import write_card
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.record import RunRecord, differences
from hybridiff.corpus.shard import Result, ShardWriter
from hybridiff.corpus.verify import Report, repair, verify

__all__ = ["Corpus", "Report", "Result", "RunRecord", "ShardWriter", "differences", "repair", "verify", "write_card"]
