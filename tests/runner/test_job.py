"""Preparing a job: what is refused, and who makes large prompt tables ready, and where."""

import dataclasses
from collections.abc import Callable
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
    TrainerConfig,
)
from hybridiff.corpus import Corpus
from hybridiff.corpus.layout import LEASES, lease_of
from hybridiff.corpus.record import RunRecord
from hybridiff.errors import UsageError
from hybridiff.models.facts import read_facts
from hybridiff.prompts import shared
from hybridiff.runner import job as job_module
from hybridiff.runner.job import Job
from hybridiff.runner.run import run
from hybridiff.schedule import Adaptive, Async, Full, Paper, Refresh, Schedule
from hybridiff.storage.lease import Leases, check_lease
from tests.optional import needs


@pytest.mark.parametrize("writes", [True, False])
def test_rank_0_copies_large_tables_into_the_corpus_unless_nothing_is_to_be_written(
    writes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    monkeypatch.setattr(job_module, "make_plan", partial(job_module.make_plan, held_bytes=0))
    model = ModelConfig("shapes-xl")
    data, output = DataConfig(str(tmp_path / "a.txt")), OutputConfig(str(tmp_path / "corpus"))
    config = JobConfig(model, SamplingConfig(), ParallelConfig(), data, output)
    job = job_module.prepare(config, writes=writes)
    assert [sample.prompt for sample in job.plan.shard(0).samples] == ["one", "two"]
    there = sorted(path.suffix for path in (tmp_path / "corpus").rglob("*.*"))
    assert there == ([".parquet"] if writes else [])


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Job]:
    """Prepares a job of these prompts, whose table counts as large."""
    monkeypatch.setattr(job_module, "make_plan", partial(job_module.make_plan, held_bytes=0))

    def prepared(prompts: str, steps: int = 20, **given: Any) -> Job:
        table = tmp_path / f"{prompts}.txt"
        if not table.exists():  # written again, it would be another one
            table.write_text(prompts)
        data, output = DataConfig(str(table)), OutputConfig(str(tmp_path / "corpus"))
        config = JobConfig(
            ModelConfig("shapes-xl"), SamplingConfig(steps=steps), ParallelConfig(), data, output, trainer=TrainerConfig("cpu")
        )
        return job_module.prepare(config, **given)

    return prepared


def tables(job: Job) -> list[str]:
    return [name for name in job.corpus.names("tables") if not name.startswith(".")]


def test_what_can_be_known_before_tables_are_copied_is_checked_before(
    prepared: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepared("one")
    first.corpus.start_run(first.record)
    before = tables(first)
    begin(first)
    monkeypatch.setattr(shared, "write_table", lambda *_: pytest.fail("it copies"))
    with pytest.raises(UsageError, match=r"another configuration: sampling\.steps is 20 there, 30 here$"):
        prepared("two", steps=30)
    assert tables(first) == before
    monkeypatch.undo()
    assert prepared("two").plan.rows == 1


def test_a_run_that_failed_before_its_first_shard_does_not_refuse_the_mended_command(prepared: Callable[..., Job]) -> None:
    first = prepared("one")
    first.corpus.start_run(first.record)
    corrected = prepared("two", steps=30)
    corrected.corpus.start_run(corrected.record)
    found = corrected.corpus.read_run()
    assert found is not None and found["configuration"]["sampling"]["steps"] == 30


def begin(job: Job) -> Leases:
    """Starts a run of this job, which works on its first shard from now on."""
    job.corpus.start_run(job.record)
    leases = Leases(job.corpus, LEASES, 60.0)
    assert leases.acquire(lease_of(0))
    return leases


def test_a_run_that_is_refused_leaves_no_copies_in_the_corpus_of_other_prompts(prepared: Callable[..., Job]) -> None:
    first = prepared("one")
    begin(first)
    before = tables(first)
    refused = prepared("two")
    assert len(tables(first)) > len(before)
    with pytest.raises(UsageError, match=r"another configuration: its prompt table changed: the first that changed is row 1"):
        run(refused)
    assert tables(first) == before == tables(prepared("one"))


def test_a_run_that_is_refused_leaves_the_copies_that_others_may_use(prepared: Callable[..., Job]) -> None:
    first, same = prepared("one"), prepared("one", steps=30)
    begin(first)
    with pytest.raises(UsageError, match=r"another configuration: sampling\.steps"):
        run(same)
    assert len(tables(first)) == 1, "the corpus is of these prompts"
    made, found = prepared("two"), prepared("two")
    with pytest.raises(UsageError, match="its prompt table changed: "):
        run(found)
    assert len(tables(first)) == 2, "they are another's"
    with pytest.raises(UsageError, match="its prompt table changed: "):
        run(made)
    assert len(tables(first)) == 1


@pytest.mark.parametrize(("budget_s", "lease_s", "allowed"), [(90.0, 119.9, False), (90.0, 120.0, True), (2.0, 32.0, True)])
def test_leases_on_s3_are_longer_than_its_retry_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget_s: float, lease_s: float, allowed: bool
) -> None:
    s3 = needs("hybridiff.storage.s3", "s3")
    monkeypatch.setattr(s3.RetryingS3, "retry_budget_s", budget_s)
    monkeypatch.setattr(job_module, "check_free", lambda _: None)  # it asks S3, and so does a plan that may be shared there
    real = job_module.make_plan
    monkeypatch.setattr(job_module, "make_plan", lambda data, sampling, size, *_, **__: real(data, sampling, size))
    (tmp_path / "a.txt").write_text("one")
    data = DataConfig(str(tmp_path / "a.txt"), lease_s=lease_s)
    config = JobConfig(ModelConfig("shapes-xl"), SamplingConfig(), ParallelConfig(), data, OutputConfig("s3://bucket/corpus"))
    if allowed:
        assert job_module.prepare(config, writes=False).plan.rows == 1
    else:
        message = r"data\.lease_s is 119\.9 and output\.url s3://bucket/corpus; allowed: 120 to 1200 seconds there"
        with pytest.raises(UsageError, match=message):
            job_module.prepare(config, writes=False)


