"""What became of a requested image: the one thing that sinks are given."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hybridiff.prompts.rows import Sample


@dataclass(frozen=True)
class Result:
    """The outcome of one sample.

    Args:
        sample: What was asked for.
        image: (height, width, 3) uint8; None if it failed.
        error: Why it failed, in one line; None if it did not.
        prompt_truncated: Whether the prompt was longer than the text encoder's window.
        steps_full: Sampling steps computed with both guidance branches.
        steps_half: Sampling steps computed with one guidance branch.
        steps_skipped: Sampling steps that reused an earlier prediction.
        tau1: The first sampling step that was not full; None if all were.
        tau2: The step after the last that was not full.
        discrepancy: One value per full step.
    """

    sample: Sample
    image: NDArray[np.uint8] | None
    error: str | None
    prompt_truncated: bool
    steps_full: int
    steps_half: int
    steps_skipped: int
    tau1: int | None
    tau2: int | None
    discrepancy: list[float]
