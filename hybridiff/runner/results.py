"""What became of the samples of a batch that was drawn."""

import numpy as np
from numpy.typing import NDArray

from hybridiff.corpus.shard import Result
from hybridiff.prompts.rows import Sample
from hybridiff.schedule import StepKind, Trace


def results_of(
    samples: tuple[Sample, ...], images: NDArray[np.uint8], finite: list[bool], truncated: list[bool], trace: Trace
) -> list[Result]:
    """A result for each sample, in order.

    Args:
        samples: the requested images of the batch.
        images: pixels, (samples, height, width, 3) uint8.
        finite: whether latents and image of each sample are finite.
        truncated: whether each prompt exceeded the text encoder's window.
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
