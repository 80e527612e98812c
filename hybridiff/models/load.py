"""Loading a stock pipeline: safetensors only, no remote code."""

import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from hybridiff.config import ModelConfig
from hybridiff.models.dtypes import resolve_dtype
from hybridiff.models.execution import place, quantized
from hybridiff.models.facts import ModelFacts
from hybridiff.models.model_files import check_files, loaded_files
from hybridiff.models.model_parts import model_parts, read_json
from hybridiff.models.schedulers import make_scheduler


def load_pipeline(model: ModelConfig, facts: ModelFacts, device: torch.device | str = "cpu") -> Any:
    """A stock Diffusers pipeline, ready to run on ``device`` as it is asked for: scheduler, LoRA weights, execution."""
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    pipeline = getattr(diffusers, facts.pipeline).from_pretrained(
        facts.source if facts.commit is None else _downloaded(model, facts),
        variant=model.variant,
        dtype=getattr(torch, resolve_dtype(model.dtype, torch.device(device).type)),
        use_safetensors=True,
        **dict.fromkeys(_optional(facts)),
        **quantized(model, facts.networks),
    )
    if model.scheduler is not None or model.scheduler_options:
        pipeline.scheduler = make_scheduler(model, facts.scheduler_config)
    for index, lora in enumerate(facts.lora):
        pipeline.load_lora_weights(str(lora.path), adapter_name=f"lora_{index}", use_safetensors=True)
    if facts.lora:
        pipeline.set_adapters([f"lora_{index}" for index in range(len(facts.lora))], [lora.scale for lora in facts.lora])
    pipeline.set_progress_bar_config(disable=True)
    for kind in type(pipeline).__mro__:
        logging.getLogger(kind.__module__).addFilter(_is_no_truncation_notice)
    return place(pipeline, model, device)


def _downloaded(model: ModelConfig, facts: ModelFacts) -> Path:
    """The folder of a model of the hub, with the files that loading opens, which have been checked.

    Raises:
        UsageError: they are damaged, do not fit together, or are not safetensors.
    """
    kind = getattr(diffusers, facts.pipeline)
    folder = Path(kind.download(facts.source, revision=facts.commit, variant=model.variant, use_safetensors=True))
    parts = model_parts(model.path, read_json(model.path, folder / "model_index.json", "model_index.json"))
    check_files(model.path, loaded_files(model.path, folder, parts, model.variant), parts)
    return folder


def _is_no_truncation_notice(record: logging.LogRecord) -> bool:
    """Log filter: drops what pipelines log of each prompt that they cut off; ``PromptWindows`` reports which were cut."""
    return "input was truncated because" not in record.getMessage()


def as_asked(pipeline: Any) -> dict[str, bool]:
    """Options that keep a pipeline from generating another size or prompt than asked, as some do by default.

    PixArt's and Sana's change sizes and clean prompts; LongCat's and ERNIE's let a language model rewrite prompts, ERNIE's
    with random numbers that differ between ranks.
    """
    names = ("use_resolution_binning", "clean_caption", "enable_prompt_rewrite", "use_pe")
    return {name: False for name in names if name in _options(pipeline)}


def takes_option(pipeline: Any, name: str) -> bool:
    """Whether a pipeline's call has an argument of this name."""
    return name in _options(pipeline)


def _options(pipeline: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(type(pipeline).__call__).parameters


def _optional(facts: ModelFacts) -> tuple[str, ...]:
    """Absent parts, which from_pretrained expects as None."""
    return tuple(name for name in facts.absent if name in ("text_encoder_3", "tokenizer_3"))
