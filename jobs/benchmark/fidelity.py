"""How near every row's images are to the baseline's, and to converged ones.

One process emulates all ranks of a group, by the engine's reference, so that any number of ranks shares the captions.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from hybridiff.schedule import StepKind
from jobs.benchmark.config import FidelityConfig, RowConfig, SettingConfig
from jobs.benchmark.costs import LargestSegment, rank_cost
from jobs.benchmark.features import Distances, ShapesFeatures, frechet_distance, rendered_images
from jobs.benchmark.networks import Network
from jobs.benchmark.pipelines import RowPipeline
from jobs.benchmark.ranks import Ranks

PSNR_CAP = 100.0  # dB; identical images have an infinite PSNR
Batches = dict[int, Tensor]  # batch number to images (batch, 3, height, width) in [0, 1]
StepCounts = dict[int, Counter[StepKind]]  # batch number to steps of each kind


def psnr(images: Tensor, references: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB: (batch,), infinite where both are identical.

    Args:
        images: (batch, ...) uint8, or floating point in [0, 1].
        references: images of the same shape and type.
    """
    error = (_unit(images) - _unit(references)).square().flatten(1).mean(1)
    return -10 * error.log10()


def ssim(images: Tensor, references: Tensor) -> Tensor:
    """Structural similarity of each image, with the usual 11 x 11 Gaussian window of sigma 1.5: (batch,).

    Args:
        images: (batch, channels, height, width) uint8, or floating point in [0, 1].
        references: images of the same shape and type.
    """
    value = structural_similarity_index_measure(_unit(images), _unit(references), data_range=1.0, reduction="none")
    assert isinstance(value, Tensor)
    return value.reshape(len(images))


@dataclass(frozen=True)
class Similarity:
    """Similarity of a set of images to their references: median and worst image, PSNR in dB, at most 100."""

    psnr_median: float
    psnr_worst: float
    ssim_median: float
    ssim_worst: float


def summarise(psnrs: list[float], ssims: list[float]) -> Similarity:
    """Median and worst of the values of single images."""
    capped = torch.tensor(psnrs, dtype=torch.float64).clamp(max=PSNR_CAP)
    similar = torch.tensor(ssims, dtype=torch.float64)
    return Similarity(*(round(v.item(), 4) for t in (capped, similar) for v in (t.quantile(0.5), t.min())))


@dataclass(frozen=True)
class Fidelity:
    """A row's fidelity.

    Args:
        ideal: speed-up for this row's steps if only arithmetic took time.
        ideal_even: the same with equal segments.
        steps: number of steps of each kind, mean over the batches.
        baseline: similarity to plain guidance with the same seeds.
        converged: similarity to plain guidance at many times the steps; None unless requested.
        own: similarity to plain guidance with the row's own scheduler at the setting's steps; None where that is the baseline.
        shapes_clip: distances on the features of the shapes CLIP; None unless requested.
    """

    ideal: float
    ideal_even: float
    steps: dict[str, float]
    baseline: Similarity
    converged: Similarity | None
    own: Similarity | None
    shapes_clip: Distances | None = None


class ImageCache:
    """Generates each row's images once and keeps them.

    Args:
        network: network under test.
        setting: steps and guidance scale.
        config: captions and batches, which are spread over the ranks.
        ranks: all ranks.
    """

    def __init__(self, network: Network, setting: SettingConfig, config: FidelityConfig, ranks: Ranks) -> None:
        self.network = network
        self.setting = setting
        batches = [range(i, min(i + config.batch, config.captions)) for i in range(0, config.captions, config.batch)]
        self.batches = dict(list(enumerate(batches))[ranks.rank :: ranks.size])
        self._generated: dict[str, tuple[Batches, StepCounts]] = {}

    def generate(self, row: RowConfig) -> tuple[Batches, StepCounts]:
        """Images and steps of this rank's batches. Full steps are the same on every placement: they are run as a group of 1."""
        row = replace(row, name="", needs_steps=1, group_size=1 if row.schedule == "full" else row.group_size)
        if repr(row) not in self._generated:
            pipeline = RowPipeline(self.network, self.setting, row, None)
            images, counts = {}, {}
            for number, batch in self.batches.items():
                images[number] = pipeline.generate(batch, "pt").float().cpu()
                counts[number] = pipeline.step_counts
            pipeline.remove()
            self._generated[repr(row)] = images, counts
        return self._generated[repr(row)]


