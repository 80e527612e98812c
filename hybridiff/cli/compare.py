"""``hybridiff compare``: what a job's schedule gains and what it costs, on a sample of the job's own rows.

    hybridiff compare --config job.yaml --rows 200
    hybridiff compare --config job.yaml --parallel.schedule.tolerance 0.5 --require "psnr.p05 >= 35"

Takes all options of hybridiff generate. The sample, chosen by the keys' hash, is generated with the job's schedule and with full,
from the same prompts, seeds and noise, on the same ranks; the two corpora are compared row by row. Everything goes into -o, by
default the job's output.url with -compare at its end: a corpus for each, prompts.parquet, evaluation/ and its report.html. The
job's own output is not touched. The same command again resumes. Prints three lines; all else goes to standard error. Exit codes:
those of generate and evaluate: 0 done, 1 an error, 2 a mistake in what was given, 3 too many rows failed, 4 --require is not met,
85 stopped by a signal: run it again, 130 interrupted.
"""

import argparse
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from hybridiff.cli import Parser, say, whole
from hybridiff.cluster.exit_codes import DONE, INTERRUPTED, NOT_MET
from hybridiff.cluster.launch import has_parent, in_slurm_step
from hybridiff.errors import UsageError, access_error, require
from hybridiff.secrets import refuse_credentials

if TYPE_CHECKING:
    from hybridiff.config import JobConfig
    from hybridiff.storage.folder import Folder

ROWS = 200
BASELINE = "full"
NAME = "compare"  # of the result
PROMPTS = "prompts.parquet"
LARGEST_PROMPTS = 1 << 30  # bytes of that file
SHARDS = 8  # of a sample, so that groups share it and a second start does not begin anew
# What the PSNR of 19 of 20 images says to the eye, in dB; a rule of thumb, as for lossy formats of images
IN_WORDS = {
    float("inf"): "19 of 20 images or more are those of full, pixel by pixel",
    40.0: "19 of 20 images can't be told from those of full by eye",
    30.0: "19 of 20 images differ from those of full in details that are seen side by side",
    20.0: "19 of 20 images are like those of full, with details that visibly differ",
    float("-inf"): "more than 1 of 20 images differs from that of full at first sight",
}
PASSED_ON = ("metrics", "scores", "extractors", "require")  # options of evaluate


def main(arguments: list[str]) -> int:
    """Parses, checks, generates twice, evaluates, and prints three lines."""
    own = parser()
    options, rest = own.parse_known_args(arguments)
    for word in rest:
        message = own.unknown_option(word) if word.startswith("--") and "." not in word.partition("=")[0] else ""
        if "did you mean" in message:
            raise UsageError(message)
    if not rest:
        raise UsageError(f"no job is given; {own.usage_line()}")
    from hybridiff.cli.config import parse
    from hybridiff.cli.local_paths import check_paths

    given = parse(rest)
    flag = next((name for name in ("dry_run", "retry_failed", "only") if getattr(given, name)), None)
    require(flag is None, f"--{flag}", "given", "options of a job alone")
    output = options.output or f"{given.config.output.url.rstrip('/')}-compare"
    refuse_credentials("-o", output)
    check_paths(given.config)
    try:
        return compare(given.config, options, output)
    except KeyboardInterrupt:
        return INTERRUPTED


def parser() -> Parser:
    """The parser of the options that are this command's own."""
    found = Parser(NAME, __doc__)
    add = found.add_argument
    add("--rows", type=whole(2), default=ROWS, metavar="N", help=f"images of the sample (default: {ROWS})")
    add("-o", "--output", metavar="DIR", help="directory of the comparison; by default output.url with -compare at its end")
    add("--metrics", metavar="LIST", help="as of hybridiff evaluate (default: psnr,ssim)")
    add("--scores", metavar="LIST", help="as of hybridiff evaluate")
    add("--extractors", metavar="FILE", help="as of hybridiff evaluate")
    add("--require", metavar="CONDITION", help="condition on the result, such as 'psnr.p05 >= 35', else exit code 4")
    found.takes_job()
    return found


