"""How near every row's pictures are to the baseline's, and to converged ones.

One process plays all ranks of a group, by the engine's reference, so that any number of ranks shares the captions out.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hybridiff.schedule import StepKind
from jobs.benchmark.config import FidelityConfig, RowConfig, SettingConfig
from jobs.benchmark.contender import Contender
from jobs.benchmark.ideal import LargestSegment, rank_cost
from jobs.benchmark.metrics import Fidelity, psnr, ssim, summarise
from jobs.benchmark.subject import Subject
from jobs.benchmark.world import World

Pictures = dict[int, Tensor]  # batch number to (batch, 3, height, width) in [0, 1]


@dataclass(frozen=True)
class Likeness:
    """A row's fidelity.

    Args:
        ideal: Speed-up for this row's steps if only arithmetic took time.
        ideal_even: The same with equal segments.
        steps: Of each kind, mean over the batches.
        baseline: Against plain guidance with the same seeds.
        converged: Against plain guidance at many times the steps; None unless asked for.
        own: Against plain guidance with the row's own scheduler at the setting's steps; None where that is the baseline.
    """

    ideal: float
    ideal_even: float
    steps: dict[str, float]
    baseline: Fidelity
    converged: Fidelity | None
    own: Fidelity | None


class Gallery:
    """Draws each row once, and remembers what it drew."""

    def __init__(self, subject: Subject, setting: SettingConfig, config: FidelityConfig, world: World) -> None:
        self.subject = subject
        self.setting = setting
        batches = [range(i, min(i + config.batch, config.captions)) for i in range(0, config.captions, config.batch)]
        self.batches = dict(list(enumerate(batches))[world.rank :: world.size])
        self._drawn: dict[str, tuple[Pictures, dict[int, Counter[StepKind]]]] = {}

    def draw(self, row: RowConfig) -> tuple[Pictures, dict[int, Counter[StepKind]]]:
        """Pictures and steps of this rank's batches. Full steps are the same on every placement, so one rank draws them."""
        row = replace(row, name="", needs_steps=1, group_size=1 if row.schedule == "full" else row.group_size)
        if repr(row) not in self._drawn:
            contender = Contender(self.subject, self.setting, row, None)
            pictures, counts = {}, {}
            for number, images in self.batches.items():
                pictures[number] = contender.draw(images, "pt").float().cpu()
                counts[number] = contender.counts
            contender.remove()
            self._drawn[repr(row)] = pictures, counts
        return self._drawn[repr(row)]


def compare_rows(
    rows: Iterable[RowConfig],
    config: FidelityConfig,
    setting: SettingConfig,
    subject: Subject,
    largest: LargestSegment | None,
    world: World,
) -> list[Likeness]:
    """Compares all rows, the first of which is the baseline; every rank calls it alike and gets the same."""
    gallery = Gallery(subject, setting, config, world)
    rows = list(rows)
    baseline, counts = gallery.draw(rows[0])
    base_steps = max(sum(count.values()) for count in _everyone(counts, world).values())
    converged = gallery.draw(replace(rows[0], steps_share=float(config.converged)))[0] if config.converged else None
    results = []
    for row in rows:
        pictures, counts = gallery.draw(row)
        own = RowConfig(scheduler=row.scheduler, scheduler_options=row.scheduler_options) if row.scheduler else None
        itself = own is not None and row.schedule == "full" and row.steps_share == 1
        every = _everyone(counts, world)
        likeness = Likeness(
            ideal=_ideal(every, row, config, base_steps, largest or LargestSegment()),
            ideal_even=_ideal(every, row, config, base_steps, LargestSegment()),
            steps={kind.value: total / len(every) for kind, total in sum(every.values(), Counter[StepKind]()).items()},
            baseline=_compare(pictures, baseline, world),
            converged=_compare(pictures, converged, world) if converged is not None else None,
            own=_compare(pictures, gallery.draw(own)[0], world) if own is not None and not itself else None,
        )
        results.append(likeness)
    return results


def _everyone(counts: dict[int, Counter[StepKind]], world: World) -> dict[int, Counter[StepKind]]:
    """All ranks' batches, in order."""
    return dict(sorted((number, count) for part in world.gather(counts) for number, count in part.items()))


def _ideal(
    counts: dict[int, Counter[StepKind]], row: RowConfig, config: FidelityConfig, base_steps: int, largest: LargestSegment
) -> float:
    cost = sum(rank_cost(count, row.group_size, config.batch, largest) for count in counts.values())
    return 2 * base_steps * len(counts) / cost


def _compare(pictures: Pictures, references: Pictures, world: World) -> Fidelity:
    mine: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad():
        for number, batch in pictures.items():
            mine[0].extend(psnr(batch, references[number]).tolist())
            mine[1].extend(ssim(batch, references[number]).tolist())
    everyone = world.gather(mine)
    return summarise([v for part in everyone for v in part[0]], [v for part in everyone for v in part[1]])