def test_short_leases_are_allowed_on_local_files(tmp_path: Path) -> None:
    check_lease(Corpus(str(tmp_path)), 1.0)


def check_schedule(schedule: Schedule, path: str = "shapes-xl", scheduler: str | None = None, **sampling: Any) -> None:
    model = ModelConfig(path, scheduler=scheduler)
    data, output = DataConfig("a.txt"), OutputConfig("corpus")
    parallel = ParallelConfig(schedule=schedule)
    config = JobConfig(model, SamplingConfig(**sampling), parallel, data, output)
    job_module.check_schedule(config, read_facts(model))


CONTENT: dict[str, dict[str, Any]] = {
    "model": {
        "compile": True,
        "attention": "native",
        "vae_tiling": True,
        "vae_slicing": True,
        "offload": "model",
        "quantization": {"quant_backend": "torchao"},
        "dtype": "bfloat16",
        "scheduler_options": {"timestep_spacing": "leading"},
        "lora": "a.safetensors",
    },
    "sampling": {"options": {"true_cfg_scale": 4.0}, "guidance_scale": 4.0},
}


@pytest.mark.parametrize(("section", "option"), [(section, option) for section, given in CONTENT.items() for option in given])
def test_what_changes_images_is_in_the_fingerprint(section: str, option: str) -> None:
    model, sampling = ModelConfig("shapes-xl"), SamplingConfig()
    config = JobConfig(model, sampling, ParallelConfig(), DataConfig("a.txt"), OutputConfig("corpus"))
    changed = dataclasses.replace(getattr(config, section), **{option: CONTENT[section][option]})
    facts = read_facts(model)

    def fingerprint(one: JobConfig) -> str:
        record = RunRecord(job_module.recorded_options(one, facts, None), {}, job_module.NOT_CONTENT)
        return str(record.document()["fingerprint"])

    assert fingerprint(dataclasses.replace(config, **{section: changed})) != fingerprint(config)


PAPER = Paper(slope_window=2, tau_cap=15, k=5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"schedule": Paper(tau_cap=15, k=6), "steps": 20},
            "parallel.schedule.tau_cap is 15 and k is 6; .* at most 20",
        ),
        (
            {"schedule": Paper(), "path": "shapes-sd3", "steps": 44},
            "parallel.schedule.tau_cap is 40 and k is 5; .* at most 44, the number of steps",
        ),
        (  # two calls a step, the last but one
            {"schedule": PAPER, "scheduler": "HeunDiscreteScheduler", "steps": 10},
            "parallel.schedule.tau_cap is 15 and k is 5; .* at most 19, the number of steps",
        ),
        ({"schedule": Refresh(first=30), "steps": 20}, "parallel.schedule.first is 30 and last is -3; .* < 20"),
        ({"schedule": Async(warm_up=21), "steps": 20}, "parallel.schedule.warm_up is 21; allowed: at most .* 20"),
    ],
)
def test_schedules_that_do_not_fit_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_schedule(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"schedule": PAPER, "steps": 20},
        {"schedule": PAPER, "scheduler": "HeunDiscreteScheduler", "steps": 11},  # 21 calls
        {"schedule": Paper(), "path": "shapes-sd3", "steps": 45},
        {"schedule": Adaptive(tolerance=0.3), "guidance_scale": 1.0},
        {"schedule": Full(), "steps": 1},
    ],
)
def test_schedules_that_fit_are_not(given: dict[str, Any]) -> None:
    check_schedule(**given)


@pytest.mark.parametrize("schedule", [PAPER, Refresh(), Async()])
def test_schedules_that_need_segments_of_a_network_without_a_plan_are_refused(schedule: Schedule) -> None:
    facts = dataclasses.replace(read_facts(ModelConfig("shapes-sd3")), denoiser="CogVideoXTransformer3DModel")
    config = JobConfig(
        ModelConfig("shapes-sd3"), SamplingConfig(), ParallelConfig(2, schedule), DataConfig("a.txt"), OutputConfig("corpus")
    )
    refused = f"is a CogVideoXTransformer3DModel, which has no plan .* and schedule {schedule.name} cannot do without; .*adaptive"
    with pytest.raises(UsageError, match=refused):
        job_module.check_schedule(config, facts)
    for parallel in (ParallelConfig(1, schedule), ParallelConfig(2, Adaptive()), ParallelConfig(2, Full())):
        job_module.check_schedule(dataclasses.replace(config, parallel=parallel), facts)
