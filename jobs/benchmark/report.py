"""What a benchmark measured: one record, as a table for people and as JSON for programs."""

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import torch

from jobs.benchmark.config import BenchmarkConfig, RowConfig, SettingConfig
from jobs.benchmark.costs import StepCosts
from jobs.benchmark.features import Distances
from jobs.benchmark.fidelity import Fidelity, Similarity
from jobs.benchmark.speed import Speed

PACKAGES = ("torch", "diffusers", "hybridiff")


@dataclass
class Row:
    """One row: its name, its configuration, and what was measured of it so far."""

    name: str
    schedule: str
    options: dict[str, Any]
    group_size: int
    sampling_steps: int
    scheduler: str
    speed: Speed | None = None
    fidelity: Fidelity | None = None

    @classmethod
    def at(cls, setting: SettingConfig, row: RowConfig) -> "Row":
        """A row of a setting's table, not measured yet."""
        scheduler = (row.scheduler or "").removesuffix("Scheduler")
        return cls(row.label(setting), row.schedule, row.options, row.group_size, row.steps(setting), scheduler)

    @property
    def measurement(self) -> Speed | Fidelity:
        """Where ideal and steps are taken from: the speed if it was measured."""
        measurement = self.speed or self.fidelity
        assert measurement is not None
        return measurement


@dataclass
class Table:
    """The rows of one setting that have been measured; the baseline comes first."""

    setting: SettingConfig
    rows: list[Row] = field(default_factory=list)


@dataclass
class Report:
    """Everything that one run measured so far, and on what.

    Args:
        config: configuration of the benchmark.
        ranks: number of ranks.
        largest_share: the larger of two segments' share of the FLOPs; None if unknown.
        tables: one for each setting.
        costs: costs of single steps on one device.
        bytes_per_image: bytes that a pair sends on a published network, by pattern of steps.
    """

    config: BenchmarkConfig
    ranks: int
    largest_share: float | None = None
    tables: list[Table] = field(default_factory=list)
    costs: StepCosts | None = None
    bytes_per_image: dict[str, int] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Plain values, with versions and hardware."""
        return asdict(self) | provenance(self.ranks)

    def lines(self) -> list[str]:
        """The tables for people."""
        lines: list[str] = []
        for table in (each for each in self.tables if each.rows):
            lines += [_title(self, table.setting), *render(columns(table.rows)), ""]
        return lines + _cost_lines(self.costs) + _byte_lines(self)


Column = tuple[str, list[str]]


def provenance(ranks: int) -> dict[str, Any]:
    """Versions of packages, and hardware."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    hardware = {"machine": platform.machine(), "gpus": gpus, "ranks": ranks}
    return {"versions": {name: version(name) for name in PACKAGES}, "hardware": hardware}


