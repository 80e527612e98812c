"""The section ``sampling``."""

from dataclasses import dataclass, field
from typing import Any

from hybridiff.errors import require

MAX_STEPS = 1000
MAX_GUIDANCE = 1000
MAX_SIZE = 16_384  # pixels
MAX_IMAGES = 1_000_000
MAX_TOKENS = 4096


@dataclass(frozen=True)
class SamplingConfig:
    """How images are sampled.

    Args:
        steps: sampling steps per image.
        guidance_scale: weight w of classifier-free guidance; off at 1 or below (of Z-Image and Krea 2 at 0).
        guidance_rescale: fraction of rescaled guidance, 0 to 1 (arXiv 2305.08891, section 3.4); SDXL-like pipelines only.
        height: height of an image in pixels; by default the model's own.
        width: width of an image in pixels; by default the model's own.
        images_per_prompt: images generated for each row.
        negative_prompt: negative prompt of rows that have none of their own; refused, as theirs are, where it changes nothing.
        max_sequence_length: tokens of the T5 text encoder, for pipelines that have the option; by default the pipeline's own.
        options: further keyword arguments of the pipeline's call, such as {true_cfg_scale: 4.0}.
        seed: seed of the job; each image's seed derives from it, its key and its index.
    """

    steps: int = 50
    guidance_scale: float = 5.0
    guidance_rescale: float = 0.0
    height: int | None = None
    width: int | None = None
    images_per_prompt: int = 1
    negative_prompt: str | None = None
    max_sequence_length: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        require(1 <= self.steps <= MAX_STEPS, "sampling.steps", self.steps, f"1 to {MAX_STEPS}")
        require(0 <= self.guidance_rescale <= 1, "sampling.guidance_rescale", self.guidance_rescale, "0 to 1")
        scale = self.guidance_scale
        require(0 <= scale <= MAX_GUIDANCE, "sampling.guidance_scale", scale, f"0 to {MAX_GUIDANCE}")
        unguided = "none with sampling.guidance_scale at 1 or below, where it changes nothing"
        require(scale > 1 or not self.guidance_rescale, "sampling.guidance_rescale", self.guidance_rescale, unguided)
        for name in ("height", "width"):
            size = getattr(self, name)
            require(size is None or 8 <= size <= MAX_SIZE, f"sampling.{name}", size, f"8 to {MAX_SIZE} pixels")
        images = self.images_per_prompt
        require(1 <= images <= MAX_IMAGES, "sampling.images_per_prompt", images, f"1 to {MAX_IMAGES}")
        length = self.max_sequence_length
        require(length is None or 1 <= length <= MAX_TOKENS, "sampling.max_sequence_length", length, f"1 to {MAX_TOKENS} tokens")
        require(0 <= self.seed < 2**63, "sampling.seed", self.seed, "0 to 2**63 - 1")