class RowDistances:
    """Distances of a row's images to the baseline's and to rendered ones; every rank calls it alike and gets the same.

    Args:
        baseline: this rank's images of the baseline.
        config: captions and their seed.
        ranks: all ranks.
    """

    def __init__(self, baseline: Batches, config: FidelityConfig, ranks: Ranks) -> None:
        self._features, self._ranks, self._baseline = ShapesFeatures(), ranks, baseline
        self._references = self._vectors(baseline), self._features.vectors(rendered_images(config.captions, config.seed))

    def __call__(self, images: Batches) -> Distances:
        """The distances of a row's images, of which each rank gives its own."""
        vectors = self._vectors(images)
        mine = {number: self._features.lpips(batch, self._baseline[number]) for number, batch in images.items()}
        lpips = [value for part in self._ranks.gather(mine) for values in part.values() for value in values]
        baseline, rendered = (round(frechet_distance(vectors, reference), 4) for reference in self._references)
        return Distances(baseline, rendered, round(sum(lpips) / len(lpips), 6))

    def _vectors(self, images: Batches) -> NDArray[np.float32]:
        """Features of all ranks' images, in order of their batches."""
        mine = {number: self._features.vectors(batch) for number, batch in images.items()}
        every = {number: vectors for part in self._ranks.gather(mine) for number, vectors in part.items()}
        return np.concatenate([every[number] for number in sorted(every)])


def compare_rows(
    rows: Sequence[RowConfig],
    config: FidelityConfig,
    setting: SettingConfig,
    network: Network,
    largest: LargestSegment | None,
    ranks: Ranks,
) -> Iterator[Fidelity]:
    """Compares all rows, the first of which is the baseline, one after the other; every rank calls it alike and gets the same."""
    cache = ImageCache(network, setting, config, ranks)
    baseline, counts = cache.generate(rows[0])
    base_steps = max(sum(count.values()) for count in _all_batches(counts, ranks).values())
    distances = RowDistances(baseline, config, ranks) if config.shapes_clip else None
    converged = cache.generate(replace(rows[0], steps_share=float(config.converged)))[0] if config.converged else None
    for row in rows:
        images, counts = cache.generate(row)
        own = RowConfig(scheduler=row.scheduler, scheduler_options=row.scheduler_options) if row.scheduler else None
        is_own = own is not None and row.schedule == "full" and row.steps_share == 1
        every = _all_batches(counts, ranks)
        yield Fidelity(
            ideal=_ideal(every, row, config, base_steps, largest or LargestSegment(), setting.branches),
            ideal_even=_ideal(every, row, config, base_steps, LargestSegment(), setting.branches),
            steps={kind.value: total / len(every) for kind, total in sum(every.values(), Counter[StepKind]()).items()},
            baseline=_compare(images, baseline, ranks),
            converged=_compare(images, converged, ranks) if converged is not None else None,
            own=_compare(images, cache.generate(own)[0], ranks) if own is not None and not is_own else None,
            shapes_clip=distances(images) if distances else None,
        )


def _all_batches(counts: StepCounts, ranks: Ranks) -> StepCounts:
    """All ranks' batches, in order."""
    return dict(sorted((number, count) for part in ranks.gather(counts) for number, count in part.items()))


def _ideal(
    counts: StepCounts, row: RowConfig, config: FidelityConfig, base_steps: int, largest: LargestSegment, branches: int
) -> float:
    cost = sum(rank_cost(count, row.group_size, config.batch, largest, branches) for count in counts.values())
    return branches * base_steps * len(counts) / cost


def _compare(images: Batches, references: Batches, ranks: Ranks) -> Similarity:
    mine: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad():
        for number, batch in images.items():
            mine[0].extend(psnr(batch, references[number]).tolist())
            mine[1].extend(ssim(batch, references[number]).tolist())
    every = ranks.gather(mine)
    return summarise([v for part in every for v in part[0]], [v for part in every for v in part[1]])


def _unit(images: Tensor) -> Tensor:
    return images.double() / 255 if images.dtype == torch.uint8 else images.double()
