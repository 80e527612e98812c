"""Samplers computed from impulse responses, against formulas."""

import math
from itertools import pairwise
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from hybridiff.schedule import Sampler, SamplerReader

ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}

UNKNOWN = "its response to predictions is unknown, so all steps are weighted alike without error compensation"


def made(name: str, steps: int = 10, **config: Any) -> Any:
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(steps)
    return scheduler


def read(scheduler: Any) -> Sampler:
    return SamplerReader().read(scheduler, "Denoiser", 5.0)


def test_flow_matching_moves_by_the_difference_of_sigmas() -> None:
    scheduler = made("FlowMatchEulerDiscreteScheduler", shift=3.0)
    seen = read(scheduler)
    moved = (scheduler.sigmas[1:] - scheduler.sigmas[:-1]).tolist()
    assert seen.effects == pytest.approx(moved, abs=1e-5)
    assert seen.gains == pytest.approx([abs(x) for x in moved], abs=1e-5)
    assert (seen.steps, seen.scheduler, seen.guidance_scale) == (10, "FlowMatchEulerDiscreteScheduler", 5.0)
    assert seen.times == pytest.approx(scheduler.timesteps.tolist())


def test_ddim_moves_by_the_methods_formula() -> None:
    scheduler = made("DDIMScheduler", clip_sample=False)
    a = [scheduler.alphas_cumprod[t].item() for t in scheduler.timesteps] + [scheduler.final_alpha_cumprod.item()]
    expected = [abs(math.sqrt(1 - n) - math.sqrt(n) * math.sqrt(1 - p) / math.sqrt(p)) for p, n in pairwise(a)]
    assert read(scheduler).gains == pytest.approx(expected, rel=1e-3)


def test_gains_do_not_depend_on_the_parametrisation() -> None:
    """Euler's latents are larger by 1 / sqrt(alpha) than DDIM's: the denoiser sees the same."""
    ddim, euler = read(made("DDIMScheduler", **ZERO_SNR)), read(made("EulerDiscreteScheduler", **ZERO_SNR))
    assert euler.gains == pytest.approx(ddim.gains, rel=0.03)
    assert euler.effects == pytest.approx(ddim.effects, rel=0.03)


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("EulerAncestralDiscreteScheduler", 10),
        ("DPMSolverMultistepScheduler", 10),
        ("UniPCMultistepScheduler", 10),
        ("HeunDiscreteScheduler", 19),
        ("PNDMScheduler", 19),
    ],
)
def test_effects_are_those_on_the_final_latents(name: str, calls: int) -> None:
    """A sampler is linear: latents that start at 0 end at the sum of effects times predictions."""
    scheduler = made(name)
    seen = read(scheduler)
    assert seen.steps == len(seen.effects) == calls
    predictions = torch.randn(calls, generator=torch.Generator().manual_seed(1)) * 1e-3
    ends = []
    for scale in (1.0, 0.0):  # the noise of a stochastic sampler is the same in both
        again, latents = made(name), torch.zeros(1, 1, 1, 1)
        torch.manual_seed(0)
        for prediction, time in zip(predictions, again.timesteps, strict=True):
            again.scale_model_input(latents, time)
            latents = again.step(scale * prediction.view(1, 1, 1, 1), time, latents, return_dict=False)[0]
        ends.append(latents.item())
    expected = sum(p * e for p, e in zip(predictions.tolist(), seen.effects, strict=True))
    assert ends[0] - ends[1] == pytest.approx(expected, rel=1e-2, abs=1e-5)


def test_the_scheduler_is_not_modified() -> None:
    scheduler = made("DPMSolverMultistepScheduler")
    before, state = {k: repr(v) for k, v in vars(scheduler).items()}, torch.get_rng_state()
    read(scheduler)
    assert {k: repr(v) for k, v in vars(scheduler).items()} == before
    assert torch.equal(torch.get_rng_state(), state)


class Strange:
    def __init__(self, steps: int, error: Exception) -> None:
        self.config: dict[str, Any] = {}
        self.timesteps = torch.arange(steps, 0, -1)
        self.error = error

    def step(self, *_: Any, **__: Any) -> None:
        raise self.error


