"""A checked call: corpora, reference and networks, and everything that can be refused before a network is loaded."""

import importlib.util
import platform
import re
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pyarrow.compute as pc

from hybridiff import __version__
from hybridiff.corpus.layout import EVALUATIONS, METADATA
from hybridiff.corpus.reader import ShardDamaged
from hybridiff.errors import StorageError, UsageError, access_error, require
from hybridiff.evaluate.matching import CorpusRows, Matches, match_rows, read_rows, refuse_mismatches
from hybridiff.evaluate.networks.extractors import Extractor, needed, read_extractors
from hybridiff.evaluate.networks.own_scores import find_class, source_digest
from hybridiff.evaluate.parts import REFERENCE, Unit, fingerprint, json_path, parts_folder
from hybridiff.evaluate.real_images import RealImages, find_images
from hybridiff.evaluate.request import METRICS, OWN_SCORE, SMALLEST_SSIM, Request
from hybridiff.secrets import one_line
from hybridiff.storage.folder import Folder, parse_json

PACKAGES = ("torch", "torchmetrics", "transformers", "onnxruntime", "numpy", "scipy", "pyarrow", "pillow", "lightning")


@dataclass(frozen=True)
class Target:
    """One corpus that is evaluated.

    Args:
        rows: its rows.
        folder: where its result goes.
        name: name of the result.
        matches: its pairs with the reference; None without a corpus to compare with.
    """

    rows: CorpusRows
    folder: Folder
    name: str
    matches: Matches | None


@dataclass(frozen=True)
class Prepared:
    """A checked call: nothing of it will be refused any more.

    Args:
        request: its options.
        targets: the corpora.
        reference: what they are compared with.
        extractors: needed extractors by name.
        scorers: classes of own scores, by ``module:Class``.
        versions: versions of everything that computes.
        work: fingerprint of what is computed for each corpus, by place; of the reference under REFERENCE.
    """

    request: Request
    targets: tuple[Target, ...]
    reference: CorpusRows | RealImages | None
    extractors: dict[str, Extractor]
    scorers: dict[str, Any]
    versions: dict[str, str]
    work: dict[int, str]

    def images_of(self, place: int) -> CorpusRows | RealImages:
        """A corpus, by its place, or the reference."""
        found = self.reference if place == REFERENCE else self.targets[place].rows
        assert found is not None
        return found

    def units(self) -> list[Unit]:
        """Everything that is computed: shards of the corpora, and images of a reference that distributions are compared with."""
        mine = [Unit(place, index) for place, target in enumerate(self.targets) for index in range(target.rows.shards)]
        if self.reference is None or not self.request.distribution_extractors():
            return mine
        return [*(Unit(REFERENCE, index) for index in range(self.reference.shards)), *mine]

    def part(self, unit: Unit) -> tuple[Folder, str]:
        """Folder and path of a unit's part; those of a reference are with the first corpus."""
        target = self.targets[max(0, unit.place)]
        side = "reference" if unit.place == REFERENCE else f"corpus{unit.place}"
        return target.folder, f"{parts_folder(target.name)}/{self.work[unit.place]}-{side}-{unit.index:05d}.parquet"


def prepare(request: Request) -> Prepared:
    """Reads the rows of all corpora and everything else that a mistake shows in, without loading a network.

    Raises:
        UsageError: a corpus is not whole, rows or sizes do not match, an extractor is missing, or the output is not allowed.
    """
    extractors = needed(read_extractors(request.extractors), request.wants())
    _check_packages(request, extractors)
    try:
        reference = _reference(request)
        targets: list[Target] = []
        for place, url in enumerate(request.corpora):
            rows = read_rows(url)
            matches = match_rows(rows, reference, request.join) if isinstance(reference, CorpusRows) else None
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
    scorers = {name: find_class(name) for name in _own_scores(request)}
    for target in targets:
        _check_earlier(request, target, reference)
        _check_writable(target)
    used = versions()
    work = _work(request, targets, reference, extractors, used)
    return Prepared(request, tuple(targets), reference, extractors, scorers, used, work)


