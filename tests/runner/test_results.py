"""What becomes of a batch that was drawn."""

import numpy as np

from hybridiff.prompts.rows import Sample
from hybridiff.runner.results import results_of
from hybridiff.schedule import Decision, StepKind, Trace


def test_pipelined_steps_count_as_full_ones() -> None:
    kinds = [StepKind.FULL, StepKind.FULL, StepKind.PIPELINED, StepKind.SKIP, StepKind.PIPELINED, StepKind.HALF]
    trace = Trace("async", [Decision(kind, "test") for kind in kinds])
    sample = Sample("key", "a red circle", None, 0, {})
    (result,) = results_of((sample,), np.ones((1, 2, 2, 3), np.uint8), [True], [False], trace)
    assert (result.steps_full, result.steps_half, result.steps_skipped) == (4, 1, 1)
    assert (result.tau1, result.tau2) == (2, 6)
