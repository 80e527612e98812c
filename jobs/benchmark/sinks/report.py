"""What the benchmark of the sinks found: one record, as tables for people and as JSON for programs."""

from dataclasses import asdict, dataclass, field
from typing import Any

from hybridiff.secrets import redact
from jobs.benchmark.report import Column, provenance, render
from jobs.benchmark.sinks import whole_job, writing
from jobs.benchmark.sinks.checking import CheckingRow
from jobs.benchmark.sinks.config import SinksConfig
from jobs.benchmark.sinks.whole_job import JobRow
from jobs.benchmark.sinks.writing import ENCODER, WritingRow


@dataclass(frozen=True)
class SinksReport:
    """Everything that one run found, and on what.

    Args:
        config: As given.
        ranks: Of the whole job.
        cores: That this process may use.
        jobs: The whole job against its bare pipeline loop.
        writing: Shards against a plain put.
        checking: ``verify`` against sha256sum.
    """

    config: SinksConfig
    ranks: int
    cores: int
    jobs: list[JobRow] = field(default_factory=list)
    writing: list[WritingRow] = field(default_factory=list)
    checking: list[CheckingRow] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """Plain values, with versions and hardware, without secrets."""
        plain: dict[str, Any] = redact(asdict(self))
        return plain | provenance(self.ranks)

    def lines(self) -> list[str]:
        """The tables for people."""
        return [*_job_lines(self), *_writing_lines(self), *_checking_lines(self)]


def _job_lines(report: SinksReport) -> list[str]:
    config, rows = report.config, report.jobs
    if not rows:
        return []
    title = (
        f"the whole job: {config.model}, {config.steps} steps, {config.schedule}, {rows[0].images} images in all, "
        f"{report.ranks} ranks on {config.device}; tail: after the last batch, until the last commit"
    )
    columns: list[Column] = [
        *_names(rows),
        ("images/s", [f"{row.images_per_s:.3f}" for row in rows]),
        ("bare pipeline", [f"{row.bare_images_per_s:.3f}" for row in rows]),
        (f"ratio (bar {whole_job.BAR})", [f"{row.ratio:.3f}" for row in rows]),
        ("rounds", [f"{min(row.rounds):.2f} to {max(row.rounds):.2f}" for row in rows]),
        ("by CPU time", [f"{row.cpu_ratio:.3f}" for row in rows]),
        ("tail s", [f"{row.tail_s:.2f}" for row in rows]),
    ]
    return [title, *render(columns), ""]


def _writing_lines(report: SinksReport) -> list[str]:
    rows = report.writing
    if not rows:
        return []
    side = report.config.photograph
    title = f"one shard of pictures like photographs, {side} x {side}, MB/s; put: fsspec's, until the disk has it if it is local"
    columns: list[Column] = [
        *_names(rows),
        ("MB", [f"{row.megabytes:.0f}" for row in rows]),
        ("encode, a thread", [f"{row.encode_mb_s:.1f}" for row in rows]),
        ("encode + tar + Parquet + upload", [f"{row.written_mb_s:.1f}" for row in rows]),
        ("tar + Parquet + upload", [f"{row.stored_mb_s:.0f}" for row in rows]),
        ("put", [f"{row.put_mb_s:.0f}" for row in rows]),
        (f"ratio (bar {writing.BAR})", [f"{row.ratio:.2f}" for row in rows]),
        (f"encoded before (bar {writing.BAR})", [f"{row.stored_ratio:.2f}" for row in rows]),
        ("bound by", [_bound(row) for row in rows]),
        ("of bound", [f"{row.of_bound:.0%}" for row in rows]),
    ]
    return [title, *render(columns), ""]


def _checking_lines(report: SinksReport) -> list[str]:
    rows = report.checking
    if not rows:
        return []
    columns: list[Column] = [
        *_names(rows),
        ("MB", [f"{row.megabytes:.0f}" for row in rows]),
        ("verify", [f"{row.verify_mb_s:.0f}" for row in rows]),
        ("sha256sum", ["" if row.sha256sum_mb_s is None else f"{row.sha256sum_mb_s:.0f}" for row in rows]),
        ("ratio", ["" if row.ratio is None else f"{row.ratio:.2f}" for row in rows]),
    ]
    return [f"verify on {rows[0].processes} cores, MB/s; sha256sum: one process", *render(columns), ""]


def _names(rows: list[JobRow] | list[WritingRow] | list[CheckingRow]) -> list[Column]:
    return [("url", [row.url for row in rows]), ("format", [row.image_format for row in rows])]


def _bound(row: WritingRow) -> str:
    return f"{row.bound_by} on {row.encoders} cores" if row.bound_by == ENCODER else row.bound_by
