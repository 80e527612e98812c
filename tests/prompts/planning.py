"""Plans of tables that are read when asked for, for tests of what becomes of them."""

import functools
from pathlib import Path
from typing import Any

import pytest

from hybridiff.config import DataConfig, SamplingConfig
from hybridiff.errors import UsageError
from hybridiff.prompts import copies, parts, scan
from hybridiff.prompts.plan import Plan, make_plan
from hybridiff.prompts.rows import Sample

STREAMED = -1  # bytes that may be held


def plan_of(*prompts: str | Path, held_bytes: int = STREAMED, images: int = 1, **options: Any) -> Plan:
    sampling = SamplingConfig(images_per_prompt=images)
    return make_plan(DataConfig([str(prompt) for prompt in prompts], **options), sampling, 1000, held_bytes=held_bytes)


def samples_of(plan: Plan) -> list[Sample]:
    return [sample for index in range(plan.shards) for sample in plan.shard(index).samples]


def refusal(*prompts: str | Path, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        plan_of(*prompts, **options)
    return str(caught.value)


def in_pieces(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(copies, "read_text", functools.partial(copies.read_text, chunk_rows=rows))
    for module in (parts, scan):
        monkeypatch.setattr(module, "BATCH_ROWS", rows)
