"""Loading a stock pipeline: safetensors only, no remote code."""

import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from hybridiff.config import ModelConfig, SamplingConfig
from hybridiff.models.dtypes import resolve_dtype
from hybridiff.models.execution import place, quantized
from hybridiff.models.facts import ModelFacts
from hybridiff.models.model_files import check_files, loaded_files, model_parts, read_json
from hybridiff.models.schedulers import make_scheduler

LONGEST_PROMPT = 20_000  # characters; the longest window, 512 tokens of T5, ends after a few thousand


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
    """Log filter: drops what pipelines log of each prompt that they cut off; ``truncated_prompts`` reports which were cut."""
    return "input was truncated because" not in record.getMessage()


def shortened_prompt(prompt: str) -> str:
    """What the pipeline is given of a prompt: no more than any text encoder reads, as tokenizers take minutes for a megabyte."""
    return prompt[:LONGEST_PROMPT]


def truncated_prompts(pipeline: Any, prompts: list[str], sampling: SamplingConfig) -> list[bool]:
    """Which prompts are longer than a text encoder's window, beyond which Diffusers cuts them off."""
    truncated = [len(prompt) > LONGEST_PROMPT for prompt in prompts]
    prompts = [shortened_prompt(prompt) for prompt in prompts]
    option = _options(pipeline).get("max_sequence_length")
    limited = "tokenizer_3" if "tokenizer_3" in pipeline.components else "tokenizer"  # by that option, where there is one
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        tokenizer = getattr(pipeline, name, None)
        if tokenizer is not None:
            window = tokenizer.model_max_length
            if option is not None and name == limited:
                window = sampling.max_sequence_length or option.default
            lengths = [len(ids) for ids in tokenizer(prompts, truncation=False, verbose=False).input_ids]
            truncated = [cut or length > window for cut, length in zip(truncated, lengths, strict=True)]
    return truncated


def as_asked(pipeline: Any) -> dict[str, bool]:
    """Options that keep a pipeline from generating another size or prompt than asked, as PixArt's and Sana's do by default."""
    return {name: False for name in ("use_resolution_binning", "clean_caption") if name in _options(pipeline)}


def takes_option(pipeline: Any, name: str) -> bool:
    """Whether a pipeline's call has an argument of this name."""
    return name in _options(pipeline)


def _options(pipeline: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(type(pipeline).__call__).parameters


def _optional(facts: ModelFacts) -> tuple[str, ...]:
    """Absent parts, which from_pretrained expects as None."""
    return tuple(name for name in facts.absent if name in ("text_encoder_3", "tokenizer_3"))
