"""jobs/generate.py with a pipeline that fails on prompts which say so, such as "poison denoise 1": where, and on which rank.

encode   raises before the first denoiser call       oom    runs out of memory in the denoiser
denoise  raises in the denoiser                      late   the same, in a later step
decode   raises in the decoder                       nan    latents are not finite; black  the picture is
wait     waits until the file HYBRIDIFF_TEST_GO is there      store  takes SLOW_S seconds to be written
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from hybridiff.lit import module as lit_module
from hybridiff.lit.module import CorpusModule
from hybridiff.models.inputs import find_denoiser
from hybridiff.sinks.shard import ShardWriter
from jobs import generate

LATE = 6  # denoiser calls
SLOW_S = 12.0


class Faults:
    """What happens to the batch under way."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.rank = 0
        self.calls = 0

    def hit(self, place: str) -> bool:
        return any(f"poison {place} {self.rank}" in prompt for prompt in self.prompts)

    def hit_any(self, place: str) -> bool:
        return any(f"poison {place}" in prompt for prompt in self.prompts)

    def install(self) -> None:
        parallelize, sample, decode = CorpusModule.parallelize, CorpusModule.sample, lit_module.decode_latents
        write = ShardWriter.write

        def faulty_parallelize(module: CorpusModule, group: Any) -> None:
            self.rank = group.rank
            denoiser = find_denoiser(module.pipeline)
            forward = denoiser.forward

            def faulty_forward(*args: Any, **kwargs: Any) -> Any:
                self.calls += 1
                if self.hit("denoise") or (self.hit("late") and self.calls > LATE):
                    raise RuntimeError("the denoiser is broken")
                if self.hit("oom"):
                    raise torch.OutOfMemoryError("tried to allocate 40 GiB")
                return forward(*args, **kwargs)

            denoiser.forward = faulty_forward
            parallelize(module, group)

        def faulty_sample(module: CorpusModule, samples: Any) -> torch.Tensor:
            self.prompts, self.calls = [one.prompt for one in samples], 0
            if self.hit("encode"):
                raise ValueError("the text encoder is broken")
            while self.hit_any("wait") and not Path(os.environ["HYBRIDIFF_TEST_GO"]).exists():
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
            pictures, finite = decode(pipeline, latents)
            return pictures * (latents != 12345.0).all(), finite

        def faulty_write(writer: ShardWriter, result: Any, *given: Any, **named: Any) -> None:
            time.sleep(SLOW_S if "poison store" in result.sample.prompt else 0)
            write(writer, result, *given, **named)

        CorpusModule.parallelize = faulty_parallelize  # type: ignore[method-assign]
        CorpusModule.sample = faulty_sample  # type: ignore[method-assign]
        lit_module.decode_latents = faulty_decode
        ShardWriter.write = faulty_write  # type: ignore[method-assign]


if __name__ == "__main__":
    Faults().install()
    sys.exit(generate.main())
