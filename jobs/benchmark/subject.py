"""The network under measurement, as a stock pipeline that can be drawn from."""

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn

from hybridiff.config import ModelConfig, SamplingConfig
from hybridiff.errors import UsageError, require
from hybridiff.models.facts import check_model, read_facts, scheduler_class
from hybridiff.models.inputs import denoiser_name, find_denoiser
from hybridiff.models.load import as_asked, load_pipeline
from hybridiff.schedule import SamplerReader, Schedule, make_schedule
from jobs.benchmark.config import RowConfig, SettingConfig
from jobs.benchmark.subject_config import SubjectConfig
from jobs.benchmark.untrained import random_embeddings, untrained_mmdit, untrained_pipeline, untrained_published, untrained_unet
from jobs.train_shapes.measure import held_out_scenes

PIXELS_PER_LATENT = 8  # of SDXL's and SD3's pipelines, with an autoencoder or without
FLOW_SCHEDULERS = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler")


@dataclass(frozen=True)
class Subject:
    """A pipeline and what it draws; image i has caption i and seed i, whatever the batch.

    Args:
        config: Where it comes from.
        pipeline: Stock, untouched; rows measure twins of it.
        captions: One for each image; None for an untrained network, which gets random embeddings.
    """

    config: SubjectConfig
    pipeline: Any
    captions: list[str] | None

    def arguments(self, images: Sequence[int], setting: SettingConfig, steps: int) -> dict[str, Any]:
        """What the pipeline is called with to draw some images."""
        options: dict[str, Any] = {
            "num_inference_steps": steps,
            "guidance_scale": setting.guidance_scale,
            "height": self.config.height,
            "width": self.config.width,
            "generator": [torch.Generator("cpu").manual_seed(image) for image in images],
            "return_dict": False,
            **as_asked(self.pipeline),
        }
        if self.config.max_sequence_length is not None:
            options["max_sequence_length"] = self.config.max_sequence_length
        if self.captions is None:
            assert self.config.tokens is not None
            return options | random_embeddings(self.pipeline, images, self.config.tokens)
        return options | {"prompt": [self.captions[image % len(self.captions)] for image in images]}


def load_subject(config: SubjectConfig, captions: int, seed: int, device: torch.device) -> Subject:
    """Loads or makes the network; ``captions`` are of scenes that the bundled models were not trained on.

    Raises:
        UsageError: it is not to be had, or does not take the options.
    """
    if config.model is None:
        pipeline = untrained_pipeline(_untrained(config, device))
        _check_size(config, find_denoiser(pipeline).config)
        return Subject(config, pipeline, None)
    model = ModelConfig(path=config.model, dtype=config.dtype)
    facts = read_facts(model)
    sampling = SamplingConfig(height=config.height, width=config.width, max_sequence_length=config.max_sequence_length)
    check_model(model, sampling, facts)
    scenes = held_out_scenes(captions, seed)
    return Subject(config, load_pipeline(model, facts, device), [scene.caption for scene in scenes])


def _check_size(config: SubjectConfig, denoiser: Any) -> None:
    """Refuses pictures that an untrained denoiser of this configuration cannot draw."""
    patch = denoiser.get("patch_size") or 1
    multiple, largest = PIXELS_PER_LATENT * patch, PIXELS_PER_LATENT * patch * (denoiser.get("pos_embed_max_size") or 0)
    for name in ("height", "width"):
        size = getattr(config, name)
        require(size is None or (size >= multiple and size % multiple == 0), f"subject.{name}", size, f"multiples of {multiple}")
        require(size is None or not largest or size <= largest, f"subject.{name}", size, f"at most {largest}")


def _untrained(config: SubjectConfig, device: torch.device) -> nn.Module:
    dtype = getattr(torch, config.dtype)
    assert config.untrained is not None
    if config.untrained not in ("unet", "mmdit"):
        return untrained_published(config.untrained, dtype, device)
    torch.manual_seed(0)  # every rank makes the same weights
    if config.untrained == "unet":
        assert config.channels is not None and config.transformer_layers is not None
        denoiser: nn.Module = untrained_unet(config.channels, config.transformer_layers)
    else:
        assert config.blocks is not None and config.heads is not None
        denoiser = untrained_mmdit(config.blocks, config.heads)
    return nn.Module.to(denoiser, device, dtype).eval()  # Diffusers' own warns of casting, which does no harm to random weights


def twin(pipeline: Any, row: RowConfig) -> Any:
    """A pipeline with modules of its own that share all weights, and a scheduler of its own, the row's if it names one.

    Raises:
        UsageError: the scheduler does not fit the pipeline, or does not take its options.
    """
    denoiser = find_denoiser(pipeline)
    shared = {id(tensor): tensor for tensor in chain(denoiser.parameters(), denoiser.buffers())}
    other = copy.copy(pipeline)
    setattr(other, denoiser_name(pipeline), copy.deepcopy(denoiser, shared))
    other.scheduler = _scheduler(pipeline, row)
    return other


def _scheduler(pipeline: Any, row: RowConfig) -> Any:
    kind = type(pipeline.scheduler) if row.scheduler is None else _scheduler_class(pipeline, row.scheduler, row.scheduler_options)
    known = sorted(name for name in inspect.signature(kind.__init__).parameters if name != "self")
    options = f"nothing; the options of {kind.__name__} are {', '.join(known)}"
    for option, given in row.scheduler_options.items():  # Diffusers leaves others out, with a warning alone
        require(option in known, f"rows.scheduler_options.{option}", given, options)
    try:
        return kind.from_config(pipeline.scheduler.config, **row.scheduler_options)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UsageError(f"rows.scheduler_options are {row.scheduler_options!r}: {error}") from error


def _scheduler_class(pipeline: Any, name: str, options: dict[str, Any]) -> Any:
    """A scheduler that is compatible with the pipeline's own, or is told to follow a flow as that does."""
    own = type(pipeline.scheduler).__name__
    names = sorted(kind.__name__ for kind in pipeline.scheduler.compatibles) or [own]
    flow = own.startswith("FlowMatch")
    if name not in names and not (flow and name in FLOW_SCHEDULERS and options.get("use_flow_sigmas")):
        others = f", or {' or '.join(FLOW_SCHEDULERS)} with use_flow_sigmas" if flow else ""
        raise UsageError(f"rows.scheduler is {name!r}; allowed: {', '.join(names)}{others}")
    return scheduler_class(name)


def check_rows(subject: Subject, setting: SettingConfig, rows: Sequence[RowConfig]) -> None:
    """Refuses rows that can't be drawn at a setting, before anything is.

    Raises:
        UsageError: as ``twin`` and ``build_schedule``; or a schedule does not fit its row's steps.
    """
    denoiser = type(find_denoiser(subject.pipeline)).__name__
    for row in rows:
        scheduler = twin(subject.pipeline, row).scheduler
        schedule = build_schedule(row)
        if row.schedule != "full":
            scheduler.set_timesteps(row.steps(setting))
            schedule.check(SamplerReader().read(scheduler, denoiser, setting.guidance_scale))


def build_schedule(row: RowConfig) -> Schedule:
    """A row's schedule.

    Raises:
        UsageError: it does not take an option or a value.
    """
    try:
        return make_schedule(row.schedule, **row.options)
    except TypeError as error:
        raise UsageError(f"rows.options of {row.schedule} are {row.options}: {error}") from error
