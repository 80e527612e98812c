"""A benchmark's configuration: frozen dataclasses that check themselves; no torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hybridiff.config import DTYPES, GROUP_SIZES
from hybridiff.errors import UsageError, require, require_choice
from hybridiff.schedule import SCHEDULES
from jobs.benchmark.sinks.config import SinksConfig
from jobs.benchmark.subject_config import SubjectConfig

PATTERN = re.compile(r"F[1-9]\d*( [FHS][1-9]\d*)*")


def check_patterns(name: str, patterns: Sequence[str]) -> None:
    """Refuses what are no patterns of steps: a pipelined step has no cost of its own, and without a full one nothing can follow.

    Raises:
        UsageError: one is none.
    """
    for pattern in patterns:
        fits = PATTERN.fullmatch(" ".join(pattern.split())) is not None
        require(fits, name, pattern, "F (full), H (half) and S (skip), each with a number, full ones first: F15 H5 F30")


@dataclass(frozen=True)
class SettingConfig:
    """One table: all rows at a number of steps and a guidance scale.

    Args:
        steps: Sampling steps N of the baseline.
        guidance_scale: Weight w of classifier-free guidance, above 1.
    """

    steps: int = 50
    guidance_scale: float = 5.0

    def __post_init__(self) -> None:
        require(self.steps >= 1, "settings.steps", self.steps, "1 or more")
        require(self.guidance_scale > 1, "settings.guidance_scale", self.guidance_scale, "more than 1, so that there is guidance")


@dataclass(frozen=True)
class RowConfig:
    """One row of the table: a schedule on a placement.

    Args:
        schedule: Its name.
        options: Of the schedule, such as {k: 20}; the rest by default.
        group_size: Ranks that make one image together.
        steps_share: Sampling steps as a share of the setting's: the rival that takes fewer steps.
        scheduler: Class name of a Diffusers scheduler instead of the network's own.
        scheduler_options: Of that scheduler, over those of the network's own.
        needs_steps: Settings with fewer steps go without this row, such as a window that would not fit them.
        name: By default made of the above.
    """

    schedule: str = "full"
    options: dict[str, Any] = field(default_factory=dict)
    group_size: int = 1
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
        """What the table calls it."""
        if self.name:
            return self.name
        options = [f"{key}={value}" for key, value in self.options.items()]
        solver = [self.scheduler.removesuffix("Scheduler")] if self.scheduler else []
        steps = [f"{self.steps(setting)} steps"] if self.steps(setting) != setting.steps else []
        return ", ".join([" ".join([self.schedule, *options]), *solver, *steps, f"group of {self.group_size}"])


@dataclass(frozen=True)
class TimingConfig:
    """How time is taken, on real ranks.

    Args:
        rounds: That count; one more before them is discarded. A round runs every row once.
        batch: Images that a group draws at once.
    """

    rounds: int = 5
    batch: int = 4

    def __post_init__(self) -> None:
        require(self.rounds >= 1, "timing.rounds", self.rounds, "1 or more")
        require(self.batch >= 1, "timing.batch", self.batch, "1 or more")


@dataclass(frozen=True)
class FidelityConfig:
    """How images are compared; groups are played by one process each, and the captions are spread over all ranks.

    Args:
        captions: Of shapes, never trained on.
        seed: Of the captions; 7 is taken by docs/models.md, 23 by jobs/benchmark/experiments.py.
        batch: Captions drawn at once.
        converged: Also compare with plain guidance at this many times the steps; 0 for no.
    """

    captions: int = 64
    seed: int = 11
    batch: int = 16
    converged: int = 0

    def __post_init__(self) -> None:
        require(self.captions >= 1, "fidelity.captions", self.captions, "1 or more")
        require(self.batch >= 1, "fidelity.batch", self.batch, "1 or more")
        require(self.converged >= 0, "fidelity.converged", self.converged, "0 or more")


@dataclass(frozen=True)
class CostsConfig:
    """What one step costs on one device, from which a pair's speed-up is expected.

    Args:
        patterns: Steps, such as F15 H5 F30: 15 full, 5 half and 30 full ones (S: skip), full ones first.
        repeats: Of which the median counts.
    """

    patterns: list[str] = field(default_factory=list)
    repeats: int = 10

    def __post_init__(self) -> None:
        check_patterns("costs.patterns", self.patterns)
        require(self.repeats >= 1, "costs.repeats", self.repeats, "1 or more")


@dataclass(frozen=True)
class BytesConfig:
    """What a pair sends for one image, counted on the meta device.

    Args:
        network: A published configuration by name.
        height: Pixels.
        width: Pixels.
        dtype: Of the network.
        patterns: Steps, such as F15 H5 F30.
    """

    network: str = "sdxl"
    height: int = 1024
    width: int = 1024
    dtype: str = "float16"
    patterns: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_patterns("bytes.patterns", self.patterns)
        require_choice("bytes.dtype", self.dtype, DTYPES)
        for name in ("height", "width"):
            size = getattr(self, name)
            require(
                size >= 64 and size % 32 == 0, f"bytes.{name}", size, "multiples of 32 pixels from 64 on, which suit all networks"
            )


@dataclass(frozen=True)
class BenchmarkConfig:
    """One run of the benchmark; whatever is left out is not measured.

    Args:
        subject: The network that is measured.
        settings: Steps and guidance scales; a table for each.
        rows: Besides the baseline, plain data parallelism, which is always there.
        timing: Seconds, bytes and memory, on real ranks.
        fidelity: PSNR and SSIM.
        costs: Of single steps on one device.
        bytes: Of published networks, by arithmetic.
        picture: PNG of speed against fidelity.
        report: File for the JSON that is also the last line printed.
        sinks: How fast images are written; nothing else is measured then. --sinks alone stands for its defaults.
    """

    subject: SubjectConfig | None = None
    settings: list[SettingConfig] = field(default_factory=lambda: [SettingConfig()])
    rows: list[RowConfig] = field(default_factory=list)
    timing: TimingConfig | None = None
    fidelity: FidelityConfig | None = None
    costs: CostsConfig | None = None
    bytes: BytesConfig | None = None
    picture: str | None = None
    report: str | None = None
    sinks: SinksConfig | None = None

    def __post_init__(self) -> None:
        parts = {name: getattr(self, name) for name in ("timing", "fidelity", "costs")}
        if not any(parts.values()) and self.bytes is None and self.sinks is None:
            raise UsageError("nothing to measure; allowed: one or more of timing, fidelity, costs, bytes, or sinks")
        require(self.subject is not None or not any(parts.values()), "subject", self.subject, "a model or an untrained network")
        if self.fidelity is not None and self.subject is not None:
            require(self.subject.model is not None, "subject.model", None, "a model: fidelity says nothing of an untrained one")
        require(self.picture is None or self.fidelity is not None, "picture", self.picture, "none without fidelity")
        self._check_unused()

    def _check_unused(self) -> None:
        """Refuses what nothing that is measured looks at."""
        tables = self.timing is not None or self.fidelity is not None
        if self.sinks is not None:
            return
        require(tables or not self.rows, "rows", len(self.rows), "none without timing or fidelity")
        many = tables or len(self.settings) == 1
        require(len(self.settings) >= 1 and many, "settings", len(self.settings), "one; or more with timing or fidelity")
        unused = self.subject is not None and not tables and self.costs is None
        require(not unused, "subject", "given", "none without timing, fidelity or costs")

    def rows_at(self, setting: SettingConfig) -> list[RowConfig]:
        """The rows of a setting's table, the baseline first: plain data parallelism, every rank with its own images."""
        return [RowConfig(name="data parallel"), *(row for row in self.rows if setting.steps >= row.needs_steps)]