def compare(config: "JobConfig", options: argparse.Namespace, output: str) -> int:
    """Generates both samples, evaluates the pair and prints three lines; the exit code of what did not end well.

    Args:
        config: the job.
        options: this command's options.
        output: directory of the comparison.

    Raises:
        UsageError: a mistake in the options, before anything is written.
    """
    from hybridiff.evaluate.networks.extractors import needed, read_extractors
    from hybridiff.evaluate.request import Request
    from hybridiff.storage.folder import Folder

    require(not has_parent() and not in_slurm_step(), "the launcher", "torchrun or srun", "none: compare starts its own ranks")
    name = config.parallel.schedule.name
    require(name != BASELINE, "parallel.schedule", name, "another schedule, as this is what it would be compared with")
    metrics, scores = (tuple(filter(None, (given or "").split(","))) for given in (options.metrics, options.scores))
    request = Request((output,), output, metrics, scores, options.extractors, require=options.require)
    needed(read_extractors(request.extractors), request.wants())
    folder = Folder(output, "-o" if options.output else "output.url")
    jobs = _sampled_jobs(config, options.rows, folder)
    for number, (job, url) in enumerate(jobs, 1):
        say(
            [f"compare: {number} of 3: {options.rows} rows or fewer with {job['parallel']['schedule']['class_path']}"], sys.stderr
        )
        code = _run(["generate", f"--config={json.dumps(job)}"])
        if code != DONE:
            say([f"compare: generating {url} has ended with exit code {code}"], sys.stderr)
            return code
    say(["compare: 3 of 3: evaluation"], sys.stderr)
    passed = [f"--{option}={value}" for option in PASSED_ON if (value := getattr(options, option)) is not None]
    code = _run(["evaluate", jobs[0][1], f"--against={jobs[1][1]}", f"--output={output}", f"--name={NAME}", *passed])
    if code in (DONE, NOT_MET):
        say(_lines(folder, jobs[0][1], jobs[1][1]), sys.stdout)
    return code


