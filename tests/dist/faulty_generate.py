"""jobs/generate.py with a pipeline that fails on prompts which say so, such as "poison denoise 1": where, and on which rank.

encode   raises before the first denoiser call       oom    runs out of memory in the denoiser
denoise  raises in the denoiser                      late   the same, in a later step
sampler  raises between two denoiser calls           decode raises in the decoder
nan      latents are not finite                      black  the image is
wait     waits until the file HYBRIDIFF_TEST_GO is there; hold  until HYBRIDIFF_TEST_GO.hold is
store    takes SLOW_S seconds to be written          lose   can't be written, and its shard with it

HYBRIDIFF_TEST_FITS is the number of images that the memory of the second rank holds.
HYBRIDIFF_TEST_CURED names a fault that is none any more. HYBRIDIFF_TEST_RETRY_BUDGET_S is the retry budget of S3,
HYBRIDIFF_TEST_END_S how long a group at its end waits for others.
Each batch is printed and leaves the file HYBRIDIFF_TEST_GO.begun, each shard that was lost HYBRIDIFF_TEST_GO.lost.
"""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import torch

from hybridiff import cli
from hybridiff.corpus.background import BackgroundWriter
from hybridiff.corpus.shard import ShardWriter
from hybridiff.models.inputs import find_denoiser
from hybridiff.runner import module as lit_module
from hybridiff.runner import trainer
from hybridiff.runner.module import CorpusModule

EARLY, LATE = 2, 6  # denoiser calls
SLOW_S = 12.0


class Faults:
    """What happens to the batch under way."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.rank = 0
        self.calls = 0

    def hit(self, place: str) -> bool:
        cured = place == os.environ.get("HYBRIDIFF_TEST_CURED")
        return not cured and any(f"poison {place} {self.rank}" in prompt for prompt in self.prompts)

    def hit_any(self, place: str) -> bool:
        return any(f"poison {place}" in prompt for prompt in self.prompts)

    def too_many(self) -> bool:
        return self.rank == 1 and len(self.prompts) > int(os.environ.get("HYBRIDIFF_TEST_FITS", len(self.prompts)))

    def install(self) -> None:
        parallelize, sample, decode = CorpusModule.parallelize, CorpusModule.sample, lit_module.decode_latents
        write, lose = ShardWriter.write, BackgroundWriter._lose

        def faulty_parallelize(module: CorpusModule, group: Any) -> None:
            self.rank = group.rank
            denoiser = find_denoiser(module.pipeline)
            forward = denoiser.forward

            def faulty_forward(*args: Any, **kwargs: Any) -> Any:
                self.calls += 1
                if self.hit("denoise") or (self.hit("late") and self.calls > LATE):
                    raise RuntimeError("the denoiser is broken")
                if self.hit("oom") or (self.too_many() and self.calls > EARLY):
                    raise torch.OutOfMemoryError("tried to allocate 40 GiB")
                return forward(*args, **kwargs)

            denoiser.forward = faulty_forward
            self.break_sampler(module.pipeline.scheduler)
            parallelize(module, group)

        def faulty_sample(module: CorpusModule, samples: Any) -> torch.Tensor:
            self.prompts, self.calls = [one.prompt for one in samples], 0
            if self.hit("encode"):
                raise ValueError("the text encoder is broken")
            line = f"rank {self.rank} generates {' '.join(one.key for one in samples)}\n"
            os.write(1, line.encode())  # at once, as another rank prints too
            leave("begun")
            for place, ending in (("wait", ""), ("hold", ".hold")):
                while self.hit_any(place) and not Path(os.environ["HYBRIDIFF_TEST_GO"] + ending).exists():
                    time.sleep(0.05)
            latents = sample(module, samples)
            for i, one in enumerate(samples):
                if "poison nan" in one.prompt:
                    latents[i, 0, 0, 0] = float("nan")
                if "poison black" in one.prompt:
                    latents[i] = 12345.0
            return latents

        def faulty_decode(pipeline: Any, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            if self.hit("decode"):
                raise RuntimeError("the decoder is broken")
            images, finite = decode(pipeline, latents)
            return images * (latents != 12345.0).all(), finite

        def faulty_write(writer: ShardWriter, result: Any, *given: Any, **named: Any) -> None:
            time.sleep(SLOW_S if "poison store" in result.sample.prompt else 0)
            if "poison lose" in result.sample.prompt:
                raise OSError("the upload is gone") from UploadGone()
            write(writer, result, *given, **named)

        def told_lose(writer: BackgroundWriter, shard: int, error: Exception) -> None:
            lose(writer, shard, error)
            leave("lost")

        CorpusModule.parallelize = faulty_parallelize  # type: ignore[method-assign]
        CorpusModule.sample = faulty_sample  # type: ignore[method-assign]
        lit_module.decode_latents = faulty_decode
        ShardWriter.write = faulty_write  # type: ignore[method-assign]
        BackgroundWriter._lose = told_lose  # type: ignore[method-assign]

    def break_sampler(self, scheduler: Any) -> None:
        kind = type(scheduler)

        def faulty_step(one: Any, *given: Any, **named: Any) -> Any:
            if self.hit("sampler") and self.calls > EARLY:
                raise RuntimeError("the sampler is broken")
            return kind.step(one, *given, **named)

        scheduler.__class__ = type(kind.__name__, (kind,), {"step": faulty_step})  # also of its copies


def leave(ending: str) -> None:
    """Leaves a file for the test, if it looks at these."""
    if go := os.environ.get("HYBRIDIFF_TEST_GO"):
        Path(f"{go}.{ending}").touch()


class UploadGone(Exception):
    """What S3 answers where somebody has aborted an upload."""

    response: ClassVar[dict[str, Any]] = {"Error": {"Code": "NoSuchUpload"}}


def shorten() -> None:
    """What a test would else wait for too long."""
    if budget_s := os.environ.get("HYBRIDIFF_TEST_RETRY_BUDGET_S"):
        from hybridiff.storage import s3

        s3.RetryingS3.retry_budget_s = float(budget_s)
    if end_s := os.environ.get("HYBRIDIFF_TEST_END_S"):
        join_group = trainer.join_group

        def join(*given: Any) -> Any:  # the world has met by now
            trainer.WORLD_TIMEOUT = timedelta(seconds=float(end_s))
            return join_group(*given)

        trainer.join_group = join


if __name__ == "__main__":
    Faults().install()
    shorten()
    sys.exit(cli.main(["generate", *sys.argv[1:]]))
