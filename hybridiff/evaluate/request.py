"""What is asked for: metrics and scores with what they need, and the options of an evaluation, checked."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from hybridiff.errors import UsageError, require, require_choice
from hybridiff.evaluate.requirement import Requirement, parse
from hybridiff.secrets import refuse_credentials

Join = Literal["key", "prompt"]
REAL = "real:"  # begins the url of a reference that is no corpus
_NAME = re.compile(r"[A-Za-z0-9_][\w.+-]{0,99}")
_ROW_COUNTS = ("corpus", "failed", "truncated")
_MATCH_COUNTS = ("reference", "matched", "pairs", "only_in_corpus", "only_in_reference", "other_seed", "failed_in_reference")
_IMAGE_COUNTS = ("images", "black", "flat", "nan", "duplicates_exact", "duplicates_near", "prompts_repeated")
_FIGURES = ("mean", "p01", "p05", "median", "p95", "min", "max", "rows", "infinite")
OWN_SCORE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Metric:
    """A metric.

    Args:
        pairs: whether it compares pairs of images, and not two distributions.
        extractor: name of the extractor that it needs.
        least: images of each side that it needs.
        figures: names of its values in a result, if they are other ones than its own.
    """

    pairs: bool
    extractor: str | None = None
    least: int = 1
    figures: tuple[str, ...] = ()


METRICS = {
    "psnr": Metric(True),
    "ssim": Metric(True),
    "lpips": Metric(True, "lpips"),
    "fid": Metric(False, "inception", 2),
    "kid": Metric(False, "inception", 2),
    "prdc": Metric(False, "inception", 6, ("precision", "recall", "density", "coverage")),
    "fd_dinov2": Metric(False, "dinov2", 2),
    "cmmd": Metric(False, "clip"),
}
SCORES = {"clip": ("clip",), "aesthetic": ("clip", "aesthetic"), "nsfw": ("nsfw",), "embeddings": ("clip",)}  # and extractors
RESERVED = frozenset({*METRICS, *(one for metric in METRICS.values() for one in metric.figures), *SCORES, "rows", "images"})
SMALLEST_SSIM = 11  # pixels of its window


@dataclass(frozen=True)
class Request:
    """The options of ``hybridiff evaluate``.

    Args:
        corpora: directories of the corpora.
        against: the reference: a corpus, or ``real:`` and a folder, glob, tars or Parquet files of images.
        metrics: names of metrics; none given: psnr and ssim where there is a corpus to compare with.
        scores: names of scores, or ``module:Class``.
        extractors: path of the YAML file that describes extractors.
        join: what pairs rows: key or prompt.
        allow_unmatched: whether rows without a partner are left out.
        name: name of the result.
        output: directory of results; None for that of each corpus.
        batch_size: images that a network gets at once.
        bootstrap: resamples of rows for confidence intervals.
        seed: seed of the resamples and of KID's subsets.
        require: condition on the result.
    """

    corpora: tuple[str, ...]
    against: str | None = None
    metrics: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()
    extractors: str | None = None
    join: Join = "key"
    allow_unmatched: bool = False
    name: str | None = None
    output: str | None = None
    batch_size: int = 32
    bootstrap: int = 1000
    seed: int = 0
    require: str | None = None

    def __post_init__(self) -> None:
        require(bool(self.corpora), "CORPUS", self.corpora, "one corpus or more")
        for option, url in (*(("CORPUS", url) for url in self.corpora), ("--against", self.against), ("-o", self.output)):
            refuse_credentials(option, url)
        require_choice("--join", self.join, get_args(Join))
        for option, names, known in (("--metrics", self.metrics, METRICS), ("--scores", self.scores, SCORES)):
            for name in names:
                _check_known(option, name, known)
        if self.metrics and self.against is None:
            raise UsageError(
                f"--metrics {','.join(self.metrics)} is given without --against; allowed: a corpus or real:IMAGES to compare with"
            )
        distances = ", ".join(name for name, metric in METRICS.items() if not metric.pairs)
        if self.real is not None:
            require(bool(self.real), "--against", self.against, "real: with a folder, a glob, tars or Parquet files of images")
            if pairs := [name for name in self.metrics if METRICS[name].pairs]:
                raise UsageError(
                    f"--metrics has {pairs[0]}, which compares pairs, and --against is {self.against}, whose images have no "
                    f"keys; allowed: {distances}, or a corpus"
                )
            if not self.metrics:
                raise UsageError(f"--against is {self.against} without --metrics; allowed with it: {distances}")
        if self.name is not None:
            require(_NAME.fullmatch(self.name) is not None, "--name", self.name, "letters, digits, _, -, + and ., up to 100")
        for option, number in (("--batch_size", self.batch_size), ("--bootstrap", self.bootstrap)):
            require(number >= 1, option, number, "1 or more")
        if self.requirement is not None:
            self.requirement.check_names(self.figures(), self._may_be_own)

    @property
    def real(self) -> str | None:
        """Where the images of a reference are that is no corpus."""
        return self.against.removeprefix(REAL) if self.against is not None and self.against.startswith(REAL) else None

    @property
    def all_metrics(self) -> tuple[str, ...]:
        """The metrics, with those of pairs that need nothing where none is given."""
        return self.metrics or (("psnr", "ssim") if self.against is not None else ())

    @property
    def pair_metrics(self) -> tuple[str, ...]:
        """The metrics of pairs."""
        return tuple(name for name in self.all_metrics if METRICS[name].pairs)

    @property
    def requirement(self) -> Requirement | None:
        """The condition on the result."""
        return parse(self.require) if self.require is not None else None

    def distribution_extractors(self) -> tuple[str, ...]:
        """Names of the extractors that compare distributions."""
        found = (METRICS[name].extractor for name in self.all_metrics if not METRICS[name].pairs)
        return tuple(dict.fromkeys(name for name in found if name is not None))

    def wants(self) -> dict[str, str]:
        """What needs each extractor, in words."""
        found: dict[str, str] = {}
        for name in self.all_metrics:
            if extractor := METRICS[name].extractor:
                found.setdefault(extractor, f"the metric {name}")
        for name in self.scores:
            for extractor in SCORES.get(name, ()):
                found.setdefault(extractor, f"the score {name}")
        return found

    def _may_be_own(self, name: str) -> bool:
        """Whether a name of a requirement may be one of an own score, whose columns only that knows."""
        column, dot, figure = name.partition(".")
        own = any(OWN_SCORE.fullmatch(score) for score in self.scores)
        return own and column not in RESERVED and (not dot or figure in _FIGURES)

    def figures(self) -> list[str]:
        """Names that a requirement may use."""
        rows = [*self.pair_metrics, *(name for name in self.scores if name in SCORES and name != "embeddings")]
        compared = [name for name in self.all_metrics if not METRICS[name].pairs]
        distances = [figure for name in compared for figure in METRICS[name].figures or (name,)]
        found = [*rows, *(f"{name}.{figure}" for name in rows for figure in _FIGURES)]
        found += [*distances, *(f"{name}.{figure}" for name in distances for figure in ("value", "rows", "rows_reference"))]
        counts = [*_ROW_COUNTS, *(_MATCH_COUNTS if self.against is not None and self.real is None else ())]
        counts += ["reference", "unreadable_in_reference"] if self.real is not None else []
        return [*found, *(f"rows.{name}" for name in counts), *(f"images.{name}" for name in _IMAGE_COUNTS)]


def _check_known(option: str, name: str, known: Iterable[str]) -> None:
    if name in known or (option == "--scores" and OWN_SCORE.fullmatch(name)):
        return
    near = difflib.get_close_matches(name.lower(), list(known), n=1)
    own = ", or module:Class of your own" if option == "--scores" else ""
    hint = f"; did you mean {near[0]}?" if near else f"; allowed: {', '.join(known)}{own}"
    raise UsageError(f"{option} has {name!r}{hint}")
