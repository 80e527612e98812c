"""Every schedule and placement in one run: speed, traffic and fidelity, side by side.

    python jobs/benchmark --config configs/bench/smoke.yaml
    torchrun --standalone --nproc-per-node 2 jobs/benchmark --config configs/bench/compute.yaml
    torchrun --standalone --nproc-per-node 2 jobs/benchmark --corpus

With --corpus: how fast a corpus is written and verified, instead of schedules.

Prints a line as soon as a row is measured; at the end tables, and the same as JSON on the last line. An interrupted run prints
what it has measured, with "complete": false; the file of the option ``report`` always holds what has been measured so far. Exit
codes: 0 done, 1 a file could not be written at the end, 2 a mistake in the options, 130 Ctrl-C, 143 SIGTERM.
"""

import re
import sys

from jsonargparse import ArgumentError, ArgumentParser

from hybridiff.errors import StorageError, UsageError
from hybridiff.secrets import redact
from jobs.benchmark.config import BenchmarkConfig
from jobs.benchmark.progress import Interrupted, Progress, interruptible


def main() -> int:
    """Parses, checks, measures, prints."""
    try:
        with interruptible():
            run(parse(sys.argv[1:]))
    except (UsageError, StorageError) as error:
        print(redact(f"benchmark: error: {' '.join(str(error).split())}"), file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except Interrupted as error:
        print(f"benchmark: interrupted by {error}", file=sys.stderr)
        return error.exit_code
    return 0


def parse(arguments: list[str]) -> BenchmarkConfig:
    """The configuration from the command line and the YAML files that it names.

    Raises:
        UsageError: an unknown option, or a value that is not allowed.
    """
    description = "Every schedule and placement in one run: speed, traffic and fidelity, side by side."
    parser = ArgumentParser(prog="benchmark", description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    parser.add_class_arguments(BenchmarkConfig)
    try:
        options = dict(vars(parser.instantiate(parser.parse_args(expand_corpus(arguments)))))
        del options["config"]
        config = BenchmarkConfig(**options)
    except UsageError:
        raise
    except (ArgumentError, ValueError, TypeError, OSError) as error:
        raise UsageError(_explain(" ".join(str(error).split()))) from error
    return config


def _explain(error: str) -> str:
    """A message of jsonargparse about a choice in words; any other as it is."""
    names, allowed = re.findall(r'Parser key "([^"]+)"', error), re.search(r"Literal\[(.*?)\]", error)
    given = re.search(r"(?:Given value|Got value): ?(\S+)", error)
    if not (names and given and allowed):
        return error
    return f"{'.'.join(names)} is {given[1].strip(chr(39))!r}; allowed: {allowed[1].replace(chr(39), '')}"


def expand_corpus(arguments: list[str]) -> list[str]:
    """Moves a bare --corpus to the front as --corpus={}, so that a file's and other options of its section hold."""
    following = [*arguments[1:], "--"]
    bare = [
        i for i, (one, after) in enumerate(zip(arguments, following, strict=False)) if one == "--corpus" and after[:2] == "--"
    ]
    return [*(["--corpus={}"] if bare else []), *(one for i, one in enumerate(arguments) if i not in bare)]


def run(config: BenchmarkConfig) -> None:
    """Runs the benchmark on all ranks; the first one prints and writes.

    Raises:
        UsageError: an option does not fit.
        StorageError: results were printed, and a file could not be written.
    """
    import torch

    from hybridiff.cluster.launch import detect_launch
    from jobs.benchmark.corpus.report import CorpusReport, measure_corpus
    from jobs.benchmark.measurement import measure
    from jobs.benchmark.plot import check_plot, write_plot
    from jobs.benchmark.ranks import check_writable, join_ranks
    from jobs.benchmark.report import Report

    corpus, network = config.corpus, None if config.corpus else config.network
    plot = None if corpus else config.plot
    check_plot(plot)
    torch.set_num_threads(network.threads if network else 1)
    launch = detect_launch("auto", 1)
    option, device = ("corpus.device", corpus.device) if corpus else ("network.device", network.device if network else "cpu")
    ranks = join_ranks(option, device, launch.rank, launch.world_size, launch.local_world_size)
    progress = Progress(config.report, is_log_rank=ranks.rank == 0)
    report: Report | CorpusReport = CorpusReport(corpus, ranks.size) if corpus else Report(config, ranks.size)
    try:
        check_writable({"plot": plot, "report": config.report}, ranks)
        try:
            if isinstance(report, CorpusReport):
                measure_corpus(report, ranks, progress)
            else:
                measure(report, ranks, progress)
        except UsageError:
            raise
        except BaseException:
            progress.finish(report, complete=False)
            raise
    finally:
        ranks.leave()
    progress.finish(report, complete=True)
    if plot is not None and isinstance(report, Report) and ranks.rank == 0:
        try:
            write_plot(report, plot)
        except OSError as error:
            raise StorageError(f"the results are above, but the plot could not be written: {error}") from error
