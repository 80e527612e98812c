"""Names of the files inside a corpus, and what a commit marker counts."""

import re
from typing import Any

RUN_RECORD = "run.json"
CARD, SHEET = "README.md", "contact-sheet.png"
AFTER_RUN_RECORD = frozenset({CARD, SHEET, "images", "metadata", "commits", "stats"})  # none of them exists before it
MARKER = re.compile(r"(\d{5}|[1-9]\d{5,})\.json")  # one name for each shard
LEASES = "leases"
METADATA = "metadata"  # rows, a Parquet file for each shard
EVALUATIONS = "evaluation"  # results of hybridiff evaluate: name.json, name.parquet
_IN_MARKER = {"shard", "fingerprint", "files", "rows", "ok", "failed"}


def tar_name(index: int) -> str:
    """Name of a shard's images inside the corpus."""
    return f"images/{index:05d}.tar"


def metadata_name(index: int) -> str:
    """Name of a shard's Parquet file inside the corpus."""
    return f"{METADATA}/{index:05d}.parquet"


def marker_name(index: int) -> str:
    """Name of a shard's commit marker inside the corpus."""
    return f"commits/{index:05d}.json"


def stats_name(index: int) -> str:
    """Name of a shard's timings inside the corpus."""
    return f"stats/{index:05d}.json"


def lease_of(index: int) -> str:
    """Name of the lease on a shard."""
    return f"{index:05d}"


def marker_counts(marker: Any, index: int, fingerprint: str | None = None) -> dict[str, int]:
    """``rows``, ``ok`` and ``failed`` of a marker.

    Args:
        marker: what its file holds.
        index: index of the shard.
        fingerprint: fingerprint of the run; None allows any.

    Raises:
        ValueError: it is not the marker of this shard, or not a whole one, or of another run.
    """
    if not isinstance(marker, dict) or not _is_count(marker.get("shard")) or marker["shard"] != index:
        raise ValueError(f"not the marker of shard {index}")
    if odd := marker.keys() ^ _IN_MARKER:
        raise ValueError(f"damaged in {', '.join(sorted(odd))}")
    if not isinstance(marker["fingerprint"], str):
        raise ValueError("does not name its run")
    if fingerprint not in (None, marker["fingerprint"]):
        raise ValueError("is of another run than run.json")
    files = marker["files"]
    if not isinstance(files, dict) or files.keys() != {tar_name(index), metadata_name(index)}:
        raise ValueError("does not name the shard's two files")
    if not all(_is_file(file) for file in files.values()):
        raise ValueError("does not hold the bytes and the SHA-256 of its files")
    counts = {name: marker[name] for name in ("rows", "ok", "failed")}
    if not all(map(_is_count, counts.values())) or counts["rows"] != counts["ok"] + counts["failed"]:
        raise ValueError("does not count rows, ok and failed")
    return counts


def _is_file(file: Any) -> bool:
    whole = isinstance(file, dict) and file.keys() == {"bytes", "sha256"}
    return whole and _is_count(file["bytes"]) and isinstance(file["sha256"], str)


def _is_count(value: Any) -> bool:
    """Whether a JSON value is a whole number from 0 to 2**63 - 1, which 0.0 and true are not."""
    return type(value) is int and 0 <= value < 2**63
