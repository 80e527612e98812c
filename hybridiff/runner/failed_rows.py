"""Isolation of failing rows: they become errors in the corpus, and the others of their batch are generated without them."""

from collections.abc import Callable, Sequence

from hybridiff.corpus.shard import Result
from hybridiff.parallel.guard import BatchFailed
from hybridiff.prompts.rows import Sample

Generate = Callable[[tuple[Sample, ...]], list[Result]]


def generate_isolated(samples: Sequence[Sample], generate: Generate) -> list[Result]:
    """The results of all samples, in order; a batch that fails as a whole is generated in halves.

    Args:
        samples: samples of a batch.
        generate: generates a batch; raises ``BatchFailed``, or reports errors row by row in its results.
    """
    samples = tuple(samples)
    unreadable = {sample.key: failed_result(sample, sample.error) for sample in samples if sample.error is not None}
    if unreadable:
        readable = [sample for sample in samples if sample.error is None]
        generated = {result.sample.key: result for result in (generate_isolated(readable, generate) if readable else [])}
        return [unreadable.get(sample.key) or generated[sample.key] for sample in samples]
    try:
        results = generate(samples)
    except BatchFailed as failure:
        results = None
        reason = str(failure)
    if results is None:  # outside of the handler, whose exception holds tensors of the attempt
        return [failed_result(samples[0], reason)] if len(samples) == 1 else _halves(samples, generate)
    succeeded = [result.sample for result in results if result.error is None]
    if len(succeeded) == len(samples) or len(samples) == 1:
        return results
    if not succeeded:  # one of them may have affected the others
        return _halves(samples, generate)
    repeated = {result.sample.key: result for result in generate_isolated(succeeded, generate)}
    return [repeated.get(result.sample.key, result) for result in results]


def failed_result(sample: Sample, reason: str) -> Result:
    """The result of a sample that could not be generated."""
    return Result(sample, None, reason, False, 0, 0, 0, None, None, [])


def _halves(samples: tuple[Sample, ...], generate: Generate) -> list[Result]:
    middle = len(samples) // 2
    return generate_isolated(samples[:middle], generate) + generate_isolated(samples[middle:], generate)
