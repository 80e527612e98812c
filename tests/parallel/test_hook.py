"""The denoiser hook on a group of one: the calls that the denoiser gets, and the predictions that the pipeline gets."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from hybridiff.errors import UsageError
from hybridiff.parallel import Exchange, Group, Handle, parallelize
from hybridiff.parallel.compatibility import check_attention, check_compatible
from hybridiff.parallel.placement import GroupPlacement
from hybridiff.parallel.reference import emulate
from hybridiff.schedule import Branches, Decision, Sampler, Schedule, StepKind
from tests.dist.tiny import latents_of, tiny_sd3
from tests.parallel.scripted import Scripted


class Network(torch.nn.Module):
    """A denoiser whose prediction is its input times the prompt; it remembers rows and timestep of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.calls: list[tuple[int, float]] = []

    def forward(self, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor) -> tuple[Tensor]:
        self.calls.append((len(sample), float(timestep)))
        return (sample * encoder_hidden_states.view(-1, 1, 1, 1),)


@dataclass
class Scheduler:
    timesteps: Tensor
    config: dict[str, Any] = field(default_factory=dict)


class Pipeline:
    """One prompt of weight 3 and a negative prompt of weight 2, whose latents are all ones in every step."""

    do_classifier_free_guidance: ClassVar[bool] = True
    guidance_scale: ClassVar[float] = 5.0

    def __init__(self) -> None:
        self.unet = Network()
        self.scheduler = Scheduler(torch.zeros(0))

    @torch.no_grad()
    def __call__(self, steps: int, dtype: torch.dtype = torch.float32) -> list[list[float]]:
        """The mean of each branch in each step."""
        self.scheduler.timesteps = torch.arange(steps, 0, -1)
        latents, prompts = torch.ones(2, 1, 2, 2, dtype=dtype), torch.tensor([2.0, 3.0], dtype=dtype)
        got = [self.unet(latents, time, encoder_hidden_states=prompts)[0] for time in self.scheduler.timesteps]
        assert {prediction.dtype for prediction in got} == {dtype}
        return [prediction.flatten(1).mean(1).tolist() for prediction in got]


@pytest.mark.parametrize("run", [parallelize, emulate])
def test_kinds_of_steps_on_one_rank(run: Callable[..., Handle]) -> None:
    pipeline = Pipeline()
    handle = run(pipeline, Scripted("FHSPF"), group_size=1)
    assert pipeline(5) == [[2.0, 3.0]] * 5
    assert pipeline.unet.calls == [(2, 5.0), (1, 4.0), (2, 2.0), (2, 1.0)]  # a half step has one row, a skip step no call
    assert [kind.value for kind in handle.trace.kinds] == ["full", "half", "skip", "pipelined", "full"]
    assert handle.trace.curves() == [[(0, 0.5), (3, 0.5), (4, 0.5)]] and handle.exchange.collectives == 0
    handle.remove()
    assert pipeline(1) == [[2.0, 3.0]]


def test_shifted_time_is_that_of_the_previous_call_even_if_it_was_skipped() -> None:
    pipeline = Pipeline()
    handle = parallelize(pipeline, Scripted("FPSPF", shift_time=True), group_size=1)
    pipeline(5)
    assert [time for _, time in pipeline.unet.calls] == [5.0, 5.0, 3.0, 1.0]
    handle.remove()


@dataclass(frozen=True)
class Replacing(Schedule):
    """A schedule that sends its own numbers, in single precision, instead of what was computed."""

    name: ClassVar[str] = "replacing"
    kinds: ClassVar[frozenset[StepKind]] = frozenset(StepKind)

    def check(self, sampler: Sampler) -> None:
        if sampler.steps > 3:
            raise UsageError(f"steps is {sampler.steps}; allowed: 3")

    def begin(self, sampler: Sampler) -> "Replacing":
        self.check(sampler)
        return self

    def plan(self, step: int) -> Decision:
        return Decision((StepKind.FULL, StepKind.HALF, StepKind.SKIP)[step], "test")

    def full(self, step: int, branches: Branches, discrepancy: Tensor) -> Branches:
        assert branches.conditional.mean() == 3 and branches.difference.mean() == 1
        return Branches(branches.conditional.float() * 2, branches.difference.float())

    def half(self, step: int, conditional: Tensor) -> Branches:
        return Branches(conditional.float() * 4, conditional.float())

    def skip(self, step: int) -> Branches:
        return Branches(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))


