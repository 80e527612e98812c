"""The corpus: what is written, when it counts as written, and whether it still is what was written."""

from hybridiff.sinks.card import finish
from hybridiff.sinks.columns import RowSettings, metadata_schema
from hybridiff.sinks.corpus import Corpus
from hybridiff.sinks.images import encode_image
from hybridiff.sinks.record import RunRecord, differences
from hybridiff.sinks.report import Report
from hybridiff.sinks.results import Result
from hybridiff.sinks.shard import ShardWriter
from hybridiff.sinks.verify import repair, verify

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
