"""A benchmark's configuration: frozen dataclasses that check themselves; no torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hybridiff.config import DTYPES, GROUP_SIZES, Dtype, GroupSize
from hybridiff.config.model import BUNDLED
from hybridiff.errors import UsageError, require, require_choice
from hybridiff.images import IMAGE_FORMATS, ImageFormat
from hybridiff.schedule import SCHEDULES
from hybridiff.secrets import refuse_credentials

DEVICES = ("cpu", "cuda")
SHAPES: dict[str, dict[str, Any]] = {  # options of the untrained networks, with defaults
    "unet": {"channels": [64, 128, 256], "transformer_layers": [1, 1, 2]},
    "mmdit": {"blocks": 8, "heads": 4},
    "flux": {"blocks": 8, "heads": 4},
}
TOKENS = 24
PATTERN = re.compile(r"F[1-9]\d*( [FHS][1-9]\d*)*")


def check_patterns(name: str, patterns: Sequence[str]) -> None:
    """Refuses malformed patterns of steps; a pipelined step has no cost of its own, and the first step is always full.

    Raises:
        UsageError: a pattern is malformed.
    """
    for pattern in patterns:
        fits = PATTERN.fullmatch(" ".join(pattern.split())) is not None
        require(fits, name, pattern, "F (full), H (half) and S (skip), each with a number, full ones first: F15 H5 F30")


@dataclass(frozen=True)
class NetworkConfig:
    """The network under test: a trained ``model``, or an ``untrained`` one of a given shape.

    Args:
        model: bundled model (shapes-xl, shapes-sd3), local directory in Diffusers format, or hub id.
        untrained: unet, mmdit or flux, in the sizes below, or a published configuration by name, such as sdxl.
        dtype: arithmetic of the network: float32, bfloat16 or float16.
        device: cpu, or cuda: rank i uses device i modulo their number.
        threads: CPU threads of each rank.
        height: height of an image in pixels; by default the network's own.
        width: width of an image in pixels; by default the network's own.
        max_sequence_length: tokens of the T5 text encoder, for a model whose pipeline has the option.
        channels: channels of each level of an untrained unet: 32 or multiples of 64; 64, 128, 256 by default.
        transformer_layers: transformer layers of each level of an untrained unet; 1, 1, 2 by default.
        blocks: joint blocks of an untrained mmdit, or single and half as many joint ones of a flux; 8 by default.
        heads: attention heads of 64 channels of an untrained mmdit or flux; 4 by default.
        tokens: tokens of the random text embedding passed to an untrained network; 24 by default.
        options: further keywords of the pipeline's call, such as {guidance_scale: 5} of a distilled network.
    """

    model: str | None = None
    untrained: str | None = None
    dtype: Dtype = "float32"
    device: str = "cpu"
    threads: int = 1
    height: int | None = None
    width: int | None = None
    max_sequence_length: int | None = None
    channels: list[int] | None = None
    transformer_layers: list[int] | None = None
    blocks: int | None = None
    heads: int | None = None
    tokens: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = {"model": self.model, "untrained": self.untrained}
        require((self.model is None) != (self.untrained is None), "network", given, "either model or untrained")
        require_choice("network.dtype", self.dtype, DTYPES)
        require_choice("network.device", self.device, DEVICES)
        require(self.threads >= 1, "network.threads", self.threads, "1 or more")
        self._check_applicable()
        for name, default in {**SHAPES.get(self.untrained or "", {}), **({"tokens": TOKENS} if self.untrained else {})}.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        self._check_shape()

    @property
    def label(self) -> str:
        """Name in titles and messages."""
        return self.model or f"untrained {self.untrained}"

    def _check_applicable(self) -> None:
        """Refuses options that do not apply to this network."""
        for name in {name for options in SHAPES.values() for name in options}:
            kinds = [kind for kind, options in SHAPES.items() if name in options]
            fits = self.untrained in kinds or getattr(self, name) is None
            require(fits, f"network.{name}", getattr(self, name), f"only with an untrained {' or '.join(kinds)}")
        require(self.tokens is None or self.model is None, "network.tokens", self.tokens, "only with untrained networks")
        length = self.max_sequence_length
        require(length is None or self.model is not None, "network.max_sequence_length", length, "only with a model")

    def _check_shape(self) -> None:
        if self.channels is not None and self.transformer_layers is not None:
            levels, layers = len(self.channels), self.transformer_layers
            fits = levels >= 2 and all(width == 32 or (width >= 64 and width % 64 == 0) for width in self.channels)
            require(fits, "network.channels", self.channels, "2 or more numbers, each 32 or a multiple of 64")
            fits = len(layers) == levels and min(layers) >= 1
            require(fits, "network.transformer_layers", layers, f"{levels} numbers of 1 or more, as many as channels")
        for name, least in (("blocks", 2), ("heads", 1), ("tokens", 1)):
            given = getattr(self, name)
            require(given is None or given >= least, f"network.{name}", given, f"{least} or more")


@dataclass(frozen=True)
class SettingConfig:
    """One table: every row at a number of steps and a guidance scale.

    Args:
        steps: sampling steps N of the baseline.
        guidance_scale: weight w of classifier-free guidance, the ``true_cfg_scale`` where there is one; 1 for none.
    """

    steps: int = 50
    guidance_scale: float = 5.0

    def __post_init__(self) -> None:
        require(self.steps >= 1, "settings.steps", self.steps, "1 or more")
        require(self.guidance_scale >= 1, "settings.guidance_scale", self.guidance_scale, "1, for none, or more")

    @property
    def branches(self) -> int:
        """Predictions of a step: two with guidance."""
        return 2 if self.guidance_scale > 1 else 1


@dataclass(frozen=True)
class RowConfig:
    """One row of the table: a schedule on a placement.

    Args:
        schedule: name of the schedule.
        options: options of the schedule, such as {k: 20}; defaults for the rest.
        group_size: ranks that generate an image together.
        steps_share: sampling steps as a share of the setting's, for the fewer-steps baselines.
        scheduler: class name of a Diffusers scheduler that replaces the network's own.
        scheduler_options: options of that scheduler, on top of those of the network's own.
        needs_steps: least number of steps at which this row is run, such as the length of a window.
        name: name in the table; by default made of the above.
    """

    schedule: str = "full"
    options: dict[str, Any] = field(default_factory=dict)
    group_size: GroupSize = 1
    steps_share: float = 1.0
    scheduler: str | None = None
    scheduler_options: dict[str, Any] = field(default_factory=dict)
    needs_steps: int = 1
    name: str = ""

    def __post_init__(self) -> None:
        require_choice("rows.schedule", self.schedule, tuple(SCHEDULES))
        require_choice("rows.group_size", self.group_size, GROUP_SIZES)
        require(0 < self.steps_share <= 16, "rows.steps_share", self.steps_share, "more than 0, at most 16")

    def steps(self, setting: SettingConfig) -> int:
        """Sampling steps at a setting."""
        return max(1, round(self.steps_share * setting.steps))

    def label(self, setting: SettingConfig) -> str:
        """Name in the table."""
        if self.name:
            return self.name
        options = [f"{key}={value}" for key, value in self.options.items()]
        solver = [self.scheduler.removesuffix("Scheduler")] if self.scheduler else []
        steps = [f"{self.steps(setting)} steps"] if self.steps(setting) != setting.steps else []
        return ", ".join([" ".join([self.schedule, *options]), *solver, *steps, f"group of {self.group_size}"])


@dataclass(frozen=True)
class TimingConfig:
    """Timing on real ranks.

    Args:
        rounds: measured rounds, after one that is discarded; a round runs every row once.
        batch: images that a group generates at once.
    """

    rounds: int = 5
    batch: int = 4

    def __post_init__(self) -> None:
        require(self.rounds >= 1, "timing.rounds", self.rounds, "1 or more")
        require(self.batch >= 1, "timing.batch", self.batch, "1 or more")


@dataclass(frozen=True)
class FidelityConfig:
    """Comparison of images; one process emulates each group, and the captions are spread over all ranks.

    Args:
        captions: number of captions of shapes, all held out from training.
        seed: seed of the captions; docs/models.md uses 7, jobs/benchmark/experiments.py 23.
        batch: captions generated at once.
        converged: multiple of the steps for converged reference images from plain guidance; 0 for none.
        shapes_clip: whether FID, by the baseline's and by rendered images, and LPIPS are measured, on the features of the CLIP
            that was trained on shapes; only with a bundled model.
    """

    captions: int = 64
    seed: int = 11
    batch: int = 16
    converged: int = 0
    shapes_clip: bool = False

    def __post_init__(self) -> None:
        require(self.captions >= 1, "fidelity.captions", self.captions, "1 or more")
        require(self.batch >= 1, "fidelity.batch", self.batch, "1 or more")
        require(self.converged >= 0, "fidelity.converged", self.converged, "0 or more")


@dataclass(frozen=True)
class CostsConfig:
    """Cost of single steps on one device, and the speed-up that it lets a pair expect.

    Args:
        patterns: steps, such as F15 H5 F30: 15 full, 5 half and 30 full ones (S: skip), full ones first.
        repeats: repeats of each measurement; the median counts.
    """

    patterns: list[str] = field(default_factory=list)
    repeats: int = 10

    def __post_init__(self) -> None:
        check_patterns("costs.patterns", self.patterns)
        require(self.repeats >= 1, "costs.repeats", self.repeats, "1 or more")


@dataclass(frozen=True)
class BytesConfig:
    """Bytes that a pair sends for one image, counted on the meta device.

    Args:
        network: name of a published configuration.
        height: height of the image in pixels.
        width: width of the image in pixels.
        dtype: arithmetic of the network.
        patterns: steps, such as F15 H5 F30.
    """

    network: str = "sdxl"
    height: int = 1024
    width: int = 1024
    dtype: Dtype = "float16"
    patterns: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_patterns("bytes.patterns", self.patterns)
        require_choice("bytes.dtype", self.dtype, DTYPES)
        for name in ("height", "width"):
            size = getattr(self, name)
            fits = size >= 64 and size % 32 == 0
            require(fits, f"bytes.{name}", size, "multiples of 32 pixels from 64 on, which suit all networks")


@dataclass(frozen=True)
class CorpusConfig:
    """Writing and verifying a corpus, each against its bound. With the defaults it takes a minute or two on two cores.

    Args:
        urls: directories, local or remote; each measurement creates a folder below and removes it at the end. By default a
            temporary folder.
        formats: image formats: png, jpg, webp.
        quality: quality of jpg and webp.
        rounds: measured rounds, after one that is discarded; a round runs everything that is compared once.
        model: model of the whole job: bundled model, local directory or hub id.
        dtype: arithmetic of the model.
        device: cpu or cuda.
        steps: sampling steps of the whole job.
        schedule: schedule of the whole job.
        group_size: ranks that generate an image together.
        height: height of an image of the whole job in pixels; by default the model's own.
        width: width of an image of the whole job in pixels; by default the model's own.
        batch: images that a group generates at once.
        images_per_prompt: images of each of the 32 demo prompts in the whole job; 0 leaves the whole job out.
        photograph: height and width, in pixels, of the synthetic images that compress like photographs.
        megabytes: size of a shard of synthetic images in each round; 0 leaves this part out.
        verified_megabytes: size of the corpus that ``verify`` reads; 0 leaves this part out.
    """

    urls: list[str] = field(default_factory=list)
    formats: list[ImageFormat] = field(default_factory=lambda: ["png", "jpg"])
    quality: int = 95
    rounds: int = 3
    model: str = "shapes-xl"
    dtype: Dtype = "float32"
    device: str = "cpu"
    steps: int = 20
    schedule: str = "adaptive"
    group_size: GroupSize = 1
    height: int | None = None
    width: int | None = None
    batch: int = 4
    images_per_prompt: int = 1
    photograph: int = 1024
    megabytes: float = 32.0
    verified_megabytes: float = 256.0

    def __post_init__(self) -> None:
        for url in self.urls:
            refuse_credentials("corpus.urls", url)
        require(len(self.formats) > 0, "corpus.formats", self.formats, "one or more")
        for image_format in self.formats:
            require_choice("corpus.formats", image_format, IMAGE_FORMATS)
        require_choice("corpus.device", self.device, DEVICES)
        require_choice("corpus.schedule", self.schedule, tuple(SCHEDULES))
        require_choice("corpus.group_size", self.group_size, GROUP_SIZES)
        for name in ("rounds", "steps", "batch"):
            require(getattr(self, name) >= 1, f"corpus.{name}", getattr(self, name), "1 or more")
        require(1 <= self.quality <= 101, "corpus.quality", self.quality, "1 to 100, or 101 for lossless webp")
        require(self.photograph >= 16, "corpus.photograph", self.photograph, "16 pixels or more")
        for name in ("images_per_prompt", "megabytes", "verified_megabytes"):
            require(getattr(self, name) >= 0, f"corpus.{name}", getattr(self, name), "0 or more")
        parts = (self.images_per_prompt, self.megabytes, self.verified_megabytes)
        require(any(parts), "corpus.megabytes", 0, "more than 0, or another part than this: there is nothing to measure")


@dataclass(frozen=True)
class BenchmarkConfig:
    """One run of the benchmark; what is left out is not measured.

    Args:
        network: network under test.
        settings: steps and guidance scales; one table for each.
        rows: rows besides the baseline, plain data parallelism, which is always there.
        timing: seconds, bytes and memory, on real ranks.
        fidelity: PSNR and SSIM.
        costs: cost of single steps on one device.
        bytes: bytes sent for published networks, by arithmetic.
        plot: path of a PNG of speed against fidelity.
        report: path of a JSON file, rewritten after each row; the same JSON is the last line printed.
        corpus: writing and verifying a corpus; nothing else is measured then. --corpus alone takes the defaults.
    """

    network: NetworkConfig | None = None
    settings: list[SettingConfig] = field(default_factory=lambda: [SettingConfig()])
    rows: list[RowConfig] = field(default_factory=list)
    timing: TimingConfig | None = None
    fidelity: FidelityConfig | None = None
    costs: CostsConfig | None = None
    bytes: BytesConfig | None = None
    plot: str | None = None
    report: str | None = None
    corpus: CorpusConfig | None = None

    def __post_init__(self) -> None:
        parts = {name: getattr(self, name) for name in ("timing", "fidelity", "costs")}
        if not any(parts.values()) and self.bytes is None and self.corpus is None:
            raise UsageError("nothing to measure; allowed: one or more of timing, fidelity, costs, bytes, or corpus")
        require(self.network is not None or not any(parts.values()), "network", self.network, "a model or an untrained network")
        if self.fidelity is not None and self.network is not None:
            require(self.network.model is not None, "network.model", None, "a model, as fidelity needs trained weights")
            if self.fidelity.shapes_clip:
                require_choice("network.model with fidelity.shapes_clip", self.network.model, BUNDLED)
        require(self.plot is None or self.fidelity is not None, "plot", self.plot, "none without fidelity")
        if self.corpus is None:
            self._check_unused()

    @property
    def has_tables(self) -> bool:
        """Whether rows are measured."""
        return self.timing is not None or self.fidelity is not None

    def _check_unused(self) -> None:
        """Refuses options that would have no effect."""
        require(self.has_tables or not self.rows, "rows", len(self.rows), "none without timing or fidelity")
        many = self.has_tables or len(self.settings) == 1
        require(len(self.settings) >= 1 and many, "settings", len(self.settings), "one; or more with timing or fidelity")
        guided = self.costs is None or all(setting.branches == 2 for setting in self.settings)
        require(guided, "settings.guidance_scale", 1, "more than 1 with costs, which are those of both branches")
        unused = self.network is not None and not self.has_tables and self.costs is None
        require(not unused, "network", "given", "none without timing, fidelity or costs")

    def rows_at(self, setting: SettingConfig) -> list[RowConfig]:
        """The rows of a setting's table, the baseline first: plain data parallelism, every rank with its own images."""
        return [RowConfig(name="data parallel"), *(row for row in self.rows if setting.steps >= row.needs_steps)]
