"""``hybridiff evaluate``: how good a corpus is, against another corpus, against real images, or row by row.

    hybridiff evaluate runs/fast --against runs/full
    hybridiff evaluate runs/fast --against real:coco/val2014 --metrics fid,kid --extractors extractors.yaml
    hybridiff evaluate runs/fast --scores clip,nsfw --require "images.black == 0 and nsfw.max < 0.5"

Results go into evaluation/ in the corpus, or in the directory of -o: NAME.json (all figures), NAME.parquet (a row per image,
joined by key). The same command again resumes. Exit codes: 0 done; 1 an error; 2 a mistake in what was given; 4 --require is not
met; 85 stopped by SIGTERM, SIGINT or SIGUSR1: run it again; 130 interrupted at once.
"""

import argparse
import gc
import json
import sys
from typing import TYPE_CHECKING

from hybridiff.cli import Parser, say, whole
from hybridiff.cluster.launch import launching_process
from hybridiff.cluster.signals import RESUMABLE, ExitSignals
from hybridiff.config import TrainerConfig
from hybridiff.evaluate.request import METRICS, SCORES, Request

if TYPE_CHECKING:
    from hybridiff.runner.evaluation import Evaluated


def main(arguments: list[str]) -> int:
    """Parses, checks, evaluates, and prints the figures."""
    launcher = launching_process()  # before the libraries are loaded, meanwhile it may end
    with ExitSignals(lambda line: say([f"evaluate: {line}"], sys.stderr)) as signals:
        options = parser().parse_args(arguments)
        ended = _evaluate(requested(options), trainer_config(options), signals, launcher)
    say(ended.lines, sys.stdout)
    if ended.results:
        say([json.dumps({"results": [result.path for result in ended.results], "required": ended.code == 0})], sys.stdout)
    return ended.code


def _evaluate(request: Request, trainer: TrainerConfig, signals: ExitSignals, launcher: int | None) -> "Evaluated":
    from hybridiff.evaluate.prepared import prepare

    prepared = prepare(request)
    from hybridiff.runner.evaluation import evaluate  # not before everything is known to be right: this takes seconds

    gc.freeze()  # of what was loaded nothing will go
    gc.enable()
    signals.words = f"; {RESUMABLE}"
    return evaluate(prepared, trainer, launcher)


def requested(options: argparse.Namespace) -> Request:
    """The options as a checked request.

    Raises:
        UsageError: names the option.
    """
    return Request(
        corpora=tuple(options.corpora),
        against=options.against,
        metrics=_names(options.metrics),
        scores=_names(options.scores),
        extractors=options.extractors,
        join=options.join,
        allow_unmatched=options.allow_unmatched,
        name=options.name,
        output=options.output,
        batch_size=options.batch_size,
        bootstrap=options.bootstrap,
        seed=options.seed,
        require=options.require,
    )


def trainer_config(options: argparse.Namespace) -> TrainerConfig:
    """The options of Lightning's Trainer."""
    names = ("accelerator", "devices", "num_nodes")
    given = {name: getattr(options, f"trainer.{name}") for name in names}
    return TrainerConfig(**given, enable_progress_bar=options.progress)


def parser() -> Parser:
    """The parser of this command."""
    found = Parser("evaluate", __doc__)
    add = found.add_argument
    add("corpora", metavar="CORPUS", nargs="+", help="directory of a corpus: a path or any fsspec url")
    add("--against", metavar="REFERENCE", help="a corpus, or real: and a folder, glob, tars or Parquet files of images")
    add("--metrics", metavar="LIST", help=f"of {', '.join(METRICS)}; by default psnr,ssim where REFERENCE is a corpus")
    add("--scores", metavar="LIST", help=f"of {', '.join(SCORES)}, or module:Class of your own")
    add("--extractors", metavar="FILE", help="YAML: where the networks are that metrics and scores need")
    add("--join", default="key", metavar="key|prompt", help="what pairs rows of CORPUS and REFERENCE (default: key)")
    add("--allow_unmatched", action="store_true", help="leave out rows that have no partner, in place of refusing them")
    add("--name", help="name of the result; by default the last part of REFERENCE, or scores without one")
    add("-o", "--output", metavar="DIR", help="directory of the results; by default each corpus's own")
    add("--require", metavar="CONDITION", help="condition on the result, such as 'psnr.p05 >= 35 and fid <= 5', else exit code 4")
    add("--batch_size", type=whole(1), default=32, metavar="N", help="images that a network gets at once (default: 32)")
    add("--bootstrap", type=whole(1), default=1000, metavar="N", help="resamples for confidence intervals (default: 1000)")
    add("--seed", type=whole(0), default=0, metavar="N", help="seed of the resamples and of the subsets of kid (default: 0)")
    add("--trainer.accelerator", default="auto", metavar="NAME", help="auto, cpu, gpu, or another of Lightning's")
    add("--trainer.devices", default="auto", metavar="N", help="ranks on each node; auto: as many as were started, else one")
    add("--trainer.num_nodes", type=whole(1), default=1, metavar="N", help="number of nodes")
    add("--no_progress", dest="progress", action="store_false", help="show no progress bar")
    return found


def _names(given: str | None) -> tuple[str, ...]:
    """A list of names, each once."""
    return tuple(dict.fromkeys(name.strip() for name in (given or "").split(",") if name.strip()))
