"""Plans of tables that lie in memory or on disk, for tests of what becomes of them."""

from pathlib import Path
from typing import Any

import pytest

from hybridiff.config import DataConfig, PromptSource, SamplingConfig
from hybridiff.errors import UsageError
from hybridiff.prompts import arrow_formats, text_formats
from hybridiff.prompts.plan import Plan, make_plan
from hybridiff.prompts.rows import Sample

Given = str | Path | PromptSource | dict[str, Any]
MEMORY, DISK = 1 << 30, -1  # bytes that may be held


def plan_of(*prompts: Given, held_bytes: int = DISK, images: int = 1, size: int = 1000, **options: Any) -> Plan:
    sources = [str(one) if isinstance(one, Path) else one for one in prompts]
    return make_plan(DataConfig(sources, **options), SamplingConfig(images_per_prompt=images), size, held_bytes=held_bytes)


def samples_of(plan: Plan) -> list[Sample]:
    return [sample for index in range(plan.shards) for sample in plan.shard(index).samples]


def both(*prompts: Given, **options: Any) -> Plan:
    """The plan of tables, which is the same whether they are held in memory or lie on disk."""
    held, large = plan_of(*prompts, held_bytes=MEMORY, **options), plan_of(*prompts, **options)
    assert samples_of(held) == samples_of(large)
    assert held.user_schema.equals(large.user_schema)
    assert (held.content, held.summary, held.notices()) == (large.content, large.summary, large.notices())
    return held


def refusal(*prompts: Given, **options: Any) -> str:
    """The line in which tables are refused, in memory and on disk alike."""
    messages = set()
    for held_bytes in (MEMORY, DISK):
        with pytest.raises(UsageError) as caught:
            plan_of(*prompts, held_bytes=held_bytes, **options)
        messages.add(str(caught.value))
    (message,) = messages
    assert "\n" not in message and len(message) < 500
    return message


def in_pieces(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Has files read in pieces of this many rows."""
    for module in (text_formats, arrow_formats):
        monkeypatch.setattr(module, "CHUNK_ROWS", rows)
