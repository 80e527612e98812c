"""What became of the samples of a batch that was drawn."""

import numpy as np
from numpy.typing import NDArray

from hybridiff.corpus.results import Result
from hybridiff.prompts.rows import Sample
from hybridiff.schedule import StepKind, Trace


def results_of(
    samples: tuple[Sample, ...], pictures: NDArray[np.uint8], finite: list[bool], truncated: list[bool], trace: Trace
) -> list[Result]:
    """A result for each sample, in order.

    Args:
        pictures: (samples, height, width, 3).
        finite: Whether the latents and the picture of each sample are.
        truncated: Whether the prompt of each was cut off.
        trace: Of the run that drew them.
    """
    curves: list[list[tuple[int, float]]] = trace.curves() or [[] for _ in samples]
    errors = [_fault(picture, sound) for picture, sound in zip(pictures, finite, strict=True)]
    return [
        Result(
            sample=sample,
            image=pictures[i] if errors[i] is None else None,
            error=errors[i],
            prompt_truncated=truncated[i],
            steps_full=trace.count(StepKind.FULL) + trace.count(StepKind.PIPELINED),
            steps_half=trace.count(StepKind.HALF),
            steps_skipped=trace.count(StepKind.SKIP),
            tau1=trace.tau1,
            tau2=trace.tau2,
            discrepancy=[value for _, value in curves[i]],
        )
        for i, sample in enumerate(samples)
    ]


def _fault(picture: NDArray[np.uint8], finite: bool) -> str | None:
    """What is wrong with a picture; None if nothing is."""
    if not finite:
        return "the latents or the decoded picture are not finite"
    return None if picture.any() else "the picture is black"