def _sampled_jobs(config: "JobConfig", rows: int, folder: "Folder") -> list[tuple[dict[str, Any], str]]:
    """The two jobs as mappings with their urls; checks them, then writes the sample's prompts."""
    from hybridiff.cli.config import as_mapping
    from hybridiff.config import DataConfig
    from hybridiff.runner.job import image_size, prepare
    from hybridiff.schedule import Full

    root = folder.root if "://" not in folder.url else folder.url.rstrip("/")
    urls = [f"{root}/{name}" for name in (config.parallel.schedule.name, BASELINE)]
    here = dataclasses.replace(config, output=dataclasses.replace(config.output, url=urls[0]))
    job = prepare(here, writes=False)
    each = config.sampling.images_per_prompt
    table = job.plan.sampled(max(2, -(-rows // each)))
    images = table.num_rows * each
    require(images >= 2, "data.prompts", f"{images} images", "2 or more, which can be compared")
    shard = min(config.output.images_per_shard(*image_size(config.sampling, job.facts)), -(-images // SHARDS))
    shard = -(-shard // config.data.batch_size) * config.data.batch_size
    how = {name: getattr(config.data, name) for name in ("max_text", "max_row_group", "batch_size", "lease_s")}
    data = DataConfig(prompts=[f"{root}/{PROMPTS}"], key_column="key", empty_prompts="allow", **how)
    made = []
    for url, schedule in zip(urls, (config.parallel.schedule, Full()), strict=True):
        parallel = dataclasses.replace(config.parallel, schedule=schedule)
        output = dataclasses.replace(config.output, url=url, shard_size=shard, shard_bytes=None)
        made.append((as_mapping(dataclasses.replace(config, data=data, parallel=parallel, output=output)), url))
    _write_prompts(folder, table)
    return made


def _write_prompts(folder: "Folder", table: Any) -> None:
    """Writes the sample's prompts, unless they are there already.

    Raises:
        UsageError: the directory holds another sample, or can't be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    empty = [name for name in ("seed", "negative_prompt") if table[name].null_count == table.num_rows]
    table = table.drop_columns(empty)
    pq.write_table(table, file)
    try:
        there = folder.read(PROMPTS, most=LARGEST_PROMPTS)
    except (FileNotFoundError, NotADirectoryError):
        there = None
    if there is not None:
        try:
            same = there == file.getvalue() or pq.read_table(io.BytesIO(there)).equals(table)
        except pa.ArrowInvalid:
            same = False
        require(
            same, "-o", folder.url, f"another directory, as its {PROMPTS} holds other rows, or the options that it was made with"
        )
        return
    try:
        folder.publish(PROMPTS, file.getvalue())
    except OSError as error:
        message = f"-o is {folder.url}, which can't be written ({error}); allowed: a directory that can be"
        raise access_error(message, error) from error


def _run(arguments: Sequence[str]) -> int:
    """Runs a command with its own ranks; signals that end this process are passed on, and its output goes to standard error."""
    process = subprocess.Popen([sys.executable, "-m", "hybridiff", *arguments], stdout=sys.stderr, env=dict(os.environ))

    def pass_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGUSR1)}
    interrupted = 0
    try:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:  # the terminal sends it to the command too, which ends in its own way
                interrupted += 1
                if interrupted > 2:
                    process.kill()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _lines(folder: "Folder", url: str, baseline: str) -> list[str]:
    """Speed, harm and the page, a line each."""
    from hybridiff.corpus.corpus import Corpus
    from hybridiff.corpus.layout import EVALUATIONS
    from hybridiff.corpus.progress import read_progress
    from hybridiff.evaluate.report.report_page import REPORT, speed_up
    from hybridiff.storage.folder import parse_json

    document = parse_json(folder.read(f"{EVALUATIONS}/{NAME}.json"))
    rates = [read_progress(Corpus(one)).group_rate for one in (url, baseline)]
    name = url.rpartition("/")[2]
    steps = speed_up(document)
    computed = f"; by the steps that it computes {steps:.2f} times" if steps else ""
    if rates[0] and rates[1]:
        seconds = " and ".join(f"{1 / rate:.3g} s" for rate in rates if rate)
        speed = f"{name} is {rates[0] / rates[1]:.2f} times as fast as {BASELINE} ({seconds} an image){computed}"
    else:
        speed = f"{name}: no time was recorded{computed}"
    return [f"speed:  {speed}", f"harm:   {_harm(document)}", f"page:   {folder.path(REPORT)}"]


def _harm(document: dict[str, Any]) -> str:
    """How far the images are from those of the baseline, in words and figures."""
    said = []
    metrics, rows = document["metrics"], document["rows"]
    for name, figures in metrics.items():
        unit = " dB" if name == "psnr" else ""
        if "p05" in figures:
            text = (
                f"{name} {_number(figures['median'])}{unit} in the median, {_number(figures['p05'])}{unit} at the 5th percentile"
            )
        else:
            text = f"{name} {_number(figures.get('value'))}"
        said.append(text)
    failed = f", {rows['failed']} failed" if rows.get("failed") else ""
    return f"{_in_words(metrics)}{'; '.join(said)} ({rows.get('pairs', rows['corpus'])} pairs{failed})"


def _in_words(metrics: dict[str, Any]) -> str:
    """What the PSNR says, if it was computed."""
    lowest = metrics.get("psnr", {}).get("p05")
    if lowest is None:
        return ""
    return next(f"{words}: " for least, words in IN_WORDS.items() if float(lowest) >= least)


def _number(value: Any) -> str:
    return "not computed" if value is None else f"{float(value):.4g}"
