"""What is said of a run whose schedule or group gains nothing, once."""

import logging

from hybridiff.parallel.call import DenoiserCall
from hybridiff.parallel.generation import Generation, Style
from hybridiff.parallel.placement import Placement
from hybridiff.schedule import Schedule, StepKind

_LOG = logging.getLogger(__name__)
FEW_STEPS = 8  # runs of so few steps may leave nothing to skip


class Notices:
    """Warnings of one pipeline's runs, each logged once and by one rank.

    Args:
        pipeline: class name of the pipeline.
        schedule: schedule of all runs.
        placement: placement of all runs.
    """

    def __init__(self, pipeline: str, schedule: Schedule, placement: Placement) -> None:
        self._pipeline = pipeline
        self._schedule = schedule
        self._placement = placement
        self._said = set[str]()

    def single(self, call: DenoiserCall, segments: bool) -> None:
        """Says what a run without guidance gains from the schedule and from the group.

        Args:
            call: denoiser call.
            segments: whether half and pipelined steps run segments of the network.
        """
        ranks, kinds = self._placement.group_size, self._schedule.kinds
        if ranks > 1 and call.holds_tensors is not None:
            self._say(f"the denoiser is called with a {call.holds_tensors}, so {ranks} ranks are no faster than one")
        elif ranks > 1 and call.rows == 1 and not segments:
            self._say(
                f"guidance is off and the batch has one image, so {ranks} ranks are no faster than one; the images of larger "
                "batches are shared by the ranks"
            )
        if kinds != {StepKind.FULL} and StepKind.SKIP not in kinds and not segments:
            self._say(f"guidance is off, so all steps are full and schedule {self._schedule.name} has no effect")

    def finished(self, run: Generation) -> None:
        """Says why all steps of a run were full."""
        phase = run.phase
        if phase is None:
            return
        few = run.calls <= FEW_STEPS and run.trace.count(StepKind.FULL) == run.calls
        if phase.style in (Style.SINGLE, Style.LEARNING) and few and StepKind.SKIP in self._schedule.kinds:
            self._say(f"{run.calls} steps are too few for schedule {self._schedule.name} to skip any")
        if phase.calls > 1:
            self._say(f"{self._pipeline} calls its denoiser {phase.calls} times in a step, so all are full")

    def _say(self, text: str) -> None:
        if self._placement.is_log_rank and text not in self._said:
            _LOG.warning(text)
        self._said.add(text)
