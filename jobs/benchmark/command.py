"""Every schedule and placement in one run: speed, traffic, fidelity, side by side.

    python jobs/benchmark --config configs/bench/smoke.yaml
    torchrun --standalone --nproc-per-node 2 jobs/benchmark --config configs/bench/compute.yaml
    torchrun --standalone --nproc-per-node 2 jobs/benchmark --sinks

With --sinks: how fast images are written and checked, instead of schedules.

Prints a table, and the same as JSON on the last line. Exit codes: 0 done, 2 a mistake in what was given, 130 interrupted.
"""

import json
import sys
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser

from hybridiff.errors import UsageError
from hybridiff.secrets import redact
from jobs.benchmark.config import BenchmarkConfig


def main() -> int:
    """Parses, checks, measures, prints."""
    try:
        config = parse(sys.argv[1:])
        measure(config)
    except UsageError as error:
        print(redact(f"benchmark: error: {' '.join(str(error).split())}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("benchmark: interrupted", file=sys.stderr)
        return 130
    return 0


def parse(arguments: list[str]) -> BenchmarkConfig:
    """The arguments of the command line and of the YAML files that it names.

    Raises:
        UsageError: an unknown option, or a value that is not allowed.
    """
    description = "Every schedule and placement in one run: speed, traffic and fidelity, side by side."
    parser = ArgumentParser(prog="benchmark.py", description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    parser.add_class_arguments(BenchmarkConfig)
    try:
        options = dict(vars(parser.instantiate(parser.parse_args(defaults_first(arguments)))))
        del options["config"]
        config = BenchmarkConfig(**options)
    except UsageError:
        raise
    except (ArgumentError, ValueError, TypeError, OSError) as error:
        raise UsageError(" ".join(str(error).split())) from error
    return config


def defaults_first(arguments: list[str]) -> list[str]:
    """The arguments with a bare --sinks spelled out, in front, so that a file's and other options of its section hold."""
    following = [*arguments[1:], "--"]
    bare = [i for i, (one, after) in enumerate(zip(arguments, following, strict=False)) if one == "--sinks" and after[:2] == "--"]
    return [*(["--sinks={}"] if bare else []), *(one for i, one in enumerate(arguments) if i not in bare)]


def measure(config: BenchmarkConfig) -> None:
    """Runs the benchmark on all ranks; the first one prints and writes."""
    import torch

    from hybridiff.cluster.launch import detect_launch
    from jobs.benchmark.picture import check_picture, draw_picture
    from jobs.benchmark.report import Report
    from jobs.benchmark.run import run
    from jobs.benchmark.sinks.run import run_sinks
    from jobs.benchmark.world import enter_world
    from jobs.benchmark.written import check_writable

    sinks, subject = config.sinks, None if config.sinks else config.subject
    files = {"picture": None if sinks else config.picture, "report": config.report}
    check_picture(files["picture"])
    torch.set_num_threads(subject.threads if subject else 1)
    launch = detect_launch("auto", 1)
    device = sinks.device if sinks else subject.device if subject else "cpu"
    world = enter_world(device, launch.rank, launch.world_size, launch.local_world_size)
    try:
        check_writable(files, world)
        report = run_sinks(sinks, world) if sinks else run(config, world)
    finally:
        world.leave()
    if world.rank:
        return
    record = json.dumps(report.record())
    print("\n".join([*report.lines(), record]), flush=True)  # first, as it may have taken hours
    try:
        if config.report is not None:
            Path(config.report).write_text(record + "\n")
        if config.picture is not None and isinstance(report, Report):
            draw_picture(report, config.picture)
    except OSError as error:  # what was writable before may not be hours later
        raise UsageError(f"the results are above, but a file could not be written: {error}") from error