def test_the_pipeline_gets_the_policys_predictions_in_the_models_dtype() -> None:
    pipeline = Pipeline()
    handle = parallelize(pipeline, Replacing(), group_size=1)
    assert pipeline(3, torch.bfloat16) == [[5.0, 6.0], [9.0, 12.0], [0.0, 1.0]]
    with pytest.raises(UsageError, match="steps is 4; allowed: 3"):
        pipeline(4)
    handle.remove()


def test_without_guidance_the_one_prediction_is_extrapolated(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = Pipeline()
    monkeypatch.setattr(Pipeline, "do_classifier_free_guidance", False)
    handle = parallelize(pipeline, Scripted("FSHPF"), group_size=1)
    assert pipeline(5) == [[2.0, 3.0]] * 5
    assert pipeline.unet.calls == [(2, 5.0), (2, 3.0), (2, 2.0), (2, 1.0)]
    assert handle.trace.compact() == "F1 S1 F3" and handle.trace.curves() == []
    handle.remove()


def test_a_schedule_without_skip_steps_has_no_effect_without_guidance(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = Pipeline()
    monkeypatch.setattr(Pipeline, "do_classifier_free_guidance", False)
    for schedule in (Scripted("FHHF"), "full"):
        caplog.clear()
        handle = parallelize(pipeline, schedule, group_size=1)
        for _ in range(2):
            assert pipeline(4) == [[2.0, 3.0]] * 4 and handle.trace.compact() == "F4"
        handle.remove()
        said = [message for message in caplog.messages if "guidance" in message]
        assert said == (
            [] if schedule == "full" else ["guidance is off, so all steps are full and schedule scripted has no effect"]
        )


def test_one_rank_is_the_log_rank() -> None:
    kinds = frozenset(StepKind)
    groups = [Group(2, rank, index, 2) for index in range(2) for rank in range(2)]
    logging = [GroupPlacement(Network(), Exchange(group), kinds).is_log_rank for group in groups]
    assert logging == [True, False, False, False]


def test_a_denoiser_without_a_plan_is_refused_where_segments_are_needed() -> None:
    pipeline = Pipeline()
    assert check_compatible(pipeline, Scripted("FSF"), 2) == (pipeline.unet, Scripted("FSF"))
    assert check_compatible(pipeline, Scripted("FHSPF"), 1) == (pipeline.unet, Scripted("FHSPF"))
    for script in ("FH", "FP"):
        with pytest.raises(UsageError, match="the denoiser is a Network, which has no plan where to cut it"):
            check_compatible(pipeline, Scripted(script), 2)


class SharedSelfAttention:
    pass


class SplitsBranches:
    def __call__(self, hidden_states: Tensor) -> Tensor:
        unconditional, conditional = hidden_states.chunk(2)
        return torch.cat([unconditional, unconditional + conditional])


class ByFunction:
    def __call__(self, hidden_states: Tensor) -> Tensor:
        return torch.chunk(hidden_states, 2)[0]


class ByKeyword:
    def __call__(self, query: Tensor) -> Tensor:
        return query.chunk(chunks=2, dim=0)[0]


class BySplit:
    def __call__(self, hidden_states: Tensor) -> Tensor:
        first, second = torch.split(hidden_states, len(hidden_states) // 2)
        return torch.cat([first, first + second])


class ByIndex:
    def __call__(self, hidden_states: Tensor) -> Tensor:
        return hidden_states[: len(hidden_states) // 2]


class ByInheritance(SplitsBranches):
    pass


class Alone:
    def __init__(self) -> None:
        self.scales = torch.ones(2, 3)

    def __call__(self, hidden_states: Tensor, layout: str = "a b") -> Tensor:
        self.scales.chunk(2)
        layout.split(), layout.split(" ")
        query, key = hidden_states.chunk(2, dim=-1)
        query, key = torch.split(query, [1, 1], -1), torch.split(key, [1, 1], dim=1)
        return hidden_states.unbind(1)[0][..., : hidden_states.shape[-1] // 2]


class PAGMixin:
    pass


class PerturbedPipeline(Pipeline, PAGMixin):
    pass


MIXING = [SharedSelfAttention, SplitsBranches, ByFunction, ByKeyword, BySplit, ByIndex, ByInheritance]


@pytest.mark.parametrize("processor", MIXING)
def test_attention_that_mixes_rows_is_refused(processor: type) -> None:
    pipeline = Pipeline()
    pipeline.unet.processor = Alone()
    check_attention(pipeline, pipeline.unet)
    pipeline.unet.processor = processor()
    with pytest.raises(UsageError, match=f"the attention processor {processor.__name__} mixes rows of a batch"):
        check_attention(pipeline, pipeline.unet)


@pytest.mark.parametrize("run", [parallelize, emulate])
def test_attention_that_mixes_rows_is_refused_if_it_is_set_later_before_the_first_step(run: Callable[..., Handle]) -> None:
    pipeline = Pipeline()
    handle = run(pipeline, Scripted("FHF"), group_size=1)
    pipeline(3)
    pipeline.unet.processor = ByFunction()
    pipeline.unet.calls.clear()
    for _ in range(2):
        with pytest.raises(UsageError, match="the attention processor ByFunction mixes rows of a batch"):
            pipeline(3)
    assert pipeline.unet.calls == []
    pipeline.unet.processor = Alone()
    assert pipeline(3) == [[2.0, 3.0]] * 3
    handle.remove()


def test_skip_layer_guidance_is_refused_at_its_second_call() -> None:
    pipeline = tiny_sd3()
    handle = parallelize(pipeline, group_size=1)
    latents_of(pipeline, 1, 2, skip_guidance_layers=[1], skip_layer_guidance_start=1.0)  # set, and never used
    with pytest.raises(UsageError, match="skip_guidance_layers calls the denoiser a second time in a step; allowed: None"):
        latents_of(pipeline, 1, 10, skip_guidance_layers=[1])
    handle.remove()


def test_perturbed_attention_guidance_is_refused() -> None:
    pipeline = PerturbedPipeline()
    with pytest.raises(UsageError, match="PerturbedPipeline adds perturbed rows to the batch"):
        check_attention(pipeline, pipeline.unet)


class LuminaPipeline(Pipeline):
    """Doubles its batch as [conditional, unconditional]."""

    @torch.no_grad()
    def __call__(self, steps: int, dtype: torch.dtype = torch.float32) -> list[list[float]]:
        self.scheduler.timesteps = torch.arange(steps, 0, -1)
        latents, prompts = torch.ones(2, 1, 2, 2, dtype=dtype), torch.tensor([3.0, 2.0], dtype=dtype)
        got = [self.unet(latents, time, encoder_hidden_states=prompts)[0] for time in self.scheduler.timesteps]
        return [prediction.flatten(1).mean(1).tolist() for prediction in got]


@pytest.mark.parametrize("run", [parallelize, emulate])
def test_a_batch_with_the_conditional_branch_first_is_reordered(run: Callable[..., Handle]) -> None:
    pipeline = LuminaPipeline()
    handle = run(pipeline, Scripted("FHSPF"), group_size=1)
    assert pipeline(5) == [[3.0, 2.0]] * 5
    assert handle.trace.curves()[0][0] == (0, 0.5), "relative to the unconditional branch"
    assert pipeline.unet.calls[1] == (1, 4.0), "a half step has the conditional row alone"
    handle.remove()


class PerBranchPipeline(Pipeline):
    """Calls its denoiser once per branch, conditional first, on equal rows; the other one from ``begin`` to ``guided``."""

    @torch.no_grad()
    def __call__(self, steps: int, guided: int | None = None, begin: int = 0, rows: int = 2) -> list[list[float]]:
        self.scheduler.timesteps = torch.arange(steps, 0, -1)
        latents, got = torch.ones(rows, 1, 2, 2), []
        prompts = {weight: torch.full((rows,), weight) for weight in (3.0, 2.0)}
        for step, time in enumerate(self.scheduler.timesteps):
            weights = (3.0, 2.0) if begin <= step and (guided is None or step < guided) else (3.0,)
            calls = [self.unet(latents, time, encoder_hidden_states=prompts[weight])[0] for weight in weights]
            got.append([call.mean().item() for call in calls])
        return got


@pytest.mark.parametrize("script", ["FFFF", "FHFF", "FSFF", "FPFF"])
def test_a_call_per_branch_on_equal_rows_is_not_mistaken_for_a_doubled_batch(script: str) -> None:
    pipeline = PerBranchPipeline()
    handle = parallelize(pipeline, Scripted(script), group_size=1)
    assert pipeline(4) == [[3.0, 2.0]] * 4
    computed = {"F": 2, "P": 2, "H": 1, "S": 0}
    assert len(pipeline.unet.calls) == sum(computed[letter] for letter in script)
    assert [step for step, _ in handle.trace.curves()[0]] == [i for i, letter in enumerate(script) if letter in "FP"]
    assert {value for _, value in handle.trace.curves()[0]} == {0.5}
    handle.remove()


def test_guidance_may_end_or_begin_in_mid_run() -> None:
    pipeline = PerBranchPipeline()
    handle = parallelize(pipeline, Scripted("FSFSFSFS"), group_size=1)
    assert pipeline(8, guided=4, rows=1) == [[3.0, 2.0]] * 4 + [[3.0]] * 4
    assert handle.trace.compact() == "F1 S1 F1 S1 F2 S1 F1", "the step after the last with two calls is learned from"
    assert pipeline(8, begin=2, rows=1) == [[3.0]] * 2 + [[3.0, 2.0]] * 6
    assert handle.trace.compact() == "F1 S1 F2 S1 F1 S1 F1"
    handle.remove()


def test_prompts_that_change_in_mid_run_are_computed() -> None:
    class Changing(PerBranchPipeline):
        @torch.no_grad()
        def __call__(self, steps: int) -> list[list[float]]:  # type: ignore[override]
            self.scheduler.timesteps = torch.arange(steps, 0, -1)
            latents, got = torch.ones(1, 1, 2, 2), []
            for step, time in enumerate(self.scheduler.timesteps):
                weights = (3.0, 2.0 if step < 3 else 1.0)
                calls = [self.unet(latents, time, encoder_hidden_states=torch.full((1,), weight))[0] for weight in weights]
                got.append([call.mean().item() for call in calls])
            return got

    pipeline = Changing()
    handle = parallelize(pipeline, Scripted("FFFFFF"), group_size=1)
    assert pipeline(6) == [[3.0, 2.0]] * 3 + [[3.0, 1.0]] * 3
    handle.remove()


def test_three_calls_in_a_step_are_computed_as_they_are() -> None:
    class Three(PerBranchPipeline):
        @torch.no_grad()
        def __call__(self, steps: int) -> list[list[float]]:  # type: ignore[override]
            self.scheduler.timesteps = torch.arange(steps, 0, -1)
            latents = torch.ones(1, 1, 2, 2)
            prompts = [torch.full((1,), weight) for weight in (3.0, 2.0, 1.0)]
            return [
                [self.unet(latents, time, encoder_hidden_states=prompt)[0].mean().item() for prompt in prompts]
                for time in self.scheduler.timesteps
            ]

    pipeline = Three()
    handle = parallelize(pipeline, Scripted("FSSSF"), group_size=1)
    assert pipeline(5) == [[3.0, 2.0, 1.0]] * 5 and handle.trace.compact() == "F5"
    handle.remove()


def test_a_batch_of_three_branches_is_refused() -> None:
    class ThreeRows(Pipeline):
        @torch.no_grad()
        def __call__(self, steps: int) -> None:  # type: ignore[override]
            self.scheduler.timesteps = torch.arange(steps, 0, -1)
            for time in self.scheduler.timesteps:
                self.unet(torch.ones(3, 1, 2, 2), time, encoder_hidden_states=torch.ones(3))

    handle = parallelize(ThreeRows(), Scripted("FSF"), group_size=1)
    pipeline = handle._hook.pipeline
    with pytest.raises(UsageError, match="ThreeRows calls its denoiser neither on one batch twice nor once per guidance branch"):
        pipeline(3)
    handle.remove()
