"""The corpus: what is written, when it counts as written, and whether it still is what was written."""

from hybridiff.corpus.card import finish
from hybridiff.corpus.columns import RowSettings, metadata_schema
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.images import encode_image
from hybridiff.corpus.record import RunRecord, differences
from hybridiff.corpus.report import Report
from hybridiff.corpus.results import Result
from hybridiff.corpus.shard import ShardWriter
from hybridiff.corpus.verify import repair, verify

__all__ = [
    "Corpus",
    "Report",
    "Result",
    "RowSettings",
    "RunRecord",
    "ShardWriter",
    "differences",
    "encode_image",
    "finish",
    "metadata_schema",
    "repair",
    "verify",
]
