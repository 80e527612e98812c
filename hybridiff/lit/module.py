"""The predict step: a batch of prompts to pictures."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from numpy.typing import NDArray
from torch import Tensor

from hybridiff.config import JobConfig
from hybridiff.data.rows import Sample
from hybridiff.lit.datamodule import PromptBatch
from hybridiff.models.decode import decode_latents
from hybridiff.models.facts import ModelFacts
from hybridiff.models.load import load_pipeline, truncated_prompts
from hybridiff.parallel import Group, Handle, parallelize
from hybridiff.schedule import StepKind, make_schedule
from hybridiff.sinks.results import Result


class CorpusModule(LightningModule):
    """Runs the stock pipeline on the ranks of a group.

    The pipeline is no submodule: Lightning would broadcast its weights from rank 0, which every rank has loaded itself.
    """

    def __init__(self, config: JobConfig, facts: ModelFacts) -> None:
        super().__init__()
        self.config = config
        self.facts = facts
        self.pipeline: Any = None
        self.handle: Handle | None = None

    def on_predict_start(self) -> None:
        """Loads the model on this rank's device and joins it to the group, if the group has anything to do."""
        if not self.trainer.datamodule.shards:  # type: ignore[attr-defined]
            return
        group: Group = self.trainer.strategy.group  # type: ignore[attr-defined]
        self.pipeline = load_pipeline(self.config.model, self.facts, self.device)
        schedule = make_schedule(self.config.parallel.schedule, **self.config.schedule.given())
        self.handle = parallelize(self.pipeline, schedule, group.size, group=group)

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[Result]:
        """The results of a batch, on every rank of the group alike."""
        assert self.handle is not None
        latents = self.sample(batch.samples)
        pictures, finite = self.decode(latents)
        trace = self.handle.trace
        curves = trace.curves() or [[] for _ in batch.samples]
        truncated = truncated_prompts(self.pipeline, [s.prompt for s in batch.samples], self.config.sampling)
        return [
            Result(
                sample=sample,
                image=pictures[i] if finite[i] else None,
                error=None if finite[i] else "the latents or the decoded picture are not finite",
                prompt_truncated=truncated[i],
                steps_full=trace.count(StepKind.FULL) + trace.count(StepKind.PIPELINED),
                steps_half=trace.count(StepKind.HALF),
                steps_skipped=trace.count(StepKind.SKIP),
                tau1=trace.tau1,
                tau2=trace.tau2,
                discrepancy=curves[i],
            )
            for i, sample in enumerate(batch.samples)
        ]

    def sample(self, samples: tuple[Sample, ...]) -> Tensor:
        """Runs the stock pipeline: latents (batch, channels, height/scale, width/scale). Noise belongs to samples."""
        sampling = self.config.sampling
        options: dict[str, Any] = {}
        if sampling.guidance_rescale:
            options["guidance_rescale"] = sampling.guidance_rescale
        if sampling.max_sequence_length is not None:
            options["max_sequence_length"] = sampling.max_sequence_length
        negative = [s.negative_prompt for s in samples]
        latents: Tensor = self.pipeline(
            prompt=[s.prompt for s in samples],
            negative_prompt=None if negative[0] is None else negative,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance_scale,
            height=sampling.height,
            width=sampling.width,
            generator=[torch.Generator("cpu").manual_seed(s.seed) for s in samples],
            output_type="latent",
            return_dict=False,
            **options,
        )[0]
        return latents

    def decode(self, latents: Tensor) -> tuple[NDArray[np.uint8], list[bool]]:
        """Pictures (batch, height, width, 3), and whether each is sound.

        Each rank of the group decodes its share, one at a time to bound memory.
        """
        assert self.handle is not None
        exchange = self.handle.exchange
        mine = exchange.share(len(latents), latents.device)
        decoded = [decode_latents(self.pipeline, latents[i : i + 1]) for i in mine.tolist()]
        pictures, finite = (exchange.gather_rows(torch.cat(part), len(latents)) for part in zip(*decoded, strict=True))
        return pictures.cpu().numpy(), finite.bool().tolist()

    def teardown(self, stage: str) -> None:
        """Puts the pipeline back and lets it go."""
        if self.handle is not None:
            self.handle.remove()
        self.pipeline = self.handle = None
