"""The predict step: a batch of prompts to images, and what became of each row."""

import gc
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from numpy.typing import NDArray
from torch import Tensor

from hybridiff.cluster.signals import StopSignals
from hybridiff.config import JobConfig
from hybridiff.corpus.shard import Result
from hybridiff.errors import amount
from hybridiff.models.decode import decode_latents, decoding_rows, to_images
from hybridiff.models.facts import ModelFacts
from hybridiff.models.families import family_of
from hybridiff.models.guidance import asks_for_second_branch, reports_guidance
from hybridiff.models.load import as_asked, load_pipeline, takes_option
from hybridiff.models.prompt_windows import observed_windows, shortened_prompt
from hybridiff.parallel import Group, Handle, parallelize
from hybridiff.parallel.guard import BatchFailed, FailureGuard, OutOfMemory
from hybridiff.prompts.rows import Sample
from hybridiff.runner.data import PromptBatch
from hybridiff.runner.stopping import Stopping, Vote
from hybridiff.schedule import StepKind, Trace
from hybridiff.secrets import redact

_log = logging.getLogger(__name__)


class CorpusModule(LightningModule):
    """Runs the stock pipeline on the ranks of a group.

    The pipeline is no submodule of this one: Lightning would broadcast its weights from rank 0, and every rank has loaded them.

    Args:
        config: options of the job.
        facts: facts about its model.
        signals: signals that stop the run.
        lost: returns whether a shard, by its index, can no longer be written, as far as this rank knows.
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
        self.guard: FailureGuard | None = None
        self.stopping: Stopping | None = None
        self.memory = MemoryLimit()

    @torch.inference_mode()  # weights then carry no autograd state, which costs time at each use
    def on_predict_start(self) -> None:
        """Loads the model on this rank's device and parallelizes it, if the group has any shards."""
        if not self.trainer.datamodule.shards:  # type: ignore[attr-defined]
            return
        group: Group = self.trainer.strategy.group  # type: ignore[attr-defined]
        if group.leader and group.index == 0:
            _log.warning("loading %s (%s) ...", redact(self.config.model.path), self.config.model.dtype)
        self.pipeline = load_pipeline(self.config.model, self.facts, self.device)
        self.parallelize(group)
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        output = self.config.output
        self.stopping = Stopping(
            self.signals, output.grace_s, output.max_failed_fraction, data.share, tries_all=data.retry_failed
        )
        data.stopping = self.stopping
        gc.freeze()  # else collections traverse the model each time, some per cent of a small model's time

    def parallelize(self, group: Group) -> None:
        """Runs the pipeline on the group from now on, with a failure guard."""
        self.memory = MemoryLimit(quiet=not group.leader)
        scale = None if reports_guidance(type(self.pipeline)) else self.config.sampling.guidance_scale
        schedule = self.config.parallel.schedule
        self.handle = parallelize(self.pipeline, schedule, group.size, group=group, guidance_scale=scale)
        self.guard = FailureGuard(self.handle, self.device)

    @torch.inference_mode()  # Lightning uses no_grad with gloo, in which small operations take some per cent longer
    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[Result]:
        """The results of a batch, equal on every rank of the group; none if the group stops here or gives up the shard."""
        assert self.stopping is not None and self.handle is not None
        mine = self.stopping.vote(batch.first, batch.left, self.lost(batch.shard))
        if not self.stopping.decide(Vote(self.handle.exchange.all_reduce_max(mine)), batch.first):
            return []
        started = time.perf_counter()
        results = generate_isolated(batch.samples, self.generate, self.memory)
        failed = sum(result.error is not None for result in results)
        self.stopping.count(len(results), failed, time.perf_counter() - started)
        return results

    def generate(self, samples: tuple[Sample, ...]) -> list[Result]:
        """Generates a batch.

        Raises:
            BatchFailed: the batch failed as a whole, on any rank of the group.
        """
        failed: BatchFailed | None = None
        try:
            images, finite, truncated = self._attempt(samples)
        except BatchFailed as failure:
            failed = type(failure)(str(failure))  # without the traceback, whose frames hold tensors
        if failed is not None:  # frees what a failed attempt has left before the next one
            self.pipeline.maybe_free_model_hooks()
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            raise failed
        assert self.handle is not None
        return results_of(samples, images, finite, truncated, self.handle.trace)

    def _attempt(self, samples: tuple[Sample, ...]) -> tuple[NDArray[np.uint8], list[bool], list[bool]]:
        """The images as of ``gather``, whether each is finite, and whether each prompt was truncated."""
        assert self.guard is not None
        with self.guard.batch():
            own = family_of(type(self.pipeline)).decodes
            with observed_windows(self.pipeline, self.config.sampling.max_sequence_length) as windows:
                decoded = self.sample_decoded(samples) if own else self.decode_own_rows(self.sample(samples))
            if self.config.model.offload == "model":  # else the autoencoder stays on the device
                self.pipeline.maybe_free_model_hooks()
            truncated = windows.truncated([s.prompt for s in samples], [s.negative_prompt or "" for s in samples])
            return *self.gather(decoded, len(samples)), truncated

    def sample(self, samples: tuple[Sample, ...], output_type: str = "latent") -> Tensor:
        """Runs the stock pipeline, with noise from each sample's own seed.

        Returns:
            Latents, (batch, channels, height / scale, width / scale); or images, (batch, 3, height, width), if output_type is pt.
        """
        sampling = self.config.sampling
        options: dict[str, Any] = as_asked(self.pipeline) | sampling.options
        if takes_option(self.pipeline, "guidance_scale"):
            options["guidance_scale"] = sampling.guidance_scale
        if sampling.guidance_rescale:
            options["guidance_rescale"] = sampling.guidance_rescale
        if sampling.max_sequence_length is not None:
            options["max_sequence_length"] = sampling.max_sequence_length
        negative = samples[0].negative_prompt is not None or asks_for_second_branch(sampling)
        if negative and takes_option(self.pipeline, "negative_prompt"):
            options["negative_prompt"] = [shortened_prompt(s.negative_prompt or "") for s in samples]
        options |= {name: size for name in ("height", "width") if (size := getattr(sampling, name)) is not None}
        output: Tensor = self.pipeline(
            prompt=[shortened_prompt(s.prompt) for s in samples],
            num_inference_steps=sampling.steps,
            generator=[torch.Generator("cpu").manual_seed(s.seed) for s in samples],
            output_type=output_type,
            return_dict=False,
            **options,
        )[0]
        return output

    def sample_decoded(self, samples: tuple[Sample, ...]) -> tuple[Tensor, Tensor]:
        """Runs the stock pipeline to its end, in which its autoencoder decodes this rank's rows, one by one to save memory."""
        assert self.handle is not None
        mine: list[int] = self.handle.exchange.own_rows(len(samples), self.device).tolist()
        with decoding_rows(self.pipeline.vae, mine) as finite:
            images = to_images(self.sample(samples, output_type="pt")[mine])
        return images, torch.tensor([finite[row] for row in mine], dtype=torch.uint8, device=images.device)

    def decode_own_rows(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Decodes this rank's rows of a batch, one at a time to bound memory; see ``decode_latents``."""
        assert self.handle is not None
        mine = self.handle.exchange.own_rows(len(latents), latents.device)
        decoded = [decode_latents(self.pipeline, latents[i : i + 1]) for i in mine.tolist()]
        images, finite = (torch.cat(tensors) for tensors in zip(*decoded, strict=True))
        return images, finite

    def gather(self, decoded: tuple[Tensor, Tensor], rows: int) -> tuple[NDArray[np.uint8], list[bool]]:
        """The images (rows, height, width, 3) of all ranks, and whether each is finite."""
        assert self.handle is not None
        images, finite = (self.handle.exchange.gather_rows(tensor, rows) for tensor in decoded)
        return images.cpu().numpy(), finite.bool().tolist()

    def teardown(self, stage: str) -> None:
        """Restores and releases the pipeline."""
        if self.handle is not None:
            self.handle.remove()
        self.pipeline = self.handle = self.guard = None
        gc.unfreeze()


Generate = Callable[[tuple[Sample, ...]], list[Result]]


@dataclass
class MemoryLimit:
    """The largest batch that is generated at once; equal on all ranks of a group.

    Args:
        quiet: whether nothing is logged, as another rank of the group does.

    Attributes:
        images: number of images; None until a batch has run out of memory.
    """

    quiet: bool = False
    images: int | None = None

    def exceeded_by(self, samples: Sequence[Sample]) -> bool:
        """Whether so many samples are known to be too many."""
        return self.images is not None and len(samples) > self.images

    def lower(self, images: int) -> None:
        """Called when a batch that ran out of memory has succeeded in parts.

        Args:
            images: size of the largest part.
        """
        if self.images is not None and self.images <= images:
            return
        self.images = images
        if not self.quiet:
            _log.warning(
                "batches of %s fit in memory and are used from now on; larger ones run out of it", amount(images, "image")
            )


def generate_isolated(samples: Sequence[Sample], generate: Generate, limit: MemoryLimit) -> list[Result]:
    """The results of all samples, in order; a batch that fails as a whole is generated in halves.

    Args:
        samples: samples of a batch.
        generate: generates a batch; raises ``BatchFailed``, or reports errors row by row in its results.
        limit: largest batch to generate at once; lowered where a batch runs out of memory and its halves do not.
    """
    samples = tuple(samples)
    unreadable = {sample.key: failed_result(sample, sample.error) for sample in samples if sample.error is not None}
    if unreadable:
        readable = [sample for sample in samples if sample.error is None]
        generated = {result.sample.key: result for result in (generate_isolated(readable, generate, limit) if readable else [])}
        return [unreadable.get(sample.key) or generated[sample.key] for sample in samples]
    if limit.exceeded_by(samples):
        return _halves(samples, generate, limit)
    results: list[Result] | None = None
    reason, too_large = "", False
    try:
        results = generate(samples)
    except BatchFailed as failure:
        reason, too_large = str(failure), isinstance(failure, OutOfMemory)
    if results is None:  # outside of the handler, whose exception holds tensors of the attempt
        if len(samples) == 1:
            return [failed_result(samples[0], reason)]
        results = _halves(samples, generate, limit)
        if too_large and all(result.error is None for result in results):  # else a single row may be to blame
            limit.lower(len(samples) - len(samples) // 2)
        return results
    succeeded = [result.sample for result in results if result.error is None]
    if len(succeeded) == len(samples) or len(samples) == 1:
        return results
    if not succeeded:  # one of them may have affected the others
        return _halves(samples, generate, limit)
    repeated = {result.sample.key: result for result in generate_isolated(succeeded, generate, limit)}
    return [repeated.get(result.sample.key, result) for result in results]


def failed_result(sample: Sample, reason: str) -> Result:
    """The result of a sample that could not be generated."""
    return Result(sample, None, reason, False, 0, 0, 0, None, None, [])


def _halves(samples: tuple[Sample, ...], generate: Generate, limit: MemoryLimit) -> list[Result]:
    middle = len(samples) // 2
    return generate_isolated(samples[:middle], generate, limit) + generate_isolated(samples[middle:], generate, limit)


def results_of(
    samples: tuple[Sample, ...], images: NDArray[np.uint8], finite: list[bool], truncated: list[bool], trace: Trace
) -> list[Result]:
    """A result for each sample, in order.

    Args:
        samples: the requested images of the batch.
        images: pixels, (samples, height, width, 3) uint8.
        finite: whether latents and image of each sample are finite.
        truncated: whether each prompt exceeded a text encoder's window.
        trace: trace of the sampling run that generated the batch.
    """
    curves: list[list[tuple[int, float]]] = trace.curves() or [[] for _ in samples]
    errors = [_fault(image, sound) for image, sound in zip(images, finite, strict=True)]
    return [
        Result(
            sample=sample,
            image=images[i] if errors[i] is None else None,
            error=errors[i],
            prompt_truncated=truncated[i],
            steps_full=trace.count(StepKind.FULL) + trace.count(StepKind.PIPELINED),
            steps_half=trace.count(StepKind.HALF),
            steps_skipped=trace.count(StepKind.SKIP),
            tau1=trace.tau1,
            tau2=trace.tau2,
            discrepancy=[float(value) for _, value in curves[i]],
        )
        for i, sample in enumerate(samples)
    ]


def _fault(image: NDArray[np.uint8], finite: bool) -> str | None:
    """What is wrong with a image; None if nothing is."""
    if not finite:
        return "the latents or the decoded image are not finite"
    return None if image.any() else "the image is black"
