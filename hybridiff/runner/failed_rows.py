"""Batches of which some rows fail: those rows become errors, and the others are drawn again without them."""

from collections.abc import Callable, Sequence

from hybridiff.corpus.shard import Result
from hybridiff.prompts.rows import Sample

Draw = Callable[[tuple[Sample, ...]], list[Result]]


class DrawFailed(Exception):
    """A batch could not be drawn, on whichever rank of the group; all of its ranks raise it, with the same reason."""


def draw_around_failures(samples: Sequence[Sample], draw: Draw) -> list[Result]:
    """The results of all samples, in order; of a batch that fails as a whole, each half is drawn by itself.

    Args:
        draw: Draws a batch; fails with ``DrawFailed``, or row by row in its results.
    """
    samples = tuple(samples)
    faulty = {sample.key: failed(sample, sample.error) for sample in samples if sample.error is not None}
    if faulty:  # they could not be read from the table
        read = [sample for sample in samples if sample.error is None]
        drawn = {result.sample.key: result for result in (draw_around_failures(read, draw) if read else [])}
        return [faulty.get(sample.key) or drawn[sample.key] for sample in samples]
    try:
        results = draw(samples)
    except DrawFailed as failure:
        results = None
        why = str(failure)
    if results is None:  # outside the handler, which holds what the attempt has left
        return [failed(samples[0], why)] if len(samples) == 1 else _halves(samples, draw)
    sound = [result.sample for result in results if result.error is None]
    if len(sound) == len(samples) or len(samples) == 1:
        return results
    if not sound:  # one of them may have spoiled the others
        return _halves(samples, draw)
    again = {result.sample.key: result for result in draw_around_failures(sound, draw)}
    return [again.get(result.sample.key, result) for result in results]


def failed(sample: Sample, why: str) -> Result:
    """The result of a sample that could not be drawn."""
    return Result(sample, None, why, False, 0, 0, 0, None, None, [])


def _halves(samples: tuple[Sample, ...], draw: Draw) -> list[Result]:
    middle = len(samples) // 2
    return draw_around_failures(samples[:middle], draw) + draw_around_failures(samples[middle:], draw)
