"""The main job: a table of prompts in, a WebDataset and Parquet corpus out.

    python jobs/generate.py --config configs/demo.yaml
    torchrun --standalone --nproc-per-node 2 jobs/generate.py --config configs/demo.yaml --parallel.group_size 2

The same command again does what is left. Exit codes: 0 done, 2 a mistake in what was given.
"""

import os
import sys
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from hybridiff.config import DataConfig, JobConfig, ModelConfig, OutputConfig, ParallelConfig, SamplingConfig, UsageError

SECTIONS = {
    "model": ModelConfig,
    "sampling": SamplingConfig,
    "parallel": ParallelConfig,
    "data": DataConfig,
    "output": OutputConfig,
}


def main() -> int:
    """Parses, checks, runs."""
    try:
        config, trainer_options, dry_run = parse(sys.argv[1:])
        from hybridiff.lit import run as job_runner

        job = job_runner.prepare(config, trainer_options)
        if dry_run:
            from hybridiff.lit.report import describe_plan

            if job.launch.rank == 0:
                print(describe_plan(job))
            return 0
        job_runner.run(job)
    except UsageError as error:
        print(f"generate: error: {error}", file=sys.stderr)
        return 2
    from hybridiff.lit.report import finish

    for line in finish(job):
        print(line)
    return 0


def parse(arguments: list[str]) -> tuple[JobConfig, dict[str, Any], bool]:
    """The configuration, the trainer's options, and whether this is a dry run.

    Raises:
        UsageError: an unknown option, or a value that is not allowed.
    """
    from hybridiff.lit.trainer import add_trainer_arguments

    parser = ArgumentParser(prog="generate.py", description=__doc__, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    parser.add_argument("--dry_run", action="store_true", help="Print the plan and stop; nothing is written.")
    for name, section in SECTIONS.items():
        parser.add_class_arguments(section, name)
    add_trainer_arguments(parser)
    try:
        options = parser.parse_args(arguments)
        sections = parser.instantiate(options)
    except UsageError:
        raise
    except (ArgumentError, ValueError, TypeError, OSError) as error:
        raise UsageError(" ".join(str(error).split())) from error
    config = JobConfig(**{name: sections[name] for name in SECTIONS})
    return config, sections["trainer"].as_dict(), bool(options.dry_run)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the tokenizers' threads and ours would fight over cores
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it advises to install torchvision, which nothing here needs
    sys.exit(main())
