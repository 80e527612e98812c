"""The bytes that a pair sends for one image: arithmetic over the cut and the steps, no network run."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from hybridiff.errors import require_choice
from hybridiff.models.cuts import Cut, choose_cut
from hybridiff.schedule import StepKind
from jobs.benchmark import published
from jobs.benchmark.config import BytesConfig
from jobs.benchmark.ideal import read_pattern


def pair_bytes(cut: Cut, prediction: int, kinds: Sequence[StepKind], images: int, element_size: int) -> int:
    """Bytes sent by both ranks of a pair together, checksums apart.

    Full steps send each branch's prediction once. Half steps send what crosses the cut, and the prediction from the segment that
    makes it; the last one of a run only the prediction. Before the first of a run, rank 0, which ran the unconditional
    branch, is sent what its segment reads.

    Args:
        cut: In two segments.
        prediction: Elements of one branch's prediction, for one image.
        kinds: Of each step: full, half and skip ones, as ``read_pattern`` tells.
        images: In the batch.
        element_size: Bytes of one element.
    """
    assert cut.segments == 2 and StepKind.PIPELINED not in kinds
    computed = [kind for kind in kinds if kind is not StepKind.SKIP]
    full, half = computed.count(StepKind.FULL), computed.count(StepKind.HALF)
    runs = sum(pair == (StepKind.FULL, StepKind.HALF) for pair in pairwise(computed))
    elements = 2 * full * prediction + half * prediction
    elements += (half - runs) * (cut.reads(0) + cut.reads(1)) + runs * cut.reads(0)
    return elements * images * element_size


def published_bytes(config: BytesConfig) -> dict[str, int]:
    """Bytes per image of a pair on a published denoiser at batch 1, by pattern of steps.

    Raises:
        UsageError: the network or a pattern is unknown.
    """
    require_choice("bytes.network", config.network, published.NAMES)
    dtype = getattr(torch, config.dtype)
    denoiser: Any = published.build(config.network)
    args, kwargs = published.inputs(config.network, config.height, config.width, 1, dtype)
    cut = choose_cut(denoiser, args, kwargs, 2)
    latents = args[0] if args else kwargs["hidden_states"]
    prediction = latents[0, 0].numel() * int(denoiser.config["out_channels"])
    return {pattern: pair_bytes(cut, prediction, read_pattern(pattern), 1, dtype.itemsize) for pattern in config.patterns}
