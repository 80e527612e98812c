"""Names of the files inside a corpus, and what a commit marker counts."""

import re
from typing import Any

RUN_RECORD = "run.json"
CARD, SHEET = "README.md", "contact-sheet.png"
AFTER_RUN_RECORD = frozenset({CARD, SHEET, "images", "metadata", "commits", "stats"})  # none of them is there before it
MARKER = re.compile(r"(\d{5,})\.json")
LEASES = "leases"
_IN_MARKER = {"shard", "fingerprint", "files", "rows", "ok", "failed"}


def tar_name(index: int) -> str:
    """Name of a shard's images inside the corpus."""
    return f"images/{index:05d}.tar"


def metadata_name(index: int) -> str:
    """Name of a shard's Parquet file inside the corpus."""
    return f"metadata/{index:05d}.parquet"


def marker_name(index: int) -> str:
    """Name of a shard's commit marker inside the corpus."""
    return f"commits/{index:05d}.json"


def stats_name(index: int) -> str:
    """Name of a shard's timings inside the corpus."""
    return f"stats/{index:05d}.json"


def lease_of(index: int) -> str:
    """Name of the lease on a shard."""
    return f"{index:05d}"


def marker_counts(marker: Any, index: int) -> dict[str, int]:
    """``rows``, ``ok`` and ``failed`` of a marker.

    Raises:
        ValueError: If it is not the marker of this shard, or not a whole one.
    """
    if not isinstance(marker, dict) or marker.get("shard") != index:
        raise ValueError(f"not the marker of shard {index}")
    if odd := marker.keys() ^ _IN_MARKER:
        raise ValueError(f"damaged in {', '.join(sorted(odd))}")
    if not isinstance(marker["fingerprint"], str):
        raise ValueError("does not name its run")
    files = marker.get("files")
    if not isinstance(files, dict) or files.keys() != {tar_name(index), metadata_name(index)}:
        raise ValueError("does not name the shard's two files")
    if not all(isinstance(file, dict) and file.keys() == {"bytes", "sha256"} for file in files.values()):
        raise ValueError("does not hold the bytes and the SHA-256 of its files")
    counts = {name: marker[name] for name in ("rows", "ok", "failed") if type(marker.get(name)) is int}
    if len(counts) < 3 or counts["rows"] != counts["ok"] + counts["failed"]:
        raise ValueError("does not count rows, ok and failed")
    return counts