def versions() -> dict[str, str]:
    """Versions of Hybridiff, Python and the libraries that compute."""
    found = {"hybridiff": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _work(
    request: Request,
    targets: list[Target],
    reference: CorpusRows | RealImages | None,
    extractors: dict[str, Extractor],
    used: dict[str, str],
) -> dict[int, str]:
    """Fingerprints of what is computed; own code is read now, as more of it may be loaded later on some ranks."""
    networks = {name: one.document() for name, one in extractors.items()}
    images = reference.identity if reference is not None else None
    measured = fingerprint(
        used,
        images if request.pair_metrics else None,
        [request.pair_metrics, request.distribution_extractors(), request.scores, request.join, request.allow_unmatched],
        networks,
        {name: source_digest(name) for name in _own_scores(request)},
    )
    compared = fingerprint(used, images, {name: networks[name] for name in request.distribution_extractors()})
    return {REFERENCE: compared} | {place: fingerprint(measured, one.rows.identity) for place, one in enumerate(targets)}


def contents(target: Target, reference: CorpusRows | RealImages | None) -> dict[str, str | None]:
    """Identities of the images of a corpus and of its reference, wherever they are."""
    against = fingerprint(reference.identity) if reference is not None else None
    return {"corpus": fingerprint(target.rows.identity), "against": against}


def earlier_result(target: Target) -> dict[str, Any]:
    """The figures that are there under a result's name; empty if there are none."""
    try:
        document = parse_json(target.folder.read(json_path(target.name)))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _check_earlier(request: Request, target: Target, reference: CorpusRows | RealImages | None) -> None:
    """Refuses to replace the result of another corpus, or against another reference: neither url nor content are the same."""
    earlier = earlier_result(target)
    known, mine = earlier.get("content"), contents(target, reference)
    urls = {"corpus": target.rows.corpus.url, "against": request.against}
    for side in ("corpus", "against") if request.output is not None else ("against",):
        if isinstance(known, dict) and earlier.get(side) != urls[side] and known.get(side) != mine[side]:
            there = f"{earlier.get('corpus')} against {earlier.get('against') or 'nothing'}"
            raise UsageError(f"{json_path(target.name)} in {target.folder.url} is the result of {there}; allowed: another --name")


def _check_packages(request: Request, extractors: dict[str, Extractor]) -> None:
    """Refuses what needs packages that are not installed."""
    wanted = ["scipy", *(["torchmetrics"] if request.pair_metrics else [])]
    wanted += ["onnxruntime"] if any(one.kind == "onnx" for one in extractors.values()) else []
    wanted += ["braceexpand"] if "{" in (request.real or "") else []
    for package in wanted:
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"evaluate needs {package}, which is not installed: pip install 'hybridiff[evaluate]'")


def _reference(request: Request) -> CorpusRows | RealImages | None:
    if request.against is None:
        return None
    if request.real is not None:
        return find_images(request.real)
    return read_rows(request.against, "--against")


def _check_pairs(request: Request, target: Target, reference: CorpusRows | RealImages | None) -> None:
    if not request.pair_metrics or target.matches is None:
        return
    assert isinstance(reference, CorpusRows)
    refuse_mismatches(target.rows, reference, target.matches, request.join, request.allow_unmatched)
    if "ssim" in request.pair_metrics:
        smallest = min(pc.min(target.matches.pairs[side]).as_py() for side in ("width", "height"))
        require(
            smallest >= SMALLEST_SSIM,
            "--metrics",
            "ssim",
            f"psnr alone, as {target.rows.corpus.url} has images of {smallest} pixels on a side and ssim needs {SMALLEST_SSIM}",
        )


def _check_enough(request: Request, targets: list[Target], reference: CorpusRows | RealImages | None) -> None:
    """Refuses distributions of too few images, where their number is known before they are read."""
    sides = [target.rows for target in targets] + ([reference] if isinstance(reference, CorpusRows) else [])
    for name in request.all_metrics:
        for rows in sides:
            least = METRICS[name].least
            if rows.images < least:
                raise UsageError(
                    f"--metrics has {name}, and {rows.corpus.url} holds {rows.images} images; allowed: {least} or more"
                )


def _folder(request: Request, rows: CorpusRows) -> Folder:
    return rows.corpus if request.output is None else Folder(request.output, "-o")


def _check_writable(target: Target) -> None:
    """Refuses a result that can't be written, or only through a link out of its directory."""
    allowed = "by -o a directory that can be written"

    def refusal(error: Exception) -> str:
        return f"results can't be written to {target.folder.url} ({one_line(error)}); allowed: {allowed}"

    try:
        for path in (f"{EVALUATIONS}/any", f"{parts_folder(target.name)}/any"):
            target.folder.target(path)
    except StorageError as error:  # in mid-run; before it, links out of a directory are the user's
        raise UsageError(refusal(error)) from error
    try:
        probe = f"{EVALUATIONS}/.{target.name}.probe"
        target.folder.publish(probe, b"")
        with suppress(FileNotFoundError):  # removed by another rank, which has probed at the same time
            target.folder.remove(probe)
    except Exception as error:  # storage clients raise types of their own
        raise access_error(refusal(error), error) from error


def _result_name(request: Request, place: int) -> str:
    base = request.name or (_plain(request.real or request.against or "") if request.against else "scores")
    several = request.output is not None and len(request.corpora) > 1
    name = f"{_plain(request.corpora[place])}-{base}" if several else base
    require(name != METADATA, "--name", name, "any other name, as select calls the corpus's own columns so")
    return name


def _plain(url: str) -> str:
    """The last part of a url, as part of a file's name."""
    last = url.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w.+-]+", "-", last, flags=re.ASCII).strip("-.")[:90] or "reference"


def _own_scores(request: Request) -> list[str]:
    return [name for name in request.scores if OWN_SCORE.fullmatch(name)]
