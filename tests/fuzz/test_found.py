"""Inputs that fuzzing has found to do harm once."""

import pytest

from tests.fuzz.outcomes import Edit, repeat

DEEP = b"[" * 100_000
FOUND: list[tuple[str, Edit]] = [
    ("leases", ("leases/00000.0.json", "write", 0, DEEP)),
    *(("corpus", (name, "write", 0, DEEP)) for name in ("run.json", "commits/00000.json", "stats/00000.json")),
    ("tables", ("a.jsonl", "write", 0, DEEP)),
    ("model", ("unet/config.json", "write", 0, DEEP)),
]


@pytest.mark.parametrize(("domain", "edit"), FOUND)
def test_what_once_did_harm_does_none(domain: str, edit: Edit) -> None:
    repeat(domain, [edit])
