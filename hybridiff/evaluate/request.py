"""What is asked for: the options of an evaluation, checked, and everything that can be refused before a network is loaded."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

from hybridiff import __version__
from hybridiff.errors import UsageError, require, require_choice
from hybridiff.evaluate.extractors import Extractor, needed, read_extractors
from hybridiff.evaluate.requirement import Requirement, parse
from hybridiff.secrets import one_line, refuse_credentials

if TYPE_CHECKING:
    from hybridiff.evaluate.matching import CorpusRows, Matches
    from hybridiff.evaluate.parts import Unit
    from hybridiff.evaluate.real_images import RealImages
    from hybridiff.storage.folder import Folder

REAL = "real:"  # begins the url of a reference that is no corpus
_NAME = re.compile(r"[A-Za-z0-9_][\w.+-]{0,99}")
_FIGURES = ("mean", "p01", "p05", "median", "p95", "min", "max", "rows")
_OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


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
_SMALLEST_SSIM = 11  # pixels of its window


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
    join: str = "key"
    allow_unmatched: bool = False
    name: str | None = None
    output: str | None = None
    batch_size: int = 32
    bootstrap: int = 1000
    seed: int = 0
    require: str | None = None

    def __post_init__(self) -> None:
        from hybridiff.evaluate.matching import Join

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
            self.requirement.check_names(self.figures())

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

    @property
    def own_scores(self) -> bool:
        """Whether a score is an own class, whose columns only it knows."""
        return any(_OWN.fullmatch(name) for name in self.scores)

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

    def figures(self) -> list[str]:
        """Names that a requirement may use."""
        main = [figure for name in self.all_metrics for figure in METRICS[name].figures or (name,)]
        main += [name for name in self.scores if name in SCORES and name != "embeddings"]
        rows = [name for name in main if name in self.scores or name in self.pair_metrics]
        counts = [*(f"rows.{name}" for name in ROW_COUNTS), *(f"images.{name}" for name in IMAGE_COUNTS)]
        return [*main, *(f"{name}.{figure}" for name in rows for figure in _FIGURES), *counts]


ROW_COUNTS = ("corpus", "failed", "truncated", "reference", "matched", "pairs", "only_in_corpus", "only_in_reference")
IMAGE_COUNTS = ("images", "black", "flat", "nan", "duplicates_exact", "duplicates_near", "prompts_repeated")


@dataclass(frozen=True)
class Target:
    """One corpus that is evaluated.

    Args:
        rows: its rows.
        folder: where its result goes.
        name: name of the result.
        matches: its pairs with the reference; None without a corpus to compare with.
    """

    rows: "CorpusRows"
    folder: "Folder"
    name: str
    matches: "Matches | None"


@dataclass(frozen=True)
class Prepared:
    """A checked call: nothing of it will be refused any more.

    Args:
        request: its options.
        targets: the corpora.
        reference: what they are compared with.
        extractors: needed extractors by name.
        scorers: classes of own scores, by ``module:Class``.
    """

    request: Request
    targets: tuple[Target, ...]
    reference: "CorpusRows | RealImages | None"
    extractors: dict[str, Extractor]
    scorers: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def work(self) -> dict[int, str]:
        """Fingerprint of what is computed for each corpus, by place; of the reference under REFERENCE."""
        from hybridiff.evaluate.parts import REFERENCE, fingerprint

        request, networks = self.request, {name: one.document() for name, one in self.extractors.items()}
        reference = self.reference.identity if self.reference is not None else None
        found = {
            place: fingerprint(
                __version__,
                target.rows.identity,
                reference if request.pair_metrics else None,
                [request.pair_metrics, request.distribution_extractors(), request.scores, request.join, request.allow_unmatched],
                networks,
            )
            for place, target in enumerate(self.targets)
        }
        used = {name: networks[name] for name in request.distribution_extractors()}
        return found | {REFERENCE: fingerprint(__version__, reference, used)}

    def units(self) -> "list[Unit]":
        """Everything that is computed: shards of the corpora, and images of a reference that distributions are compared with."""
        from hybridiff.evaluate.parts import REFERENCE, Unit

        mine = [Unit(place, index) for place, target in enumerate(self.targets) for index in range(target.rows.shards)]
        if self.reference is None or not self.request.distribution_extractors():
            return mine
        return [*(Unit(REFERENCE, index) for index in range(self.reference.shards)), *mine]

    def part(self, unit: "Unit") -> "tuple[Folder, str]":
        """Folder and path of a unit's part; those of a reference are with the first corpus."""
        from hybridiff.evaluate.parts import REFERENCE, parts_folder

        target = self.targets[max(0, unit.place)]
        side = "reference" if unit.place == REFERENCE else f"corpus{unit.place}"
        return target.folder, f"{parts_folder(target.name)}/{self.work[unit.place]}-{side}-{unit.index:05d}.parquet"


