"""Everything that the benchmark of a corpus measures: one record, as tables for people and as JSON for programs."""

import os
from dataclasses import asdict, dataclass, field
from typing import Any

from hybridiff.corpus.background import THREADS
from hybridiff.corpus.writable import check_writable
from hybridiff.secrets import redact
from jobs.benchmark.config import CorpusConfig
from jobs.benchmark.corpus import throughput, whole_job
from jobs.benchmark.corpus.folders import OutputFolder, output_folders
from jobs.benchmark.corpus.throughput import ENCODER, VerifyRow, WritingRow, measure_verify, measure_writing
from jobs.benchmark.corpus.whole_job import JobRow, measure_jobs
from jobs.benchmark.progress import Progress
from jobs.benchmark.ranks import Ranks
from jobs.benchmark.report import Column, provenance, render


@dataclass
class CorpusReport:
    """Everything that one run measured so far, and on what.

    Args:
        config: configuration of this part.
        ranks: ranks of the whole job.
        cores: cores that this process may use.
        jobs: the whole job beside its bare pipeline loop.
        writing: shards beside a plain put.
        verify: ``verify`` beside sha256sum.
    """

    config: CorpusConfig
    ranks: int
    cores: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    jobs: list[JobRow] = field(default_factory=list)
    writing: list[WritingRow] = field(default_factory=list)
    verify: list[VerifyRow] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """Plain values, with versions and hardware, without secrets."""
        plain: dict[str, Any] = redact(asdict(self))
        return plain | provenance(self.ranks)

    def lines(self) -> list[str]:
        """The tables for people."""
        return [*_job_lines(self), *_writing_lines(self), *_verify_lines(self)]


def measure_corpus(report: CorpusReport, ranks: Ranks, progress: Progress) -> None:
    """Measures everything into the report; every rank calls it alike, and the first one's report is complete.

    The whole job runs on all ranks; the first one alone writes and verifies, and the others wait.

    Raises:
        UsageError: a url cannot be written to, or the job cannot be run with these options.
    """
    config = report.config
    with output_folders(config, ranks) as (folders, temporary):
        for folder in folders if ranks.rank == 0 else ():
            check_writable(folder.corpus)
        if config.images_per_prompt:
            _run_jobs(report, folders, temporary, ranks, progress)
        alone = folders if ranks.rank == 0 else []
        if config.megabytes:
            progress.say(f"writing shards of {config.megabytes:g} MB, {config.rounds + 1} rounds each")
            for written in measure_writing(config, alone, min(report.cores, THREADS)):
                report.writing.append(written)
                line = f"{written.written_mb_s:.1f} MB/s written, put {written.put_mb_s:.0f}, ratio {written.ratio:.2f}"
                progress.measured(f"writing {written.image_format} to {written.url}: {line}", report)
        if config.verified_megabytes:
            progress.say(f"verifying a corpus of {config.verified_megabytes:g} MB, {config.rounds + 1} rounds each")
            for verified in measure_verify(config, alone, report.cores):
                report.verify.append(verified)
                line = f"verifying {verified.image_format} at {verified.url}: {verified.verify_mb_s:.0f} MB/s"
                progress.measured(line, report)
        ranks.barrier()


def _run_jobs(report: CorpusReport, folders: list[OutputFolder], temporary: str, ranks: Ranks, progress: Progress) -> None:
    config = report.config
    progress.say(f"the whole job with {config.model}: a round to warm up, then {config.rounds}")
    rows: dict[tuple[int, str], JobRow] = {}
    for key, row in measure_jobs(config, folders, temporary, ranks):
        rows[key] = row
        report.jobs = list(rows.values())
        number = f"round {len(row.rounds)} of {config.rounds}, {row.image_format} to {row.url}"
        progress.measured(f"{number}: {row.images_per_s:.3f} images/s, {row.ratio:.3f} of the bare pipeline", report)


def _job_lines(report: CorpusReport) -> list[str]:
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
        (f"ratio (target {whole_job.TARGET})", [f"{row.ratio:.3f}" for row in rows]),
        ("rounds", [f"{min(row.rounds):.2f} to {max(row.rounds):.2f}" for row in rows]),
        ("by CPU time", [f"{row.cpu_ratio:.3f}" for row in rows]),
        ("tail s", [f"{row.tail_s:.2f}" for row in rows]),
    ]
    return [title, *render(columns), ""]


def _writing_lines(report: CorpusReport) -> list[str]:
    rows = report.writing
    if not rows:
        return []
    side = report.config.photograph
    title = f"one shard of synthetic photographs, {side} x {side}, MB/s; put: fsspec's, of local files until they are on the disk"
    columns: list[Column] = [
        *_names(rows),
        ("MB", [f"{row.megabytes:.0f}" for row in rows]),
        ("encode, per CPU s", [f"{row.encode_mb_s:.1f}" for row in rows]),
        ("encode + tar + Parquet + upload", [f"{row.written_mb_s:.1f}" for row in rows]),
        ("tar + Parquet + upload", [f"{row.stored_mb_s:.0f}" for row in rows]),
        ("put", [f"{row.put_mb_s:.0f}" for row in rows]),
        (f"ratio (target {throughput.TARGET})", [f"{row.ratio:.2f}" for row in rows]),
        (f"encoded before (target {throughput.TARGET})", [f"{row.stored_ratio:.2f}" for row in rows]),
        ("bound by", [_bound(row) for row in rows]),
        ("of bound", [f"{row.of_bound:.0%}" for row in rows]),
    ]
    return [title, *render(columns), ""]


def _verify_lines(report: CorpusReport) -> list[str]:
    rows = report.verify
    if not rows:
        return []
    columns: list[Column] = [
        *_names(rows),
        ("MB", [f"{row.megabytes:.0f}" for row in rows]),
        ("verify", [f"{row.verify_mb_s:.0f}" for row in rows]),
        ("sha256sum", ["" if row.sha256sum_mb_s is None else f"{row.sha256sum_mb_s:.0f}" for row in rows]),
        ("ratio", ["" if row.ratio is None else f"{row.ratio:.2f}" for row in rows]),
        ("by CPU time", ["" if row.cpu_ratio is None else f"{row.cpu_ratio:.2f}" for row in rows]),
    ]
    return [f"verify on {rows[0].processes} cores, MB/s; sha256sum: one process", *render(columns), ""]


def _names(rows: list[JobRow] | list[WritingRow] | list[VerifyRow]) -> list[Column]:
    return [("url", [row.url for row in rows]), ("format", [row.image_format for row in rows])]


def _bound(row: WritingRow) -> str:
    return f"{row.bound_by} on {row.encoders} cores" if row.bound_by == ENCODER else row.bound_by
