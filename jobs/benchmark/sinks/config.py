"""What ``jobs/benchmark --sinks`` measures; no torch."""

from dataclasses import dataclass, field

from hybridiff.config import GROUP_SIZES, SCHEDULES
from hybridiff.errors import require, require_choice
from hybridiff.images import IMAGE_FORMATS

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class SinksConfig:
    """A comparison of the sinks with what they cannot be faster than. By default it takes a minute or two on two cores.

    Args:
        urls: Directories, local or remote, below which each measurement makes a folder of its own and removes it at the end; by
            default a temporary folder.
        formats: Of the images: png, jpg, webp.
        quality: Of jpg and webp.
        rounds: That count; one more before them is discarded. A round runs everything that is compared once.
        model: Of the whole job: a bundled model, a local directory or a hub id.
        dtype: Of the model's arithmetic.
        device: cpu or cuda.
        steps: Sampling steps of the whole job.
        schedule: Of the whole job.
        group_size: Ranks that make one image together.
        height: Of an image of the whole job in pixels; by default the model's own.
        width: Likewise.
        batch: Images that a group draws at once.
        images_per_prompt: The whole job draws the 32 demo prompts so often; 0 leaves it out.
        photograph: Height and width, in pixels, of the images like photographs that are written without drawing any.
        megabytes: Of their files, in each round; 0 leaves this part out.
        verified_megabytes: Of the corpus that ``verify`` reads; 0 leaves this part out.
    """

    urls: list[str] = field(default_factory=list)
    formats: list[str] = field(default_factory=lambda: ["png", "jpg"])
    quality: int = 95
    rounds: int = 3
    model: str = "shapes-xl"
    dtype: str = "float32"
    device: str = "cpu"
    steps: int = 20
    schedule: str = "adaptive"
    group_size: int = 1
    height: int | None = None
    width: int | None = None
    batch: int = 4
    images_per_prompt: int = 1
    photograph: int = 1024
    megabytes: float = 32.0
    verified_megabytes: float = 256.0

    def __post_init__(self) -> None:
        require(len(self.formats) > 0, "sinks.formats", self.formats, "one or more")
        for image_format in self.formats:
            require_choice("sinks.formats", image_format, IMAGE_FORMATS)
        require_choice("sinks.device", self.device, DEVICES)
        require_choice("sinks.schedule", self.schedule, SCHEDULES)
        require_choice("sinks.group_size", self.group_size, GROUP_SIZES)
        for name in ("rounds", "steps", "batch"):
            require(getattr(self, name) >= 1, f"sinks.{name}", getattr(self, name), "1 or more")
        require(1 <= self.quality <= 101, "sinks.quality", self.quality, "1 to 100, or 101 for lossless webp")
        require(self.photograph >= 16, "sinks.photograph", self.photograph, "16 pixels or more")
        for name in ("images_per_prompt", "megabytes", "verified_megabytes"):
            require(getattr(self, name) >= 0, f"sinks.{name}", getattr(self, name), "0 or more")
        parts = (self.images_per_prompt, self.megabytes, self.verified_megabytes)
        require(any(parts), "sinks.megabytes", 0, "more than 0, or another part than this: there is nothing to measure")
