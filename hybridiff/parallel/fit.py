"""Which pipelines fit: what is refused before anything runs."""

import inspect
import re
from typing import Any

import torch

from hybridiff.config import UsageError
from hybridiff.models.guidance import tells_guidance

MIXING = re.compile("PAG|CrossFrame|StyleAligned|Shared")  # in names of attention processors that look from one row at another
CHUNKED = re.compile(r"hidden_states\.chunk\([23]\)")  # by which processors take the branches of a batch apart


def find_denoiser(pipeline: Any) -> torch.nn.Module:
    """The network that a pipeline calls in each step.

    Raises:
        UsageError: there is none.
    """
    name = type(pipeline).__name__
    found = [part for part in (getattr(pipeline, "unet", None), getattr(pipeline, "transformer", None)) if part is not None]
    if len(found) != 1 or not isinstance(found[0], torch.nn.Module):
        raise UsageError(f"{name} has no single denoiser; allowed: a Diffusers pipeline with either a unet or a transformer")
    return found[0]


def check_guidance(pipeline: Any, guidance_scale: float | None) -> None:
    """Refuses a pipeline of whose guidance nothing is known, and a scale beside what a pipeline tells itself.

    Args:
        guidance_scale: What the caller says that the pipeline runs with.

    Raises:
        UsageError: neither or both of them tell.
    """
    name = type(pipeline).__name__
    tells = tells_guidance(type(pipeline))
    if guidance_scale is None and not tells:
        raise UsageError(f"{name} does not tell its guidance scale; allowed: guidance_scale=, the one that it is called with")
    if guidance_scale is not None and tells:
        raise UsageError(f"guidance_scale is {guidance_scale!r}; allowed: None, as {name} tells its own in each run")


def check_attention(pipeline: Any, denoiser: torch.nn.Module) -> None:
    """Refuses what computes one row of a batch from another, which ranks that hold different rows cannot do.

    Raises:
        UsageError: the pipeline perturbs attention in further rows, or an attention processor mixes rows.
    """
    if any(base.__name__ == "PAGMixin" for base in type(pipeline).__mro__):
        raise UsageError(f"{type(pipeline).__name__} adds perturbed rows to the batch; allowed: the same pipeline without PAG")
    processors = {type(module.processor) for module in denoiser.modules() if hasattr(module, "processor")}
    for name in sorted(processor.__name__ for processor in processors if _mixes(processor)):
        raise UsageError(
            f"the attention processor {name} computes rows of a batch from one another, and the ranks of a group hold different "
            "rows; allowed: processors that treat each row alone, such as AttnProcessor2_0"
        )


def _mixes(processor: type) -> bool:
    try:
        source = inspect.getsource(processor)
    except (OSError, TypeError):  # defined in a console, or built in
        source = ""
    return bool(MIXING.search(processor.__name__) or CHUNKED.search(source))
