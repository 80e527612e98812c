"""The record of one generation: the kind of each step and why, and the denoising discrepancies."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridiff.errors import UsageError
from hybridiff.schedule.base import Decision, StepKind

if TYPE_CHECKING:
    from torch import Tensor

_COLORS = {StepKind.FULL: "C0", StepKind.HALF: "C1", StepKind.SKIP: "C7", StepKind.PIPELINED: "C2"}


@dataclass(repr=False)
class Trace:
    """Filled while a generation runs; tensors stay on their device until they are read.

    Args:
        schedule: name of the schedule.
        decisions: decision of each step so far.
        discrepancies: rel-MAE of each image, (batch,), by the step that computed both branches.
    """

    schedule: str
    decisions: list[Decision] = field(default_factory=list)
    discrepancies: dict[int, Tensor] = field(default_factory=dict)

    @property
    def kinds(self) -> list[StepKind]:
        """The kind of each step."""
        return [decision.kind for decision in self.decisions]

    @property
    def tau1(self) -> int | None:
        """The first step that was not full (the paper's tau1); None if all were."""
        return next((i for i, kind in enumerate(self.kinds) if kind is not StepKind.FULL), None)

    @property
    def tau2(self) -> int | None:
        """The step after the last that was not full (the paper's tau2 = tau1 + k); None if all were full."""
        reduced = [i for i, kind in enumerate(self.kinds) if kind is not StepKind.FULL]
        return reduced[-1] + 1 if reduced else None

    @property
    def tau1_reason(self) -> str | None:
        """The reason of the decision at tau1, such as "slope" or "cap"."""
        return None if self.tau1 is None else self.decisions[self.tau1].reason

    def count(self, kind: StepKind) -> int:
        """The number of steps of a kind."""
        return self.kinds.count(kind)

    @property
    def speedup(self) -> float:
        """Ideal speed-up over full steps on the same ranks; a half step costs 1/2 of a full step, a skip step 0."""
        cost = self.count(StepKind.FULL) + self.count(StepKind.PIPELINED) + self.count(StepKind.HALF) / 2
        return len(self.decisions) / cost if cost else 1.0

    def curves(self) -> list[list[tuple[int, float]]]:
        """Discrepancy curve of each image: pairs (step, rel-MAE) at full and pipelined steps; no curves without guidance."""
        import torch

        if not self.discrepancies:
            return []
        values: list[list[float]] = torch.stack(list(self.discrepancies.values()), dim=1).tolist()
        return [list(zip(self.discrepancies, curve, strict=True)) for curve in values]

    def plot(self, path: str | Path | None = None) -> Any:
        """Plots the discrepancy curves over the steps, on a background of their kinds.

        Args:
            path: image file to write, such as trace.png; None to write none.

        Returns:
            The matplotlib figure.

        Raises:
            UsageError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
            from matplotlib.patches import Patch
        except ImportError as error:
            raise UsageError(
                "trace.plot needs matplotlib, which is not installed; allowed: after pip install matplotlib"
            ) from error
        figure = Figure(figsize=(8, 3), layout="constrained")
        axes = figure.add_subplot()
        for step, kind in enumerate(self.kinds):
            axes.axvspan(step - 0.5, step + 0.5, color=_COLORS[kind], alpha=0.3, linewidth=0)
        for curve in self.curves():
            axes.plot(*zip(*curve, strict=True), color="black", linewidth=0.8, marker=".", markersize=3)
        axes.set(xlabel="step", ylabel="discrepancy (rel-MAE)", title=str(self), xlim=(-0.5, max(len(self.kinds), 1) - 0.5))
        axes.title.set_fontsize("small")
        present = [kind for kind in StepKind if kind in self.kinds]
        axes.legend(
            handles=[Patch(color=_COLORS[kind], alpha=0.3, label=f"{kind.value} ({self.count(kind)})") for kind in present]
        )
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    def compact(self) -> str:
        """The kinds as runs of letters with their lengths, such as "F5 S2 F1 H3 F1" (F full, H half, S skip, P pipelined)."""
        return " ".join(f"{kind.value[0].upper()}{len(list(run))}" for kind, run in groupby(self.kinds))

    def __str__(self) -> str:
        counts = ", ".join(f"{self.count(kind)} {kind.value}" for kind in StepKind if kind in self.kinds)
        if not counts:
            return f"{self.schedule}: no steps yet"
        return f"{self.schedule}: {len(self.decisions)} steps ({counts}), ideal speed-up {self.speedup:.2f}x over full steps"

    def __repr__(self) -> str:
        return f"Trace({self.schedule!r}, {self.compact()!r}, speedup={self.speedup:.2f})"
