"""The job's configuration: frozen dataclasses that check themselves.

Every message names what was given and what is allowed. Nothing here imports torch.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

IMAGE_FORMATS = ("png", "jpg", "webp")
BYTES_PER_PIXEL = {  # of photographs of 1024 x 1024 pixels, by quality; straight lines in between
    "png": ((1, 1.5),),
    "jpg": ((1, 0.02), (50, 0.06), (75, 0.1), (89, 0.16), (90, 0.27), (95, 0.4), (98, 0.85), (100, 1.45)),
    "webp": ((1, 0.01), (50, 0.04), (75, 0.06), (90, 0.13), (95, 0.25), (100, 0.37), (101, 1.4)),
}
SIDECARS = ("json", "none")
SHARD_SIZE = 1000  # images
DTYPES = ("float32", "bfloat16", "float16")
SCHEDULES = ("full", "paper", "refresh", "adaptive", "async")
GROUP_SIZES = (1, 2, 4)
ASSIGNMENTS = ("static", "claims")
LONGEST_LEASE_S = 1200.0  # a group waits for as long where all that is left is others'


class UsageError(ValueError):
    """A mistake in what the user gave: reported in one line on every rank, exit code 2."""


def require(condition: bool, name: str, given: object, allowed: str) -> None:
    """Raises ``UsageError`` with the option's name, what was given and what is allowed, unless ``condition`` holds."""
    if not condition:
        raise UsageError(f"{name} is {given!r}; allowed: {allowed}")


def require_choice(name: str, given: object, choices: Sequence[object]) -> None:
    """Raises ``UsageError`` unless ``given`` is one of ``choices``."""
    require(given in choices, name, given, ", ".join(map(str, choices)))


def require_whole(name: str, given: object) -> None:
    """Raises ``UsageError`` unless ``given`` is an integer."""
    require(isinstance(given, int) and not isinstance(given, bool), name, given, "a whole number")


@dataclass(frozen=True)
class ModelConfig:
    """Which model draws.

    Args:
        path: A bundled model (shapes-xl, shapes-sd3), a local directory in Diffusers' format, or a hub id.
        revision: Branch, tag or commit of a hub model.
        variant: Weight files' variant, such as fp16.
        dtype: Arithmetic of the model: float32, bfloat16 or float16.
        scheduler: Class name of a Diffusers scheduler to use instead of the model's own, such as EulerDiscreteScheduler.
        lora: LoRA weights to apply, as safetensors: local files or directories, or owner/name/file.safetensors of the hub (the
            file may be left out if it is pytorch_lora_weights.safetensors); all at scale 1.
    """

    path: str = "shapes-xl"
    revision: str | None = None
    variant: str | None = None
    dtype: str = "float32"
    scheduler: str | None = None
    lora: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        require(bool(self.path), "model.path", self.path, "a bundled name, a local directory or a hub id")
        require_choice("model.dtype", self.dtype, DTYPES)


@dataclass(frozen=True)
class SamplingConfig:
    """How an image is sampled.

    Args:
        steps: Sampling steps per image.
        guidance_scale: Weight w of classifier-free guidance; at 1 or below there is none.
        guidance_rescale: Share of rescaled guidance in [0, 1] (arXiv 2305.08891, section 3.4); SDXL-like pipelines only.
        height: Of an image in pixels; by default the model's own.
        width: Of an image in pixels; by default the model's own.
        images_per_prompt: Images made of each row.
        negative_prompt: For rows that have none of their own.
        max_sequence_length: Tokens of the T5 text encoder, for pipelines that have the option; by default the pipeline's own.
        seed: Of the job; every image derives its own from it, its key and its index.
    """

    steps: int = 50
    guidance_scale: float = 5.0
    guidance_rescale: float = 0.0
    height: int | None = None
    width: int | None = None
    images_per_prompt: int = 1
    negative_prompt: str | None = None
    max_sequence_length: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.steps >= 1, "sampling.steps", self.steps, "1 or more")
        require(0 <= self.guidance_rescale <= 1, "sampling.guidance_rescale", self.guidance_rescale, "0 to 1")
        require(self.guidance_scale >= 0, "sampling.guidance_scale", self.guidance_scale, "0 or more")
        for name in ("height", "width"):
            size = getattr(self, name)
            require(size is None or size >= 8, f"sampling.{name}", size, "8 pixels or more")
        require(self.images_per_prompt >= 1, "sampling.images_per_prompt", self.images_per_prompt, "1 or more")
        length = self.max_sequence_length
        require(length is None or length >= 1, "sampling.max_sequence_length", length, "1 token or more")
        require(0 <= self.seed < 2**63, "sampling.seed", self.seed, "0 to 2**63 - 1")