def prepare(request: Request) -> Prepared:
    """Reads the rows of all corpora and everything else that a mistake shows in, without loading a network.

    Raises:
        UsageError: a corpus is not whole, rows or sizes do not match, an extractor is missing, or the output is not allowed.
    """
    from hybridiff.corpus.reader import ShardDamaged

    extractors = needed(read_extractors(request.extractors), request.wants())
    try:
        from hybridiff.evaluate.matching import match_rows, read_rows

        reference = _reference(request)
        targets: list[Target] = []
        for place, url in enumerate(request.corpora):
            rows = read_rows(url)
            matches = None if reference is None or request.real is not None else match_rows(rows, reference, request.join)  # type: ignore[arg-type]
            target = Target(rows, _folder(request, rows), _result_name(request, place), matches)
            _check_pairs(request, target, reference)
            targets.append(target)
    except ShardDamaged as error:
        raise UsageError(str(error)) from error
    _check_enough(request, targets, reference)
    names = [(target.folder.root, target.name) for target in targets]
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise UsageError(
            f"two corpora would have the result {repeated[1]!r} in {repeated[0]}; allowed: corpora of different names"
        )
    scorers = _own_scorers(request)
    for target in targets:
        _check_writable(target)
    return Prepared(request, tuple(targets), reference, extractors, scorers)


def _reference(request: Request) -> "CorpusRows | RealImages | None":
    if request.against is None:
        return None
    if request.real is not None:
        from hybridiff.evaluate.real_images import find_images

        return find_images(request.real)
    from hybridiff.evaluate.matching import read_rows

    return read_rows(request.against)


def _check_pairs(request: Request, target: Target, reference: "CorpusRows | RealImages | None") -> None:
    from hybridiff.evaluate.matching import CorpusRows, refuse_mismatches

    if not request.pair_metrics or target.matches is None:
        return
    assert isinstance(reference, CorpusRows)
    refuse_mismatches(target.rows, reference, target.matches, request.join, request.allow_unmatched)  # type: ignore[arg-type]
    if "ssim" in request.pair_metrics:
        import pyarrow.compute as pc

        smallest = min(pc.min(target.matches.pairs[side]).as_py() for side in ("width", "height"))
        require(
            smallest >= _SMALLEST_SSIM,
            "--metrics",
            "ssim",
            f"psnr alone, as {target.rows.corpus.url} has images of {smallest} pixels on a side and ssim needs {_SMALLEST_SSIM}",
        )


def _check_enough(request: Request, targets: list[Target], reference: "CorpusRows | RealImages | None") -> None:
    """Refuses distributions of too few images, where their number is known before they are read."""
    from hybridiff.evaluate.matching import CorpusRows

    sides = [target.rows for target in targets] + ([reference] if isinstance(reference, CorpusRows) else [])
    for name in request.all_metrics:
        for rows in sides:
            least = METRICS[name].least
            if rows.images < least:
                raise UsageError(
                    f"--metrics has {name}, and {rows.corpus.url} holds {rows.images} images; allowed: {least} or more"
                )


def _folder(request: Request, rows: "CorpusRows") -> "Folder":
    from hybridiff.storage.folder import Folder

    return rows.corpus if request.output is None else Folder(request.output)


def _check_writable(target: Target) -> None:
    """Refuses a result that can't be written, or only through a link out of its directory."""
    from hybridiff.corpus.layout import EVALUATIONS
    from hybridiff.evaluate.parts import parts_folder

    try:
        for path in (f"{EVALUATIONS}/any", f"{parts_folder(target.name)}/any"):
            target.folder.target(path)
        probe = f"{EVALUATIONS}/.{target.name}.probe"
        target.folder.publish(probe, b"")
        target.folder.remove(probe)
    except FileNotFoundError:  # removed by another rank, which has probed at the same time
        return
    except Exception as error:  # storage clients raise types of their own
        raise UsageError(
            f"results can't be written to {target.folder.url} ({one_line(error)}); allowed: by -o a directory that can be written"
        ) from error


def _result_name(request: Request, place: int) -> str:
    base = request.name or (_plain(request.real or request.against or "") if request.against else "scores")
    several = request.output is not None and len(request.corpora) > 1
    return f"{_plain(request.corpora[place])}-{base}" if several else base


def _plain(url: str) -> str:
    """The last part of a url, as part of a file's name."""
    last = url.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w.+-]+", "-", last, flags=re.ASCII).strip("-.")[:90] or "reference"


def _check_known(option: str, name: str, known: Iterable[str]) -> None:
    if name in known or (option == "--scores" and _OWN.fullmatch(name)):
        return
    near = difflib.get_close_matches(name.lower(), list(known), n=1)
    own = ", or module:Class of your own" if option == "--scores" else ""
    hint = f"; did you mean {near[0]}?" if near else f"; allowed: {', '.join(known)}{own}"
    raise UsageError(f"{option} has {name!r}{hint}")


def _own_scorers(request: Request) -> dict[str, Any]:
    own = [name for name in request.scores if _OWN.fullmatch(name) and name not in SCORES]
    if not own:
        return {}
    from hybridiff.evaluate.own_scores import find_class

    return {name: find_class(name) for name in own}