@pytest.mark.parametrize("error", [ValueError("needs more than this\nby far"), KeyError("needs more than this"), OSError()])
def test_a_scheduler_that_cannot_be_run_gets_equal_weights_and_one_warning(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    reader = SamplerReader()
    for steps in (4, 5):
        seen = reader.read(Strange(steps, error), "Denoiser", 5.0)
        assert (seen.gains, seen.effects) == ((1 / steps,) * steps, ())
    reason = "'needs more than this'" if isinstance(error, KeyError) else str(error).partition("\n")[0] or "OSError"
    assert caplog.messages == [f"Strange: {UNKNOWN} ({reason})"]


def test_a_scheduler_that_no_prediction_moves_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    class Still(Strange):
        def step(self, prediction: Tensor, time: Tensor, latents: Tensor, **_: Any) -> tuple[Tensor]:
            return (latents,)

    assert read(Still(4, ValueError())).effects == ()
    assert caplog.messages == [f"Still: {UNKNOWN} (its latents are not finite, or no prediction moves them)"]


class Elsewhere(Tensor):
    """Stands for a tensor on another device: operations with one in main memory fail, and ``cpu`` brings it there."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if any(type(arg) is Tensor for arg in args):
            raise RuntimeError("Expected all tensors to be on the same device")
        result = super().__torch_function__(func, types, args, kwargs)
        return result.as_subclass(Tensor) if func is Tensor.cpu else result


ON_DEVICE = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "DDIMScheduler", "EulerDiscreteScheduler")


@pytest.mark.parametrize("name", ON_DEVICE)
def test_a_scheduler_with_tensors_on_another_device_is_run(name: str, caplog: pytest.LogCaptureFixture) -> None:
    here, there = made(name), made(name)
    for attribute, value in vars(there).items():
        if isinstance(value, Tensor):
            setattr(there, attribute, value.as_subclass(Elsewhere))
    kept = {attribute for attribute, value in vars(there).items() if isinstance(value, Elsewhere)}
    seen = read(there)
    assert seen == read(here) and seen.effects and caplog.messages == []
    assert kept and kept == {attribute for attribute, value in vars(there).items() if isinstance(value, Elsewhere)}


def test_unreadable_tensors_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    scheduler = made("FlowMatchEulerDiscreteScheduler")
    scheduler.sigmas = scheduler.sigmas.to("meta")
    assert read(scheduler).effects == ()
    assert len(caplog.messages) == 1 and "Cannot copy out of meta tensor" in caplog.messages[0]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_DEVICE)
def test_timesteps_may_be_on_a_gpu(name: str, caplog: pytest.LogCaptureFixture) -> None:
    here, there = made(name), made(name)
    there.set_timesteps(10, device="cuda")
    assert read(there).effects == pytest.approx(read(here).effects) and caplog.messages == []


def test_the_last_sampler_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, scheduler = SamplerReader(), made("DDIMScheduler")
    first = reader.read(scheduler, "Denoiser", 5.0)
    with monkeypatch.context() as patch:
        patch.setattr("hybridiff.schedule.sampler._run", lambda *_: pytest.fail("run again"))
        assert reader.read(scheduler, "Denoiser", 5.0) == first
    scheduler.set_timesteps(5)
    assert reader.read(scheduler, "Denoiser", 5.0).steps == 5
    other = made("DDIMScheduler", 5, prediction_type="v_prediction")
    assert reader.read(other, "Denoiser", 5.0).effects != reader.read(scheduler, "Denoiser", 5.0).effects


def test_a_run_over_a_part_of_the_timesteps() -> None:
    """As image to image does, or a base model that leaves the end to a refiner."""
    for name in ("EulerDiscreteScheduler", "DDIMScheduler", "FlowMatchEulerDiscreteScheduler"):
        scheduler = made(name)
        whole = read(scheduler)
        part = SamplerReader().read(scheduler, "Denoiser", 5.0, first=4, calls=3)
        assert (part.steps, part.times) == (3, whole.times[4:7])
        assert part.gains[:2] == pytest.approx(whole.gains[4:6], rel=1e-4)
        assert len(part.effects) == 3


def test_no_device_random_state_is_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    read(made("EulerAncestralDiscreteScheduler"))
    assert seeded == []
    torch.manual_seed(0)
    assert seeded == [0]  # what reading must not do