def columns(rows: list[Row]) -> list[Column]:
    """Headings and cells; columns without any measurement are left out."""

    def column(heading: str, cell: Callable[[Row], str | None]) -> Column:
        return heading, [cell(row) or "" for row in rows]

    def speed(heading: str, cell: Callable[[Speed], str]) -> Column:
        return column(heading, lambda row: cell(row.speed) if row.speed else None)

    def fidelity(heading: str, of: Callable[[Fidelity], Similarity | None]) -> list[Column]:
        def cell(row: Row, text: Callable[[Similarity], str]) -> str | None:
            similarity = of(row.fidelity) if row.fidelity else None
            return text(similarity) if similarity else None

        return [
            column(f"PSNR {heading} dB", lambda row: cell(row, lambda f: f"{f.psnr_median:.1f} / {f.psnr_worst:.1f}")),
            column(f"SSIM {heading}", lambda row: cell(row, lambda f: f"{f.ssim_median:.3f} / {f.ssim_worst:.3f}")),
        ]

    def distance(heading: str, cell: Callable[[Distances], str]) -> Column:
        return column(heading, lambda row: cell(row.fidelity.shapes_clip) if row.fidelity and row.fidelity.shapes_clip else None)

    every = [
        column("row", lambda row: row.name),
        column("F+H+P+S", lambda row: _steps(row.measurement.steps)),
        speed("s/image", lambda s: f"{s.seconds_per_image:.3f}"),
        speed("images/s/rank", lambda s: f"{s.images_per_s_per_rank:.3f}"),
        speed("speed-up", lambda s: f"{s.speedup:.2f}"),
        speed("per rank", lambda s: f"{s.throughput:.2f}"),
        column("ideal", lambda row: f"{row.measurement.ideal:.2f}"),
        column("ideal 0.5", lambda row: f"{row.measurement.ideal_even:.2f}"),
        speed("of ideal", lambda s: f"{s.ideal_share:.1%}"),
        speed("coll./step", lambda s: f"{s.traffic.collectives_per_step:.2f}"),
        speed("KB/step", lambda s: f"{s.traffic.bytes_per_step / 1e3:.1f}"),
        speed("MB/image", lambda s: f"{s.traffic.bytes_per_image / 1e6:.3f}"),
        speed(
            "syncs/step (scheduler)", lambda s: f"{s.traffic.host_syncs_per_step:.2f} ({s.traffic.scheduler_syncs_per_step:.1f})"
        ),
        speed("peak MiB", lambda s: "" if s.peak_memory_mib is None else f"{s.peak_memory_mib:.0f}"),
        *fidelity("by baseline", lambda f: f.baseline),
        *fidelity("by converged", lambda f: f.converged),
        distance("FID by baseline (shapes CLIP)", lambda d: f"{d.fid_baseline:.4f}"),
        distance("FID by rendered (shapes CLIP)", lambda d: f"{d.fid_rendered:.3f}"),
        distance("LPIPS (shapes CLIP)", lambda d: f"{d.lpips:.5f}"),
        *fidelity("by own solver", lambda f: f.own),
    ]
    return [(heading, cells) for heading, cells in every if any(cells)]


def render(columns: list[Column]) -> list[str]:
    """A Markdown table with aligned cells: the first column to the left, the others to the right."""
    widths = [max(len(heading), *map(len, cells)) for heading, cells in columns]

    def line(cells: list[str]) -> str:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        return f"| {' | '.join([cells[0].ljust(widths[0]), *padded[1:]])} |"

    rule = [("-" * (width - 1) + ":") if i else "-" * width for i, width in enumerate(widths)]
    body = [list(cells) for cells in zip(*(cells for _, cells in columns), strict=True)]
    return [line([heading for heading, _ in columns]), line(rule), *map(line, body)]


def _steps(steps: dict[str, float]) -> str:
    counts = [steps.get(kind, 0.0) for kind in ("full", "half", "pipelined", "skip")]
    return "+".join(f"{count:.3g}" for count in counts)


def _title(report: Report, setting: SettingConfig) -> str:
    network = report.config.network
    assert network is not None
    share = "" if report.largest_share is None else f"; larger segment {report.largest_share:.1%} of the FLOPs"
    title = f"{network.label}, {setting.steps} steps, guidance {setting.guidance_scale:g}"
    title += f", {report.ranks} ranks on {network.device}{share}"
    return f"{title} (fidelity: median / worst image)" if report.config.fidelity else title


def _cost_lines(costs: StepCosts | None) -> list[str]:
    if costs is None:
        return []
    segments = " and ".join(f"{value:.2f}" for value in costs.segments_ms)
    return [
        f"one image, ms per step: both branches {costs.both_ms:.2f}, one branch {costs.branch_ms:.2f}, segments {segments}"
        f" (larger one {costs.flops_share:.1%} of the FLOPs)",
        *(
            f"expected from these, exchange not counted: {name}: {e.pair:.2f}x on a pair, {e.alone:.2f}x on one device"
            for name, e in costs.expected.items()
        ),
        "",
    ]


def _byte_lines(report: Report) -> list[str]:
    config = report.config.bytes
    if config is None:
        return []
    network = f"{config.network}, {config.height} x {config.width}, {config.dtype}"
    return [
        f"{network}, {pattern}: {sent / 1e6:.2f} MB per image, sent by both ranks of a pair together"
        for pattern, sent in report.bytes_per_image.items()
    ]