@dataclass(frozen=True)
class ParallelConfig:
    """How ranks work together.

    Args:
        group_size: Ranks that make one image together: 1, 2 (one guidance branch each) or 4.
        schedule: Which steps are computed in full: adaptive (the error decides), full (all of them), paper (a window of half
            steps), refresh (half steps, renewed by full ones) or async (AsyncDiff). Options of a schedule: see schedule.*.
        timeout_s: Seconds after which a rank gives up waiting for another of its group.
        across_nodes: Whether a group may have ranks on several nodes, whose network is then in every step.
        leave_idle: Under SLURM, whether GPUs of a node may stay idle, as where their number is odd and a group has 2 ranks.
    """

    group_size: int = 1
    schedule: str = "adaptive"
    timeout_s: float = 120.0
    across_nodes: bool = False
    leave_idle: bool = False

    def __post_init__(self) -> None:
        require_choice("parallel.group_size", self.group_size, GROUP_SIZES)
        require_choice("parallel.schedule", self.schedule, SCHEDULES)
        require(self.timeout_s > 0, "parallel.timeout_s", self.timeout_s, "more than 0 seconds")


@dataclass(frozen=True)
class ScheduleConfig:
    """Options of parallel.schedule; one that the schedule does not have is refused, one left out has the schedule's default.

    Args:
        tolerance: adaptive: the error that is worth a full step; smaller is more exact, larger is faster.
        max_half_steps: adaptive: half steps in a row.
        max_skip_steps: adaptive: skip steps in a row.
        min_full_steps: adaptive: full steps at the start.
        slope_window: paper: L, steps over which the slope of the discrepancy is taken.
        slope_threshold: paper: g, the slope per step below which the window opens.
        tau_cap: paper: the step at which the window opens at the latest.
        k: paper: half steps in the window.
        guidance: paper and refresh: the guidance difference in half steps: merged, carry or extrapolate.
        first: refresh: the first half step.
        last: refresh: the last step that may be a half step; negative counts from the end.
        refresh_every: refresh: half steps between two full ones.
        warm_up: async: full steps at the start.
        stride: async: every so many steps one is pipelined.
        time_shift: async: whether segments are told the timestep of the step before.
    """

    tolerance: float | None = None
    max_half_steps: int | None = None
    max_skip_steps: int | None = None
    min_full_steps: int | None = None
    slope_window: int | None = None
    slope_threshold: float | None = None
    tau_cap: int | None = None
    k: int | None = None
    guidance: str | None = None
    first: int | None = None
    last: int | None = None
    refresh_every: int | None = None
    warm_up: int | None = None
    stride: int | None = None
    time_shift: bool | None = None

    def given(self) -> dict[str, Any]:
        """The options that were given."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class DataConfig:
    """Which prompts are drawn.

    Args:
        prompts: Prompt tables (.jsonl, .csv, .tsv, .txt, .parquet): a file, url or glob, or a list of them, read in this order.
        prompt_column: Column that holds the prompt.
        key_column: Column that holds each row's key; by default a column named key, else keys are made from file and row.
        batch_size: Prompts that a group draws at once; where a row gets several images, each counts.
        assignment: How groups share shards: static (each has its own from the start) or claims (each takes the next one that is
            free, also from groups that died, also with other jobs on the same output; on local files and s3).
        lease_s: claims: seconds after which a shard whose group does not answer is free again.
        parts: static: number of independent jobs that share the output, such as the tasks of a job array.
        part: Which of them this is, from 0: it makes every parts-th shard.
    """

    prompts: list[str] | str = field(default_factory=list)
    prompt_column: str = "prompt"
    key_column: str | None = None
    batch_size: int = 4
    assignment: str = "static"
    lease_s: float = 120.0
    parts: int = 1
    part: int = 0

    def __post_init__(self) -> None:
        require(len(self.prompts) > 0, "data.prompts", self.prompts, "one or more files, urls or globs")
        if isinstance(self.prompts, str):
            object.__setattr__(self, "prompts", [self.prompts])
        require(self.batch_size >= 1, "data.batch_size", self.batch_size, "1 or more")
        require_choice("data.assignment", self.assignment, ASSIGNMENTS)
        require(1 <= self.lease_s <= LONGEST_LEASE_S, "data.lease_s", self.lease_s, f"1 to {LONGEST_LEASE_S:g} seconds")
        require(self.parts >= 1, "data.parts", self.parts, "1 or more")
        require(0 <= self.part < self.parts, "data.part", self.part, f"0 to {self.parts - 1}, as data.parts is {self.parts}")
        alone = self.parts == 1 or self.assignment == "static"
        require(alone, "data.parts", self.parts, "1 with data.assignment=claims, where jobs take what is free")


@dataclass(frozen=True)
class OutputConfig:
    """Where the corpus goes.

    Args:
        url: Directory of the corpus: a path or any fsspec url, such as s3://bucket/corpus.
        shard_size: Images in a shard; by default 1000. Not together with shard_bytes.
        shard_bytes: Bytes that a tar should have about. It becomes a number of images when the run is planned, from the pixels of
            an image and what photographs take per pixel in its format and quality: flat pictures take less, and so do tars then.
        image_format: png, jpg or webp.
        quality: Of jpg (1 to 100) and webp (1 to 100; 101 is lossless); png has none and is always lossless.
        sidecar: What the tar holds of an image's row: json (all of it) or none (only its prompt; the Parquet file has the row).
        embed_images: Whether the Parquet files hold the images too, as data sets of Hugging Face do. They are written twice then.
        grace_s: Seconds that the open shard may still take after SIGTERM, SIGINT or SIGUSR1; else it is dropped.
        max_failed_fraction: Of the rows that a group has drawn, or of the first hundred of its share of the job, 0 to 1: with
            more failed ones the run ends, with exit code 3.
    """

    url: str = ""
    shard_size: int | None = None
    shard_bytes: int | None = None
    image_format: str = "png"
    quality: int = 95
    sidecar: str = "json"
    embed_images: bool = False
    grace_s: float = 60.0
    max_failed_fraction: float = 0.1

    def __post_init__(self) -> None:
        require(bool(self.url), "output.url", self.url, "a directory or an fsspec url")
        alone = f"none next to output.shard_bytes, which is {self.shard_bytes}"
        require(self.shard_size is None or self.shard_bytes is None, "output.shard_size", self.shard_size, alone)
        require(self.shard_size is None or self.shard_size >= 1, "output.shard_size", self.shard_size, "1 or more")
        require(self.shard_bytes is None or self.shard_bytes >= 1, "output.shard_bytes", self.shard_bytes, "1 byte or more")
        require_choice("output.sidecar", self.sidecar, SIDECARS)
        require_choice("output.image_format", self.image_format, IMAGE_FORMATS)
        require(1 <= self.quality <= 101, "output.quality", self.quality, "1 to 100, or 101 for lossless webp")
        require(self.grace_s >= 0, "output.grace_s", self.grace_s, "0 seconds or more")
        fraction = self.max_failed_fraction
        require(0 <= fraction <= 1, "output.max_failed_fraction", fraction, "0 to 1")

    def images_per_shard(self, width: int, height: int) -> int:
        """Images in a shard, of so many pixels each; it depends on nothing that is only known once they are drawn."""
        if self.shard_bytes is None:
            return self.shard_size or SHARD_SIZE
        return max(1, round(self.shard_bytes / (width * height * self.bytes_per_pixel)))

    @property
    def bytes_per_pixel(self) -> float:
        """What photographs take per pixel in the format and quality."""
        known = BYTES_PER_PIXEL[self.image_format]
        below = max((one for one in known if one[0] <= self.quality), default=known[0])
        above = min((one for one in known if one[0] >= self.quality), default=known[-1])
        weight = (self.quality - below[0]) / (above[0] - below[0]) if above[0] > below[0] else 0.0
        return below[1] + weight * (above[1] - below[1])


@dataclass(frozen=True)
class JobConfig:
    """Everything that the content of a corpus depends on, and where it goes."""

    model: ModelConfig
    sampling: SamplingConfig
    parallel: ParallelConfig
    data: DataConfig
    output: OutputConfig
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
