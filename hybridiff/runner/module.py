"""The predict step: a batch of prompts to pictures."""

import gc
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from numpy.typing import NDArray
from torch import Tensor

from hybridiff.cluster.signals import StopSignals
from hybridiff.config import JobConfig
from hybridiff.corpus.shard import Result
from hybridiff.models.decode import decode_latents
from hybridiff.models.facts import ModelFacts
from hybridiff.models.guidance import tells_guidance
from hybridiff.models.inputs import find_denoiser
from hybridiff.models.load import as_asked, load_pipeline, shown, truncated_prompts
from hybridiff.parallel import Exchange, Group, Handle, parallelize
from hybridiff.prompts.rows import Sample
from hybridiff.runner.agreement import Agreement
from hybridiff.runner.batches import PromptBatch
from hybridiff.runner.failed_rows import DrawFailed, draw_around_failures
from hybridiff.runner.guard import Guard
from hybridiff.runner.results import results_of
from hybridiff.runner.stopping import Stopping, Vote
from hybridiff.schedule import make_schedule


class CorpusModule(LightningModule):
    """Runs the stock pipeline on the ranks of a group.

    The pipeline is no submodule: Lightning would broadcast its weights from rank 0, which every rank has loaded itself.

    Args:
        config: Of the job.
        facts: About its model.
        signals: That end it.
        lost: Whether a shard can't be written any more, as far as this rank knows.
    """

    def __init__(
        self,
        config: JobConfig,
        facts: ModelFacts,
        signals: StopSignals | None = None,
        lost: Callable[[int], bool] = lambda _: False,
    ) -> None:
        super().__init__()
        self.config = config
        self.facts = facts
        self.signals = signals or StopSignals()
        self.lost = lost
        self.pipeline: Any = None
        self.handle: Handle | None = None
        self.guard: Guard | None = None
        self.agreement: Agreement | None = None
        self.stopping: Stopping | None = None

    @torch.inference_mode()  # weights too are then without what only training needs, which costs time at each use of them
    def on_predict_start(self) -> None:
        """Loads the model on this rank's device and joins it to the group, if the group has anything to do."""
        if not self.trainer.datamodule.shards:  # type: ignore[attr-defined]
            return
        group: Group = self.trainer.strategy.group  # type: ignore[attr-defined]
        self.pipeline = load_pipeline(self.config.model, self.facts, self.device)
        self.parallelize(group)
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        output = self.config.output
        self.stopping = Stopping(self.signals, output.grace_s, output.max_failed_fraction, data.share, tries_all=data.tries_all)
        data.stopping = self.stopping
        gc.freeze()  # what stays is not looked through again and again, which takes some per cent of a small model's time

    def parallelize(self, group: Group) -> None:
        """Joins the pipeline to the group."""
        denoiser = find_denoiser(self.pipeline)
        self.agreement = Agreement(Exchange(group), self.device)
        self.guard = Guard(denoiser, self.agreement, alone=group.size == 1)  # the inner of the two that take over its calls
        schedule = make_schedule(self.config.parallel.schedule, **self.config.schedule.given())
        scale = None if tells_guidance(type(self.pipeline)) else self.config.sampling.guidance_scale
        self.handle = parallelize(self.pipeline, schedule, group.size, group=group, guidance_scale=scale)

    @torch.inference_mode()  # Lightning's loop takes no_grad with gloo, in which small operations take some per cent longer
    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[Result]:
        """The results of a batch, on every rank of the group alike; none, if the group stops here or leaves the shard."""
        assert self.stopping is not None and self.handle is not None
        mine = self.stopping.vote(batch.first, batch.left, self.lost(batch.shard))
        if not self.stopping.decide(Vote(self.handle.exchange.largest(mine)), batch.first):
            return []
        started = time.perf_counter()
        results = draw_around_failures(batch.samples, self.draw)
        failed = sum(result.error is not None for result in results)
        self.stopping.count(len(results), failed, time.perf_counter() - started)
        return results

    def draw(self, samples: tuple[Sample, ...]) -> list[Result]:
        """Draws a batch.

        Raises:
            DrawFailed: it failed as a whole, on one rank of the group or on all.
        """
        try:
            share, truncated = self._attempt(samples)
        except DrawFailed as failure:
            why: str | None = str(failure)
        else:
            why = None
        if why is not None:  # what an attempt that ran out of memory has left is not to be there in the next one
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            raise DrawFailed(why)
        pictures, finite = self.gather(share, len(samples))
        assert self.handle is not None
        return results_of(samples, pictures, finite, truncated, self.handle.trace)

    def _attempt(self, samples: tuple[Sample, ...]) -> tuple[tuple[Tensor, Tensor], list[bool]]:
        """This rank's share of the pictures, and whose prompts were cut off."""
        assert self.guard is not None
        with self.guard.drawing():
            share = self.decode_share(self.sample(samples))
            return share, truncated_prompts(self.pipeline, [s.prompt for s in samples], self.config.sampling)

    def sample(self, samples: tuple[Sample, ...]) -> Tensor:
        """Runs the stock pipeline: latents (batch, channels, height/scale, width/scale). Noise belongs to samples."""
        sampling = self.config.sampling
        options: dict[str, Any] = as_asked(self.pipeline)
        if sampling.guidance_rescale:
            options["guidance_rescale"] = sampling.guidance_rescale
        if sampling.max_sequence_length is not None:
            options["max_sequence_length"] = sampling.max_sequence_length
        if samples[0].negative_prompt is not None:
            options["negative_prompt"] = [shown(s.negative_prompt or "") for s in samples]
        latents: Tensor = self.pipeline(
            prompt=[shown(s.prompt) for s in samples],
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

    def decode_share(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """This rank's share of a batch, decoded one at a time to bound memory: pictures, and whether each is finite."""
        assert self.handle is not None
        mine = self.handle.exchange.share(len(latents), latents.device)
        decoded = [decode_latents(self.pipeline, latents[i : i + 1]) for i in mine.tolist()]
        pictures, finite = (torch.cat(part) for part in zip(*decoded, strict=True))
        return pictures, finite

    def gather(self, share: tuple[Tensor, Tensor], rows: int) -> tuple[NDArray[np.uint8], list[bool]]:
        """The pictures (rows, height, width, 3) of all ranks, and whether each is finite."""
        assert self.handle is not None
        pictures, finite = (self.handle.exchange.gather_rows(part, rows) for part in share)
        return pictures.cpu().numpy(), finite.bool().tolist()

    def teardown(self, stage: str) -> None:
        """Puts the pipeline back and lets it go."""
        if self.handle is not None:
            self.handle.remove()
        if self.guard is not None:
            self.guard.remove()
        self.pipeline = self.handle = self.guard = self.agreement = None
        gc.unfreeze()
