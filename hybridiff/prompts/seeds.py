"""Seeds belong to samples: no batch, group or resume changes one."""

import hashlib

SEED_BITS = 63


def image_seed(job_seed: int, key: str, index: int) -> int:
    """Seed of a row's image ``index``, 0 <= seed < 2**63, from the job's seed and the row's key."""
    # Numbers hold no NUL, so the parts can't run into each other.
    digest = hashlib.sha256(f"{job_seed}\0{index}\0{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - SEED_BITS)


def given_seed(row_seed: int, index: int) -> int:
    """Seed of image ``index`` of a row that brings its own seed."""
    return (row_seed + index) % (1 << SEED_BITS)
