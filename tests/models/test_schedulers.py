"""Schedulers and their options: what is allowed fits the model and repeats its images, what has no effect is refused."""

import json
from collections.abc import Iterator
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from hybridiff.config import ModelConfig, SamplingConfig
from hybridiff.errors import UsageError
from hybridiff.models.facts import read_facts
from hybridiff.models.load import load_pipeline
from hybridiff.models.schedulers import check_schedulers, make_scheduler, missing_packages, scheduler_class
from tests.optional import needs

EDM = {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_data": 0.5, "prediction_type": "epsilon"}


def config_of(model: str) -> dict[str, Any]:
    """The configuration of a bundled model's own scheduler."""
    found: dict[str, Any] = json.loads((files("hybridiff") / "assets" / model / "scheduler/scheduler_config.json").read_text())
    return found


XL, SD3 = config_of("shapes-xl"), config_of("shapes-sd3")
DISCRETE = sorted(one.__name__ for one in scheduler_class(XL["_class_name"])().compatibles)


def check(config: dict[str, Any], scheduler: str | None = None, steps: int = 20, **options: Any) -> None:
    model = ModelConfig("m", scheduler=scheduler, scheduler_options=options)
    flow = config["_class_name"].startswith("FlowMatch")
    pipeline = diffusers.StableDiffusion3Pipeline if flow else diffusers.StableDiffusionXLPipeline
    check_schedulers(model, SamplingConfig(steps=steps), config, pipeline)


def is_allowed(config: dict[str, Any], scheduler: str | None = None, **options: Any) -> bool:
    try:
        check(config, scheduler, **options)
    except UsageError as error:
        assert "\n" not in str(error)
        return False
    return True


@pytest.fixture(scope="module")
def pipelines() -> Iterator[dict[str, Any]]:
    models = {name: ModelConfig(name) for name in ("shapes-xl", "shapes-sd3")}
    yield {name: load_pipeline(model, read_facts(model)) for name, model in models.items()}


ALLOWED = [
    *(("shapes-xl", name, {}) for name in DISCRETE if not missing_packages(scheduler_class(name)) and is_allowed(XL, name)),
    ("shapes-xl", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("shapes-sd3", None, {}),
    ("shapes-sd3", None, {"shift": 5.0}),
]


def test_all_schedulers_but_those_of_other_noise_are_allowed() -> None:
    needs("scipy", "evaluate")
    assert set(DISCRETE) - {name for _, name, _ in ALLOWED} == {"DPMSolverSDEScheduler", "EDMEulerScheduler"}


@pytest.mark.parametrize(("model", "scheduler", "options"), ALLOWED)
def test_two_runs_are_equal_bit_for_bit(
    pipelines: dict[str, Any], model: str, scheduler: str | None, options: dict[str, Any]
) -> None:
    pipeline = pipelines[model]
    pipeline.scheduler = make_scheduler(ModelConfig(model, scheduler=scheduler, scheduler_options=options), config_of(model))

    def generate(*seeds: int) -> Tensor:
        torch.rand(seeds[0] + 1)  # whatever else the process has generated
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        given = {"num_inference_steps": 4, "output_type": "latent", "return_dict": False, "generator": generators}
        with torch.inference_mode():
            latents: Tensor = pipeline(["a red circle"] * len(seeds), height=64, width=64, **given)[0]
        return latents

    first = generate(3, 8)
    assert torch.equal(first, generate(3, 8)) and not torch.equal(first[0], first[1])
    torch.testing.assert_close(generate(8, 3).flip(0), first, atol=1e-3, rtol=1e-3)  # a sample's noise goes with its seed


class OwnNoise(diffusers.EulerDiscreteScheduler):
    """Draws from the global generator."""

    def step(self, prediction: Tensor, timestep: Any, sample: Tensor, generator: Any = None, return_dict: bool = True) -> Any:
        (latents, *rest) = super().step(prediction, timestep, sample, return_dict=False)
        return (latents + 0.01 * self.noise(latents), *rest)

    def noise(self, latents: Tensor) -> Tensor:
        return torch.randn_like(latents)


class OneSeed(OwnNoise):
    """Draws for all rows of a batch from one seed of its own, as a Brownian tree does."""

    def noise(self, latents: Tensor) -> Tensor:
        return torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [OwnNoise, OneSeed])
@pytest.mark.parametrize("chosen", [False, True])
def test_noise_that_is_not_the_samples_own_is_refused(
    kind: type[OwnNoise], chosen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diffusers, "EulerDiscreteScheduler", type("EulerDiscreteScheduler", (kind,), {}))
    state = torch.random.get_rng_state()
    with pytest.raises(UsageError, match="allowed: schedulers whose noise comes from each sample's seed, unlike that of"):
        check(*((XL, "EulerDiscreteScheduler") if chosen else (XL | {"_class_name": "EulerDiscreteScheduler"},)))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_noise_is_refused_where_the_pipeline_gives_no_generators() -> None:
    with pytest.raises(UsageError, match="whose noise comes from each sample's seed, unlike that of FlowMatchEuler"):
        check(SD3, stochastic_sampling=True)


@pytest.mark.parametrize("options", [{}, {"noise_sampler_seed": 7}])
def test_the_brownian_tree_is_refused(options: dict[str, Any]) -> None:
    """For its noise; and where its package is missing, for that."""
    installed = find_spec("torchsde") is not None
    with pytest.raises(UsageError, match="noise comes from each sample's seed" if installed else "needs torchsde"):
        check(XL, "DPMSolverSDEScheduler", **options)


@pytest.mark.parametrize(
    ("prediction", "scheduler", "allowed"),
    [
        ("v_prediction", "EulerDiscreteScheduler", True),
        ("v_prediction", "EDMEulerScheduler", False),
        ("epsilon", "HeunDiscreteScheduler", True),
        ("epsilon", "EDMEulerScheduler", False),
        ("sample", "EulerDiscreteScheduler", True),
        ("sample", "PNDMScheduler", False),
        ("sample", "KDPM2DiscreteScheduler", False),
        ("sample", "EDMEulerScheduler", False),
    ],
)
def test_schedulers_fit_the_prediction_type_and_the_noise_levels(prediction: str, scheduler: str, allowed: bool) -> None:
    config = XL | {"prediction_type": prediction, "rescale_betas_zero_snr": False, "timestep_spacing": "leading"}
    assert is_allowed(config, scheduler) is allowed


def test_models_of_edm_keep_their_scheduler() -> None:
    assert is_allowed(EDM) and is_allowed(EDM, solver_order=3) and not is_allowed(EDM, "EulerDiscreteScheduler")


FITTING = [
    (XL, "DPMSolverMultistepScheduler", {"solver_order": 3}),
    (XL, "EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    (XL, None, {"timestep_spacing": "leading"}),
    (SD3, None, {"shift": 5.0}),
    (SD3, None, {"use_karras_sigmas": True}),
]
UNFIT = [
    (
        XL,
        "DPMSolverMultistepScheduler",
        {"flow_shift": 3.0},
        "scheduler_options.flow_shift is 3.0; allowed: what changes something",
    ),
    (XL, "DPMSolverMultistepScheduler", {"lower_order_final": False}, "allowed: what changes something at 20 steps"),
    (XL, "DPMSolverMultistepScheduler", {"use_flow_sigmas": True}, "allowed: schedulers that fit the noise levels"),
    (XL, "DPMSolverMultistepScheduler", {"algorithm_type": "none"}, r"can do in 20 steps for m \(NotImplementedError"),
    (XL, "EulerDiscreteScheduler", {"timestep_spacing": "none"}, r"can do in 20 steps for m \(ValueError: none is not supported"),
    (XL, None, {"prediction_type": "epsilon"}, "scheduler_options is 'prediction_type'; allowed: clip_sample, "),
    (XL, None, {"use_karras_sigmas": True}, "scheduler_options is 'use_karras_sigmas'; allowed: clip_sample, "),
    (SD3, None, {"shift": 0.0}, "can do in 20 steps"),
    (SD3, None, {"shfit": 3.0}, "scheduler_options is 'shfit'; allowed: "),
]


@pytest.mark.parametrize(("config", "scheduler", "options"), FITTING)
def test_options_replace_the_models_own(config: dict[str, Any], scheduler: str | None, options: dict[str, Any]) -> None:
    check(config, scheduler, **options)
    made = make_scheduler(ModelConfig("m", scheduler=scheduler, scheduler_options=options), config)
    assert {name: made.config[name] for name in options} == options


@pytest.mark.parametrize(("config", "scheduler", "options", "message"), UNFIT)
def test_options_without_an_effect_or_that_do_not_fit_are_refused(
    config: dict[str, Any], scheduler: str | None, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        check(config, scheduler, **options)
