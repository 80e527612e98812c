"""Schedulers: which fit a model, and what of their options has an effect, found out on a problem whose solution is known.

A denoiser that knows its data exactly, here one constant image, leads any solver that fits its noise levels and its prediction
type to that image. One that does not, as EDM's solvers on a model of discrete timesteps, ends in noise.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

from hybridiff.config import ModelConfig, SamplingConfig
from hybridiff.errors import UsageError, require
from hybridiff.secrets import one_line

SOLUTION = 0.7  # each value of the image
TOLERANCE = 0.1  # mean absolute difference; noise differs by 0.8 or more
PROBE_STEPS = 20
OF_THE_MODEL = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "variance_type",
    "sigma_data",
)
Denoiser = Callable[[Tensor, float], Tensor]


def scheduler_class(name: str) -> Any:
    """A scheduler class of Diffusers by name."""
    return getattr(diffusers, name)


def make_scheduler(model: ModelConfig, config: Mapping[str, Any]) -> Any:
    """The scheduler that a configuration asks for.

    Args:
        model: the options ``scheduler`` and ``scheduler_options``.
        config: of the model's own scheduler, with its ``_class_name``.
    """
    return _instance(model.scheduler or str(config["_class_name"]), config, model.scheduler_options)


def check_schedulers(model: ModelConfig, sampling: SamplingConfig, config: Mapping[str, Any], pipeline: Any) -> None:
    """Refuses a scheduler that does not fit the model, whose noise is not the samples' own, and options without an effect.

    Args:
        model: the options ``scheduler`` and ``scheduler_options``.
        sampling: the number of steps.
        config: of the model's own scheduler, with its ``_class_name``.
        pipeline: class of the model's pipeline; some do not give their schedulers the samples' generators.

    Raises:
        UsageError: naming the option, what was given and what is allowed.
    """
    own = str(config["_class_name"])
    name = model.scheduler or own
    check_installed("model.path", model.path, own)
    if name != own:
        compatible = sorted(one.__name__ for one in scheduler_class(own)().compatibles)
        require(name in compatible, "model.scheduler", name, ", ".join(compatible) or "none but its own")
        check_installed("model.scheduler", name, name)
    _check_options(model, name)
    _check_solution(model, sampling.steps, config, gives_generators=hasattr(pipeline, "prepare_extra_step_kwargs"))
    for key, value in model.scheduler_options.items():
        others = {other: one for other, one in model.scheduler_options.items() if other != key}
        if _instance(name, config, others).config.get(key) != value:
            solutions = (_blurred(name, config, options, sampling.steps) for options in (model.scheduler_options, others))
            allowed = f"what changes something at {sampling.steps} steps of {name} with the other options"
            require(not torch.equal(*solutions), f"model.scheduler_options.{key}", value, allowed)


def check_installed(option: str, given: str, name: str) -> None:
    """Refuses a scheduler that diffusers does not have, or whose packages are not installed.

    Raises:
        UsageError: names the option that chose it.
    """
    found = getattr(diffusers, name, None)
    require(found is not None, option, given, f"schedulers of diffusers {diffusers.__version__}, not {name}")
    missing = missing_packages(found)
    require(not missing, option, given, f"schedulers whose packages are installed; {name} needs {', '.join(missing)}")


def missing_packages(kind: Any) -> list[str]:
    """The optional packages that a class of diffusers or transformers needs and that are not installed."""
    needed = getattr(kind, "_backends", ())  # of a placeholder for a class that could not be imported
    return [name for name in needed if find_spec(name) is None]


def _check_options(model: ModelConfig, name: str) -> None:
    known = set(inspect.signature(scheduler_class(name).__init__).parameters) - {"self", *OF_THE_MODEL}
    for key in model.scheduler_options:
        require(key in known, "model.scheduler_options", key, f"{', '.join(sorted(known))} (options of {name})")


def _check_solution(model: ModelConfig, steps: int, config: Mapping[str, Any], gives_generators: bool) -> None:
    name = model.scheduler or str(config["_class_name"])
    option, given = ("model.scheduler", name) if model.scheduler else ("model.path", model.path)
    if model.scheduler_options:
        option, given = "model.scheduler_options", str(dict(model.scheduler_options))
    own = _own(model, config)
    chosen = option != "model.path"  # else it is the model's own, which its pipeline may call in a way of its own
    kind = own.config.get("prediction_type") or "flow"
    fits = f"schedulers that fit the noise levels and the prediction type ({kind}) of {model.path}"
    state = torch.random.get_rng_state()
    try:
        scheduler = make_scheduler(model, config)
        require(noise_levels(scheduler) == noise_levels(own), option, given, f"{fits}, unlike {name}")
        solved = _solve(scheduler, PROBE_STEPS, exact_denoiser(own), gives_generators)
        if chosen:
            _blurred(name, config, model.scheduler_options, steps)
    except UsageError:
        raise
    except Exception as error:  # whatever a scheduler raises on options, prediction types and numbers of steps
        if not chosen:
            return
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UsageError(
            f"{option} is {given!r}; allowed: what {name} can do in {steps} steps for {model.path} ({reason})"
        ) from error
    finally:
        uses_global = not torch.equal(torch.random.get_rng_state(), state)
        torch.random.set_rng_state(state)
    noise = f"schedulers whose noise comes from each sample's seed, unlike that of {name}"
    require(not uses_global and torch.equal(*solved.nan_to_num()), option, given, noise)
    if chosen:
        require(bool((solved - SOLUTION).abs().mean() < TOLERANCE), option, given, f"{fits}; {name} ends in noise")


def noise_levels(scheduler: Any) -> str:
    """How a scheduler gives noise levels to the network: as EDM does, as the time of a flow, or as discrete timesteps."""
    if "sigma_data" in scheduler.config:
        return "EDM"
    flow = not hasattr(scheduler, "alphas_cumprod") or scheduler.config.get("use_flow_sigmas")
    return "flow" if flow else "discrete timesteps"


def exact_denoiser(scheduler: Any) -> Denoiser:
    """The prediction of a network whose only image is SOLUTION, by the noise levels and the prediction type of its scheduler.

    Returns:
        A function of the network's input and its timestep.
    """
    config = scheduler.config
    levels = noise_levels(scheduler)
    if levels == "EDM":  # arXiv 2206.00364, table 1
        return lambda x, t: _edm_prediction(x, math.exp(4 * t), config.sigma_data, config.get("prediction_type", "epsilon"))
    if levels == "flow":
        return lambda x, t: (x - SOLUTION) / max(t / config.num_train_timesteps, 1e-3)  # the velocity, noise - data
    ratios = (1 - scheduler.alphas_cumprod).clamp(1e-8) / scheduler.alphas_cumprod.clamp(1e-8)
    log_sigmas = ratios.double().log().numpy() / 2

    def predict(x: Tensor, t: float) -> Tensor:
        sigma = math.exp(float(np.interp(t, np.arange(len(log_sigmas)), log_sigmas)))
        alpha = 1 / math.sqrt(1 + sigma**2)
        noise = (x - alpha * SOLUTION) / (alpha * sigma)
        kinds = {"epsilon": noise, "v_prediction": alpha * noise - alpha * sigma * SOLUTION}
        return kinds.get(config.get("prediction_type", "epsilon"), torch.full_like(x, SOLUTION))

    return predict


def _edm_prediction(x: Tensor, sigma: float, data: float, kind: str) -> Tensor:
    total = sigma**2 + data**2
    latents = x * math.sqrt(total)
    scale = sigma * data / math.sqrt(total) * (-1 if kind == "v_prediction" else 1)
    return (SOLUTION - data**2 / total * latents) / scale


def _blurred(name: str, config: Mapping[str, Any], options: Mapping[str, Any], steps: int) -> Tensor:
    """Where a denoiser leads whose data is no single image, so that what a solver does in each step matters."""
    exact = exact_denoiser(_instance(str(config["_class_name"]), config, {}))
    return _solve(_instance(name, config, options), steps, lambda x, t: exact(x, t) + 0.3 * torch.sin(3 * x))


def _own(model: ModelConfig, config: Mapping[str, Any]) -> Any:
    """The model's own scheduler."""
    try:
        made = _instance(str(config["_class_name"]), config, {})
        for name in ("alphas_cumprod", "sigmas"):
            levels = getattr(made, name, None)
            if isinstance(levels, Tensor) and not (levels.isfinite() & (levels >= 0)).all():
                raise ValueError(f"{name} are not all finite and positive")
        return made
    except Exception as error:  # whatever a class raises on values of a damaged file
        raise UsageError(f"model.path is {model.path!r}: its scheduler_config.json can't be used ({one_line(error)})") from error


def _instance(name: str, config: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    return scheduler_class(name).from_config(dict(config), **options)


def set_timesteps(scheduler: Any, steps: int) -> None:
    """Prepares a scheduler for a number of steps outside a pipeline, which computes the shift ``mu`` from the image's size."""
    scheduler.set_timesteps(steps, **({"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}))


def _solve(scheduler: Any, steps: int, denoiser: Denoiser, gives_generators: bool = True) -> Tensor:
    """The latents of two samples with equal seeds, (2, 4, 8, 8)."""
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    latents = torch.cat([torch.randn(1, 4, 8, 8, generator=generator) for generator in generators])
    set_timesteps(scheduler, steps)
    latents = latents * getattr(scheduler, "init_noise_sigma", 1.0)
    takes = gives_generators and "generator" in inspect.signature(scheduler.step).parameters
    own = {"generator": generators} if takes else {}
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latents, timestep) if hasattr(scheduler, "scale_model_input") else latents
        latents = scheduler.step(denoiser(scaled, float(timestep)), timestep, latents, **own, return_dict=False)[0]
    return latents
