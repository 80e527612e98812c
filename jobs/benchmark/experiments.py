"""What the adaptive schedule rests on: which steps to leave out, how to predict them, and whether to pay errors back.

    OMP_NUM_THREADS=1 python -m jobs.benchmark.experiments --model shapes-xl
    OMP_NUM_THREADS=1 python -m jobs.benchmark.experiments --model shapes-sd3

One process draws captions that the model was not trained on, by each variant, and compares the pictures with those of plain
guidance at as many steps (16 captions: 5 minutes on one core). The captions are not those of the benchmark, so that nothing is
tuned on what it is judged by. Prints a table, and the same as JSON on the last line. Exit codes: 0 done, 2 a mistake in what was
given.
"""

import argparse
import json
import os
import sys
from collections import Counter
from typing import Any

RHYTHMS = ("SF", "SSF", "HF", "HSF")
PREDICTIONS: dict[str, dict[str, Any]] = {
    "carried on": {"damping": 0.0, "compensate": False},
    "the line": {"damping": 1.0, "compensate": False},
    "fitted": {"damping": None, "compensate": False},
    "carried on, compensated": {"damping": 0.0, "compensate": True},
    "the line, compensated": {"damping": 1.0, "compensate": True},
    "fitted, compensated": {"damping": None, "compensate": True},
}
TOLERANCES = (0.05, 0.15, 0.3, 0.6, 1.2)
# The controller that adaptive grew from, as it served its first networks: damping, order, tolerance of D, and of e_c for skips.
CONTROLLERS = tuple(
    (damping, order, tolerance, skip)
    for damping, order, first in ((1.0, 2, 0.12), (0.4, 1, 0.26))
    for tolerance, skip in ((first, None), (first, 0.12), (0.5, None), (0.5, 0.5))
)
SETTINGS = ((50, 5.0), (50, 2.5), (50, 7.5), (28, 5.0))
CAPTION_SEED = 23  # the benchmark's captions are of seed 11, docs/models.md's of 7


def main() -> int:
    """Runs all experiments on one model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("shapes-xl", "shapes-sd3"), default="shapes-xl", help="A bundled model.")
    parser.add_argument("--captions", type=int, default=16, help="How many to draw, 16 at a time.")
    parser.add_argument("--only", default="", help="Only variants whose name contains this.")
    options = parser.parse_args()
    if options.captions < 1:
        print(f"experiments: error: captions is {options.captions}; allowed: 1 or more", file=sys.stderr)
        return 2
    rows = run(options.model, options.captions, options.only)
    print(f"| {options.model} | steps, guidance | ideal speed-up on a pair | PSNR median, dB | worst |\n|---|---|---|---|---|")
    for row in rows:
        print("| {variant} | {steps}, {guidance} | {ideal:.2f} | {median:.1f} | {worst:.1f} |".format(**row))
    print(json.dumps({"model": options.model, "captions": options.captions, "rows": rows}))
    return 0


def run(model: str, captions: int, only: str) -> list[dict[str, Any]]:
    """A row for each variant at each setting."""
    import torch

    from hybridiff.schedule import Adaptive, Schedule
    from jobs.benchmark.config import SettingConfig
    from jobs.benchmark.damped import DampedLine
    from jobs.benchmark.rhythm import Rhythm
    from jobs.benchmark.subject import load_subject
    from jobs.benchmark.subject_config import SubjectConfig

    torch.set_num_threads(1)
    config = SubjectConfig(model=model, max_sequence_length=8 if model == "shapes-sd3" else None)
    subject = load_subject(config, captions, CAPTION_SEED, torch.device("cpu"))
    adaptive: dict[str, Schedule] = {f"adaptive, tolerance {t}": Adaptive(tolerance=t) for t in TOLERANCES}
    rhythms: dict[str, Schedule] = {f"{r}, {how}": Rhythm(r, **kind) for r in RHYTHMS for how, kind in PREDICTIONS.items()}
    controllers: dict[str, Schedule] = {
        f"damped line of {damping}, order {order}, tolerance {tolerance}" + (f", {skip} to skip" if skip else ""): DampedLine(
            tolerance, skip, damping, order
        )
        for damping, order, tolerance, skip in CONTROLLERS
    }
    rows = []
    for steps, guidance in SETTINGS:
        setting = SettingConfig(steps, guidance)
        variants = (rhythms | controllers if (steps, guidance) == SETTINGS[0] else {}) | adaptive
        chosen = {name: variant for name, variant in variants.items() if only in name}
        rows += compare(subject, setting, chosen, captions) if chosen else []
    return rows


def compare(subject: Any, setting: Any, variants: dict[str, Any], captions: int) -> list[dict[str, Any]]:
    """Each variant against plain guidance."""
    from jobs.benchmark.ideal import ideal_speedup
    from jobs.benchmark.metrics import psnr, summarise

    plain, _ = draw(subject, setting, "full", captions)
    rows = []
    for variant, schedule in variants.items():
        pictures, counts = draw(subject, setting, schedule, captions)
        fidelity = summarise(psnr(pictures, plain).tolist(), [1.0])
        ideal = ideal_speedup(setting.steps, counts, group_size=2, images=1)
        rows.append(
            {
                "variant": variant,
                "steps": setting.steps,
                "guidance": setting.guidance_scale,
                "ideal": ideal,
                "median": fidelity.psnr_median,
                "worst": fidelity.psnr_worst,
            }
        )
    return rows


def draw(subject: Any, setting: Any, schedule: Any, captions: int) -> tuple[Any, Counter[Any]]:
    """Pictures (captions, 3, height, width) in [0, 1], and how many steps of each kind a batch took on average."""
    import torch

    from hybridiff.parallel.reference import emulate
    from jobs.benchmark.config import RowConfig
    from jobs.benchmark.subject import twin

    pipeline = twin(subject.pipeline, RowConfig())
    handle = emulate(pipeline, schedule, group_size=1)
    pictures, counts, batches = [], Counter[Any](), range(0, captions, 16)
    for start in batches:
        images = range(start, min(start + 16, captions))
        pictures.append(pipeline(**subject.arguments(images, setting, setting.steps), output_type="pt")[0])
        counts.update(handle.trace.kinds)
    handle.remove()
    return torch.cat(pictures), Counter({kind: count / len(batches) for kind, count in counts.items()})


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    sys.exit(main())
