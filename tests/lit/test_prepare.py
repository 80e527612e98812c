"""Preparing a job: what is refused, and who makes large prompt tables ready, and where."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hybridiff.config import (
    DataConfig,
    JobConfig,
    ModelConfig,
    OutputConfig,
    ParallelConfig,
    SamplingConfig,
    ScheduleConfig,
    UsageError,
)
from hybridiff.lit import prepare
from hybridiff.models.facts import read_facts


@pytest.mark.parametrize("writes", [True, False])
def test_rank_0_copies_large_tables_into_the_corpus_unless_nothing_is_to_be_written(
    writes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    monkeypatch.setattr(prepare, "make_plan", partial(prepare.make_plan, held_bytes=0))
    model = ModelConfig("shapes-xl")
    data, output = DataConfig(str(tmp_path / "a.txt")), OutputConfig(str(tmp_path / "corpus"))
    config = JobConfig(model, SamplingConfig(), ParallelConfig(), data, output)
    job = prepare.prepare(config, {}, {}, writes=writes)
    assert [sample.prompt for sample in job.plan.shard(0).samples] == ["one", "two"]
    there = sorted(path.suffix for path in (tmp_path / "corpus").rglob("*.*"))
    assert there == ([".json", ".parquet"] if writes else [])


def check_schedule(
    schedule: str, options: dict[str, Any], path: str = "shapes-xl", scheduler: str | None = None, **sampling: Any
) -> None:
    model = ModelConfig(path, scheduler=scheduler)
    data, output = DataConfig("a.txt"), OutputConfig("corpus")
    parallel = ParallelConfig(schedule=schedule)
    config = JobConfig(model, SamplingConfig(**sampling), parallel, data, output, ScheduleConfig(**options))
    prepare.check_schedule(config, read_facts(model))


PAPER = {"slope_window": 2, "tau_cap": 15, "k": 5}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"schedule": "paper", "options": {"tau_cap": 15, "k": 6}, "steps": 20},
            "schedule.tau_cap is 15 and k is 6; .* at most 20",
        ),
        (
            {"schedule": "paper", "options": {}, "path": "shapes-sd3", "steps": 44},
            "schedule.tau_cap is 40 and k is 5; .* at most 44, the number of steps",
        ),
        (  # two calls a step, the last but one
            {"schedule": "paper", "options": PAPER, "scheduler": "HeunDiscreteScheduler", "steps": 10},
            "schedule.tau_cap is 15 and k is 5; .* at most 19, the number of steps",
        ),
        ({"schedule": "refresh", "options": {"first": 30}, "steps": 20}, "schedule.first is 30 and last is -3; .* < 20"),
        ({"schedule": "async", "options": {"warm_up": 21}, "steps": 20}, "schedule.warm_up is 21; allowed: at most .* 20"),
        (
            {"schedule": "paper", "options": {"tolerance": 0.3}},
            "schedule.tolerance is 0.3; allowed: nothing; the options of schedule paper",
        ),
        ({"schedule": "full", "options": {"k": 5}}, "schedule.k is 5; allowed: nothing; the options of schedule full are none"),
        ({"schedule": "paper", "options": {"k": 2.5}}, "schedule.k is 2.5; allowed: a whole number"),
        (
            {"schedule": "adaptive", "options": {"tolerance": 0.3}, "guidance_scale": 1.0},
            "schedule.tolerance is 0.3; allowed: nothing with sampling.guidance_scale at 1 or below, where every step is full",
        ),
    ],
)
def test_schedules_that_do_not_fit_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_schedule(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"schedule": "paper", "options": PAPER, "steps": 20},
        {"schedule": "paper", "options": PAPER, "scheduler": "HeunDiscreteScheduler", "steps": 11},  # 21 calls
        {"schedule": "paper", "options": {}, "path": "shapes-sd3", "steps": 45},
        {"schedule": "adaptive", "options": {}, "guidance_scale": 1.0},
        {"schedule": "full", "options": {}, "steps": 1},
    ],
)
def test_schedules_that_fit_are_not(given: dict[str, Any]) -> None:
    check_schedule(**given)
