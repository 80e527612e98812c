"""The library's public face: handles, traces, schedules and cut plans of one's own."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.hooks import HookRegistry
from torch import Tensor

from hybridiff.errors import UsageError
from hybridiff.models.cuts import plan_of, register_plan
from hybridiff.models.families import Family, register_family
from hybridiff.models.row_axes import register_inputs
from hybridiff.parallel import Group, parallelize
from hybridiff.parallel.compatibility import check_compatible, why_uncut
from hybridiff.parallel.reference import emulate
from hybridiff.schedule import Adaptive, Decision, StepKind, Trace
from tests.dist.tiny import latents_of, tiny_sd3
from tests.optional import needs
from tests.own_plan import PixelMixer
from tests.own_schedule import EveryOther
from tests.parallel.scripted import Scripted


def hooks_of(denoiser: torch.nn.Module) -> list[str]:
    """Names of all hooks on a denoiser and its submodules, in order."""
    registries = [module._diffusers_hook for module in denoiser.modules() if hasattr(module, "_diffusers_hook")]
    return [name for registry in registries for name in registry._hook_order]


def test_a_handle_is_a_context_that_installs_and_removes_one_hook() -> None:
    pipeline = tiny_sd3()
    stock = latents_of(pipeline, 1, 4)
    assert hooks_of(pipeline.transformer) == []
    with parallelize(pipeline, "full") as handle:
        assert hooks_of(pipeline.transformer) == ["hybridiff"] and handle.group == Group()
        assert torch.equal(latents_of(pipeline, 1, 4), stock)
    assert hooks_of(pipeline.transformer) == []
    handle.remove()  # once more does nothing
    with pytest.raises(ZeroDivisionError), parallelize(pipeline, "full"):
        _ = 1 / 0
    assert hooks_of(pipeline.transformer) == []


def test_segments_have_one_hook_on_each_block() -> None:
    pipeline = tiny_sd3()
    with emulate(pipeline, Scripted("FHF"), 2):
        assert hooks_of(pipeline.transformer) == ["hybridiff"]
        latents_of(pipeline, 1, 3)
        assert hooks_of(pipeline.transformer) == ["hybridiff", *["hybridiff.block"] * 4]
    assert hooks_of(pipeline.transformer) == []


def test_handles_and_traces_as_text() -> None:
    pipeline = tiny_sd3()
    handle = parallelize(pipeline, Adaptive(tolerance=0.2))
    schedule = "Adaptive(tolerance=0.2, max_half_steps=4, max_skip_steps=4, min_full_steps=5)"
    about = f"Handle(StableDiffusion3Pipeline, {schedule}, rank 0 of a group of 1, last run: "
    assert repr(handle) == f"{about}none)"
    latents_of(pipeline, 1, 4)
    assert repr(handle) == f"{about}adaptive: 4 steps (4 full), ideal speed-up 1.00x over full steps)"
    handle.remove()
    assert "removed" in repr(handle)


def trace_of(script: str) -> Trace:
    kinds = {kind.value[0].upper(): kind for kind in StepKind}
    return Trace("mine", [Decision(kinds[letter], "test") for letter in script])


def test_a_trace_prints_its_kinds_counts_and_speed_up() -> None:
    trace = trace_of("FFFSSHF")
    assert repr(trace) == "Trace('mine', 'F3 S2 H1 F1', speedup=1.56)"
    assert str(trace) == "mine: 7 steps (4 full, 1 half, 2 skip), ideal speed-up 1.56x over full steps"
    assert trace.speedup == pytest.approx(7 / 4.5) and trace_of("FPPF").speedup == 1
    assert str(Trace("mine")) == "mine: no steps yet" and Trace("mine").speedup == 1


def test_curves_are_pairs_of_step_and_discrepancy() -> None:
    trace = trace_of("FFSF")
    assert trace.curves() == []
    trace.discrepancies.update({0: torch.tensor([0.5, 1.0]), 1: torch.tensor([0.25, 2.0]), 3: torch.tensor([0.125, 4.0])})
    assert trace.curves() == [[(0, 0.5), (1, 0.25), (3, 0.125)], [(0, 1.0), (1, 2.0), (3, 4.0)]]


def test_a_trace_is_plotted(tmp_path: Path) -> None:
    needs("matplotlib", "bench")
    trace = trace_of("FFSHF")
    trace.discrepancies.update({step: torch.tensor([0.5, 1.0]) for step in (0, 1, 4)})
    axes = trace.plot(tmp_path / "trace.png").axes[0]
    assert (tmp_path / "trace.png").read_bytes().startswith(b"\x89PNG")
    assert len(axes.patches) == 5 and [line.get_xdata().tolist() for line in axes.lines] == [[0, 1, 4]] * 2
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["full (3)", "half (1)", "skip (1)"]
    assert axes.get_title() == str(trace)


def test_a_plot_without_matplotlib_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"^trace\.plot needs matplotlib, which is not installed; allowed: .*$"):
        trace_of("F").plot()


def test_a_schedule_of_ones_own() -> None:
    pipeline = tiny_sd3()
    with parallelize(pipeline, EveryOther(warm_up=2)) as handle:
        assert latents_of(pipeline, 1, 6).isfinite().all()
        assert repr(handle.trace).startswith("Trace('every other', 'F2 S1 F1 S1 F1'")


class MixerPipeline:
    """A pipeline around the network of ``tests/own_plan.py``, with a stock sampler."""

    do_classifier_free_guidance: ClassVar[bool] = True
    guidance_scale: ClassVar[float] = 3.0

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.transformer = PixelMixer()
        self.scheduler = FlowMatchEulerDiscreteScheduler()

    @torch.no_grad()
    def __call__(self, steps: int) -> Tensor:
        self.scheduler.set_timesteps(steps)
        noise = torch.Generator().manual_seed(0)
        latents, prompts = torch.randn(2, 4, 4, 4, generator=noise), torch.randn(4, 4, generator=noise)
        for time in self.scheduler.timesteps:
            both = self.transformer(torch.cat([latents] * 2), time, encoder_hidden_states=prompts)[0]
            unconditional, conditional = both.chunk(2)
            guided = unconditional + self.guidance_scale * (conditional - unconditional)
            latents = self.scheduler.step(guided, time, latents).prev_sample
        return latents


def test_a_cut_plan_of_ones_own() -> None:
    pipeline: Any = MixerPipeline()
    blocks = plan_of(pipeline.transformer)
    assert blocks is not None and [(block.path, block.inputs) for block in blocks] == [
        ("mixers.0", ()),
        *((f"mixers.{i}", (f"mixers.{i - 1}",)) for i in (1, 2, 3)),
    ]
    stock = pipeline(6)
    with emulate(pipeline, "full", 2):
        torch.testing.assert_close(pipeline(6), stock)
    with emulate(pipeline, Scripted("FFHHFF"), 2) as handle:
        halved = pipeline(6)
        assert handle.trace.count(StepKind.HALF) == 2 and not torch.equal(halved, stock)
        torch.testing.assert_close(halved, stock, atol=0.5, rtol=0.5)


def test_without_a_plan_adaptive_runs_a_pair_without_half_steps() -> None:
    class Uncut(PixelMixer):
        pass

    register_plan(Uncut, lambda _: None)
    pipeline = MixerPipeline()
    pipeline.transformer = Uncut()
    schedule = Adaptive(tolerance=30.0, min_full_steps=3, max_skip_steps=1)
    for options, kinds in ((schedule, {StepKind.FULL, StepKind.SKIP}), (replace(schedule, max_skip_steps=0), {StepKind.FULL})):
        with emulate(pipeline, options, 2) as handle:
            pipeline(8)
            assert set(handle.trace.kinds) == kinds and handle.schedule == replace(options, max_half_steps=0)
    with emulate(pipeline, schedule, 1) as handle:  # alone, a half step is one call of the whole network
        pipeline(8)
        assert handle.schedule == schedule and StepKind.HALF in handle.trace.kinds


def test_a_subclass_may_have_a_plan_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from hybridiff.models.cuts import Block, plans

    class Uncut(PixelMixer):
        pass

    class Half(PixelMixer):
        pass

    monkeypatch.setattr(plans, "_REGISTERED", dict(plans._REGISTERED))
    register_plan(Uncut, lambda _: None)
    register_plan(Half, lambda _: (Block("mixers.0", ()), Block("mixers.1", ("mixers.0",))))
    pipeline = MixerPipeline()
    pipeline.transformer = Uncut()
    with pytest.raises(UsageError, match=r"is a Uncut, which has no plan .* and schedule scripted cannot do without"):
        check_compatible(pipeline, Scripted("FHF"), 2)
    assert [block.path for block in plan_of(Half()) or ()] == ["mixers.0", "mixers.1"]
    assert HookRegistry.check_if_exists_or_initialize(pipeline.transformer).hooks == {}


def test_fewer_blocks_than_ranks_are_noticed_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from hybridiff.models.cuts import Block, plans

    class Short(PixelMixer):
        pass

    monkeypatch.setattr(plans, "_REGISTERED", dict(plans._REGISTERED))
    register_plan(Short, lambda _: (Block("mixers.0", ()), Block("mixers.1", ("mixers.0",))))
    pipeline = MixerPipeline()
    pipeline.transformer = Short()
    with pytest.raises(UsageError, match="group_size is 4, and Short has 2 blocks, fewer than ranks, so schedule scripted"):
        check_compatible(pipeline, Scripted("FHF"), 4)
    assert check_compatible(pipeline, Scripted("FHF"), 2)[1] == Scripted("FHF")
    fitted = check_compatible(pipeline, Adaptive(), 4)[1]
    assert fitted == Adaptive(max_half_steps=0) and why_uncut(pipeline.transformer, 4) == "Short has 2 blocks, fewer than ranks"


class SwappedPipeline(MixerPipeline):
    """Doubles [conditional, unconditional], and keeps s of e_c + s (e_c - e_u) under a name of its own."""

    do_classifier_free_guidance: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.strength = 2.0

    @torch.no_grad()
    def __call__(self, steps: int) -> Tensor:
        self.scheduler.set_timesteps(steps)
        noise = torch.Generator().manual_seed(0)
        latents, prompts = torch.randn(2, 4, 4, 4, generator=noise), torch.randn(4, 4, generator=noise)
        for time in self.scheduler.timesteps:
            conditional, unconditional = self.transformer(torch.cat([latents] * 2), time, prompts)[0].chunk(2)
            latents = self.scheduler.step(conditional + self.strength * (conditional - unconditional), time, latents).prev_sample
        return latents


def test_a_pipeline_class_of_ones_own_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybridiff.models.families._REGISTERED", {})
    monkeypatch.setattr("hybridiff.models.row_axes._REGISTERED", {})
    scales: list[float] = []

    class Watching(Scripted):
        def begin(self, sampler: Any) -> Any:
            scales.append(sampler.guidance_scale)
            return super().begin(sampler)

    pipeline: Any = SwappedPipeline()
    stock = pipeline(6)
    register_family(SwappedPipeline, Family("doubled", conditional_first=True, scale="strength", scale_offset=1.0))
    register_inputs(PixelMixer, {})
    with emulate(pipeline, Watching("FFHSFF"), 2) as handle:
        found = pipeline(6)
        assert handle.trace.compact() == "F2 H1 S1 F2" and scales == [3.0]
    torch.testing.assert_close(found, stock, atol=0.5, rtol=0.5)
    with emulate(pipeline, "full", 2):
        torch.testing.assert_close(pipeline(6), stock)
