"""Stands in for the commands in the blocks of the documentation: appends options for few steps.

short_commands.py NAME ARGUMENTS...   # NAME is as it is called, or python-as-given, which appends nothing

Commands run in processes that ``fork_server`` forks.
"""

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from fork_server import ask

PROGRAMS = {
    "hybridiff": ["-m", "hybridiff"],
    "torchrun": ["-m", "torch.distributed.run"],
    "python": [],
    "pytest": ["-m", "pytest"],
}
GENERATE = ["--sampling.steps=2"]
PAPER = ["--sampling.steps=20", "--trainer.limit_predict_batches=1"]  # as many steps as its window needs
TRAIN = [
    "--images=8",
    "--captions=2",
    *(f"--{stage}_steps=1" for stage in ("autoencoder", "text", "denoiser", "distillation", "clip")),
]
TRAIN += ["--work_dir=runs/w", "--output=runs/o"]
EXPERIMENTS = ["--captions=1", "--only=adaptive, tolerance 0.6"]
SECTIONS = {  # of a benchmark, where its configuration has them
    "timing:": ["--timing={rounds: 1, batch: 1}"],
    "fidelity:": ["--fidelity={captions: 1, batch: 1, converged: 0}"],
    "shapes_clip: true": ["--fidelity.captions=2"],  # a distribution has two images or more
    "costs:": ["--costs.repeats=1"],
    "untrained:": ["--network.height=64", "--network.width=64"],
}
FEW_STEPS = {  # options of schedules whose defaults need more steps
    "paper": {"k": 2, "tau_cap": 4, "slope_window": 2},
    "refresh": {"first": 2},
    "async": {"warm_up": 2},
}
CORPUS = {  # options of the benchmark of a corpus, unless they leave a part out
    "--corpus.rounds": "1",
    "--corpus.steps": "1",
    "--corpus.schedule": "full",
    "--corpus.photograph": "64",
    "--corpus.images_per_prompt": "1",
    "--corpus.megabytes": "0.1",
    "--corpus.verified_megabytes": "0.1",
}


def shorten(command: list[str]) -> list[str]:
    """Arguments of python with options for few steps at their end, where they win."""
    names = [word.rstrip("/") for word in command]
    if "--help" in names or "--version" in names:
        return command
    if "pytest" in names:
        return [*command, "--collect-only"]  # they run where they belong
    if "jobs.benchmark.experiments" in names:
        return [*command, *EXPERIMENTS]
    if any(name.endswith("jobs/benchmark") for name in names):
        return [*on_few_ranks(command), *shorten_benchmark(command)]
    if any(name.endswith("jobs/train_shapes") for name in names):
        return [*command, *TRAIN]
    if "compare" in names:
        return [*command, *GENERATE]
    if "generate" in names or any(name.endswith("jobs/generate.py") for name in names):
        return [*command, *(PAPER if "paper" in names else GENERATE)]
    return command


def on_few_ranks(command: list[str]) -> list[str]:
    """A benchmark on one rank where it measures fidelity alone, for which each rank computes images of its own."""
    given = dict(pairwise(command))
    text = Path(given["--config"]).read_text() if "--config" in given else ""
    if "fidelity:" not in text or "timing:" in text or "--nproc-per-node" not in given:
        return command
    index = command.index("--nproc-per-node") + 1
    return [*command[:index], "1", *command[index + 1 :]]


def shorten_benchmark(command: list[str]) -> list[str]:
    """Options that shorten a benchmark, by what its configuration measures."""
    given = dict(pairwise(command))
    text = Path(given["--config"]).read_text() if "--config" in given else ""
    if "--corpus" in given or "corpus:" in text:
        return [f"{option}={value}" for option, value in CORPUS.items() if given.get(option) != "0"]
    if not text:
        return ["--fidelity.captions=1"]
    few = [] if "--rows" in given or "rows:" not in text else few_steps(yaml.safe_load(text)["rows"])
    return [*few, *(option for name, options in SECTIONS.items() if name in text for option in options)]


def few_steps(rows: list[dict[str, Any]]) -> list[str]:
    """Options for 8 steps, with the first row of each schedule, group size and choice of a solver."""
    first: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        fitted = {"options": FEW_STEPS[row["schedule"]]} if row["schedule"] in FEW_STEPS else {}
        first.setdefault((row["schedule"], row.get("group_size"), "scheduler" in row), row | fitted)
    return [f"--rows={json.dumps(list(first.values()))}", "--settings=[{steps: 8}]"]


if __name__ == "__main__":
    program, *arguments = sys.argv[1:]
    sys.exit(ask(shorten([*PROGRAMS[program], *arguments]) if program in PROGRAMS else arguments))
