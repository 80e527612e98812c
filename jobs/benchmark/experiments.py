"""What the adaptive schedule rests on: which steps to leave out, how to extrapolate them, and whether to compensate errors.

    OMP_NUM_THREADS=1 python -m jobs.benchmark.experiments --model shapes-xl
    OMP_NUM_THREADS=1 python -m jobs.benchmark.experiments --model shapes-sd3

One process generates captions that were held out from training, with each variant, and compares the images with those of plain
guidance at as many steps (16 captions: 5 minutes on one core). The captions are not those of the benchmark, so that nothing is
tuned on what it is judged by. Prints each row as soon as it is measured, and all of them as JSON on the last line, with
"complete": false after Ctrl-C or SIGTERM. Exit codes: 0 done, 2 a mistake in the options, 130 Ctrl-C, 143 SIGTERM.
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from jobs.benchmark.progress import Interrupted, interruptible

PATTERNS = ("SF", "SSF", "HF", "HSF")
PREDICTIONS: dict[str, dict[str, Any]] = {
    "last value": {"damping": 0.0, "compensate": False},
    "line": {"damping": 1.0, "compensate": False},
    "fitted line": {"damping": None, "compensate": False},
    "last value, compensated": {"damping": 0.0, "compensate": True},
    "line, compensated": {"damping": 1.0, "compensate": True},
    "fitted line, compensated": {"damping": None, "compensate": True},
}
TOLERANCES = (0.05, 0.15, 0.3, 0.6, 1.2)
# The controller that adaptive grew from, as set for its first networks: damping, order, tolerance of D, and of e_c for skips.
CONTROLLERS = tuple(
    (damping, order, tolerance, skip)
    for damping, order, first in ((1.0, 2, 0.12), (0.4, 1, 0.26))
    for tolerance, skip in ((first, None), (first, 0.12), (0.5, None), (0.5, 0.5))
)
SETTINGS = ((50, 5.0), (50, 2.5), (50, 7.5), (28, 5.0))
CAPTION_SEED = 23  # the benchmark's captions have seed 11, those of docs/models.md 7


def main() -> int:
    """Runs all experiments on one model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("shapes-xl", "shapes-sd3"), default="shapes-xl", help="bundled model")
    parser.add_argument("--captions", type=int, default=16, help="number of captions, generated 16 at a time")
    parser.add_argument("--only", default="", help="only variants whose name contains this")
    options = parser.parse_args()
    if options.captions < 1:
        print(f"experiments: error: captions is {options.captions}; allowed: 1 or more", file=sys.stderr)
        return 2
    print(
        f"| {options.model} | steps, guidance | ideal speed-up on a pair | PSNR median, dB | worst |\n|---|---|---|---|---|",
        flush=True,
    )
    rows: list[dict[str, Any]] = []
    exit_code = 0
    try:
        with interruptible():
            for row in run(options.model, options.captions, options.only):
                rows.append(row)
                line = "| {variant} | {steps}, {guidance} | {ideal:.2f} | {median:.1f} | {worst:.1f} |".format(**row)
                print(line, flush=True)
    except Interrupted as error:
        exit_code = error.exit_code
    print(json.dumps({"complete": not exit_code, "model": options.model, "captions": options.captions, "rows": rows}), flush=True)
    return exit_code


def run(model: str, captions: int, only: str) -> Iterator[dict[str, Any]]:
    """A row for each variant at each setting, as soon as it is measured."""
    import torch

    from hybridiff.schedule import Adaptive, Schedule
    from jobs.benchmark.config import NetworkConfig, SettingConfig
    from jobs.benchmark.experimental_schedules import DampedLine, FixedPattern
    from jobs.benchmark.networks import load_network

    torch.set_num_threads(1)
    config = NetworkConfig(model=model, max_sequence_length=8 if model == "shapes-sd3" else None)
    network = load_network(config, captions, CAPTION_SEED, torch.device("cpu"))
    adaptive: dict[str, Schedule] = {f"adaptive, tolerance {t}": Adaptive(tolerance=t) for t in TOLERANCES}
    patterns: dict[str, Schedule] = {
        f"{pattern}, {name}": FixedPattern(pattern, **options) for pattern in PATTERNS for name, options in PREDICTIONS.items()
    }
    controllers: dict[str, Schedule] = {
        f"damped line of {damping}, order {order}, tolerance {tolerance}" + (f", {skip} to skip" if skip else ""): DampedLine(
            tolerance, skip, damping, order
        )
        for damping, order, tolerance, skip in CONTROLLERS
    }
    for steps, guidance in SETTINGS:
        setting = SettingConfig(steps, guidance)
        variants = (patterns | controllers if (steps, guidance) == SETTINGS[0] else {}) | adaptive
        chosen = {name: variant for name, variant in variants.items() if only in name}
        if chosen:
            yield from compare(network, setting, chosen, captions)


def compare(network: Any, setting: Any, variants: dict[str, Any], captions: int) -> Iterator[dict[str, Any]]:
    """Each variant beside plain guidance."""
    from jobs.benchmark.costs import ideal_speedup
    from jobs.benchmark.fidelity import psnr, summarise

    plain, _ = generate(network, setting, "full", captions)
    for variant, schedule in variants.items():
        images, counts = generate(network, setting, schedule, captions)
        similarity = summarise(psnr(images, plain).tolist(), [1.0])
        yield {
            "variant": variant,
            "steps": setting.steps,
            "guidance": setting.guidance_scale,
            "ideal": ideal_speedup(setting.steps, counts, group_size=2, images=1),
            "median": similarity.psnr_median,
            "worst": similarity.psnr_worst,
        }


def generate(network: Any, setting: Any, schedule: Any, captions: int) -> tuple[Any, Counter[Any]]:
    """Images (captions, 3, height, width) in [0, 1], and the steps of each kind of a batch, on average."""
    import torch

    from hybridiff.parallel.reference import emulate
    from jobs.benchmark.config import RowConfig
    from jobs.benchmark.pipelines import copy_pipeline

    pipeline = copy_pipeline(network.pipeline, RowConfig())
    handle = emulate(pipeline, schedule, group_size=1)
    images, counts, batches = [], Counter[Any](), range(0, captions, 16)
    for start in batches:
        numbers = range(start, min(start + 16, captions))
        images.append(pipeline(**network.arguments(numbers, setting, setting.steps), output_type="pt")[0])
        counts.update(handle.trace.kinds)
    handle.remove()
    return torch.cat(images), Counter({kind: count / len(batches) for kind, count in counts.items()})


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    sys.exit(main())
