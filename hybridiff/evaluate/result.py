"""The result of an evaluation: one pass over all parts in order, so that it depends on no rank, batch or kill."""

import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hybridiff.corpus.progress import read_progress
from hybridiff.corpus.record import option
from hybridiff.evaluate.matching import row_counts
from hybridiff.evaluate.metrics import distributions, pairs
from hybridiff.evaluate.metrics.distributions import Blocks, cmmd, frechet, frechet_interval, kid, prdc
from hybridiff.evaluate.metrics.image_checks import Duplicate
from hybridiff.evaluate.metrics.statistics import bootstrap, summarise, to_json
from hybridiff.evaluate.parts import REFERENCE, feature_blocks, fingerprint, json_path, parts_folder
from hybridiff.evaluate.prepared import Prepared, Target, contents, earlier_result
from hybridiff.evaluate.request import METRICS, Request
from hybridiff.evaluate.result_rows import Parts, column_values, part_tables, row_schema, rows_path, unit_parts, write_rows

FORMAT = 1
DEFINITIONS = (
    pairs.DEFINITIONS
    | distributions.DEFINITIONS
    | {
        "fd_dinov2": f"{distributions.DEFINITIONS['fid']}; features of DINOv2",
        "clip": "cosine similarity of the CLIP embeddings of image and prompt; prompts beyond the text encoder's window are cut",
        "aesthetic": "linear head on the CLIP embedding of the image, scaled to unit length",
        "nsfw": "probability of the classifier that the image is not safe for work",
    }
)


@dataclass(frozen=True)
class Result:
    """What an evaluation of a corpus found.

    Args:
        document: contents of its JSON file.
        path: path or url of that file.
        lost: metrics and scores of the earlier result that it has replaced and that it lacks.
    """

    document: dict[str, Any]
    path: str
    lost: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The figures, a line each."""
        document = self.document
        title = f"{document['corpus']}" + (f" against {document['against']}" if document["against"] else "")
        found = [title]
        for name, figures in document["metrics"].items():
            main = figures.get("value", figures.get("mean"))
            interval = "" if not figures.get("ci95") else f"  (95 % {_shown(figures['ci95'][0])} to {_shown(figures['ci95'][1])})"
            spread = ", ".join(f"{part} {_shown(figures[part])}" for part in ("p05", "median", "p95") if part in figures)
            found.append(f"  {name:12} {_shown(main)}{interval}  {spread}".rstrip())
        for section in ("rows", "images"):
            counts = ", ".join(f"{value} {name}" for name, value in document[section].items() if isinstance(value, int))
            found.append(f"  {section + ':':12} {counts}")
        found.append(f"  {'result:':12} {self.path}")
        if self.lost:
            found.append(f"  {'replaced:':12} an earlier result with {', '.join(self.lost)}; another --name keeps both")
        return found


def finished_result(prepared: Prepared, place: int) -> Result | None:
    """The result of a corpus, if it has been written by the same call."""
    target = prepared.targets[place]
    document = earlier_result(target)
    same = document.get("fingerprint") == _identity(prepared, place)
    whole = same and target.folder.modified(rows_path(target.name)) is not None
    return Result(document, _url(target)) if whole else None


def write_result(prepared: Prepared, place: int) -> Result:
    """Writes the result of a corpus whose parts are complete, rows first."""
    target = prepared.targets[place]
    earlier = earlier_result(target).get("metrics")
    parts = unit_parts(prepared, place)
    repeats = write_rows(target, parts)
    metrics = {**_row_metrics(prepared, target, parts), **_distribution_metrics(prepared, target, parts)}
    rows = row_counts(target.rows)
    repeated = rows.pop("prompts_repeated")
    document: dict[str, Any] = {
        "format": FORMAT,
        "name": target.name,
        "corpus": target.rows.corpus.url,
        "against": prepared.request.against,
        "content": contents(target, prepared.reference),
        "join": prepared.request.join if target.matches is not None else None,
        "rows": rows | (target.matches.counts if target.matches is not None else _real_counts(prepared)),
        "metrics": metrics,
        "images": _image_figures(target, parts, repeats) | {"prompts_repeated": repeated},
        "speed": _speed(target),
        "extractors": {name: one.document() for name, one in prepared.extractors.items()},
        "versions": prepared.versions,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "fingerprint": _identity(prepared, place),
    }
    document = to_json(document)
    document["summary"] = _summary(document)
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    target.folder.publish(json_path(target.name), text.encode())
    return Result(document, _url(target), tuple(name for name in earlier or () if name not in metrics))


def _url(target: Target) -> str:
    return f"{target.folder.url.rstrip('/')}/{json_path(target.name)}"


def remove_parts(prepared: Prepared) -> None:
    """Removes the parts of all results, also those that earlier calls with other options left."""
    for target in prepared.targets:
        folder, directory = target.folder, parts_folder(target.name)
        for name in folder.names(directory):
            with suppress(FileNotFoundError):
                folder.remove(f"{directory}/{name}")
        with suppress(Exception):  # object storage has no directories
            folder.fs.rmdir(folder.target(directory))


def _identity(prepared: Prepared, place: int) -> str:
    """Fingerprint of everything that a result depends on."""
    request, work = prepared.request, prepared.work
    return fingerprint(work[place], work[REFERENCE], request.all_metrics, request.bootstrap, request.seed, request.against)


def _row_metrics(prepared: Prepared, target: Target, parts: Parts) -> dict[str, Any]:
    """Figures of everything that each row has a value of."""
    names = [field.name for field in row_schema(parts) if field.type == pa.float64()]
    order = {name: place for place, name in enumerate((*prepared.request.all_metrics, *prepared.request.scores))}
    found = {}
    for name in sorted(names, key=lambda name: (order.get(name, len(order)), name)):
        values = column_values(parts, name)
        figures = summarise(values, prepared.request.bootstrap, prepared.request.seed)
        figures["infinite"] = int(np.isinf(values).sum())
        found[name] = {
            **figures,
            "definition": DEFINITIONS.get(name, f"own score {name}"),
            "extractor": _extractor_of(prepared, name),
        }
    return found


def _distribution_metrics(prepared: Prepared, target: Target, parts: Parts) -> dict[str, Any]:
    """Figures of distances between the images of the corpus and of the reference."""
    if prepared.reference is None or not prepared.request.distribution_extractors():
        return {}
    there = unit_parts(prepared, REFERENCE)
    found: dict[str, Any] = {}
    for name in prepared.request.all_metrics:
        extractor = METRICS[name].extractor
        if METRICS[name].pairs or extractor is None:
            continue
        x, y = feature_blocks(*there, extractor), feature_blocks(*parts, extractor)
        common = {
            "definition": DEFINITIONS[name],
            "rows": distributions.count_rows(y),
            "rows_reference": distributions.count_rows(x),
            "extractor": prepared.extractors[extractor].document(),
        }
        distances = _DISTANCES[name](name, x, y, prepared.request)
        found |= {figure: {**values, **common} for figure, values in distances.items()}
    return found


def _frechet(name: str, x: Blocks, y: Blocks, request: Request) -> dict[str, dict[str, Any]]:
    reference = frechet(x)
    value = reference.compute(frechet(y))
    half, samples = frechet_interval(reference, y, request.bootstrap, request.seed)
    return {name: {"value": value, "ci95": [max(0.0, value - half), value + half], "bootstrap": samples}}


def _kid(name: str, x: Blocks, y: Blocks, request: Request) -> dict[str, dict[str, Any]]:
    found = kid(x, y, seed=request.seed)
    return {name: {"value": found.mean, "std": found.std}}


def _prdc(name: str, x: Blocks, y: Blocks, request: Request) -> dict[str, dict[str, Any]]:
    return {
        figure: {"value": float(values.mean()), "ci95": [*bootstrap(values, request.bootstrap, request.seed)]}
        for figure, values in prdc(x, y).items()
    }


def _cmmd(name: str, x: Blocks, y: Blocks, request: Request) -> dict[str, dict[str, Any]]:
    return {name: {"value": cmmd(x, y)}}


_DISTANCES = {"fid": _frechet, "fd_dinov2": _frechet, "kid": _kid, "prdc": _prdc, "cmmd": _cmmd}


def _extractor_of(prepared: Prepared, name: str) -> dict[str, Any] | None:
    extractor = METRICS[name].extractor if name in METRICS else name
    return prepared.extractors[extractor].document() if extractor in prepared.extractors else None


def _image_figures(target: Target, parts: Parts, repeats: list[Duplicate | None]) -> dict[str, Any]:
    counts = dict.fromkeys(("black", "flat", "nan"), 0)
    sizes: dict[str, int] = {}
    for table in part_tables(parts, ["width", "height", "failed", *counts]):
        for name in counts:
            counts[name] += pc.sum(table[name]).as_py() or 0
        there = table.filter(pc.invert(table["failed"])).group_by(["width", "height"])
        for row in there.aggregate([("failed", "count")]).to_pylist():
            size = f"{row['width']}x{row['height']}"
            sizes[size] = sizes.get(size, 0) + row["failed_count"]
    exact = sum(one.exact for one in repeats if one)
    return {
        "images": target.rows.images,
        "sizes": dict(sorted(sizes.items())),
        **counts,
        "duplicates_exact": exact,
        "duplicates_near": sum(one is not None for one in repeats) - exact,
    }


def _real_counts(prepared: Prepared) -> dict[str, int]:
    """Numbers of images of a reference that is no corpus, and of files that are no image."""
    if prepared.reference is None or not prepared.request.distribution_extractors():
        return {}
    tables = list(part_tables(unit_parts(prepared, REFERENCE), ["failed"]))
    return {
        "reference": sum(table.num_rows for table in tables),
        "unreadable_in_reference": sum(pc.sum(table["failed"]).as_py() or 0 for table in tables),
    }


def _speed(target: Target) -> dict[str, Any]:
    """What the corpus says of the steps and the time that its images took."""
    rate = None
    with suppress(Exception):  # timings may be missing or damaged, which no figure depends on
        rate = read_progress(target.rows.corpus).group_rate
    steps = {name: pc.mean(target.rows.table[name]).as_py() for name in ("steps_full", "steps_half", "steps_skipped")}
    return {**steps, "seconds_per_image": 1 / rate if rate else None, **_settings(target.rows.run["configuration"])}


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    names = {
        "schedule": "parallel.schedule.class_path",
        "schedule_options": "parallel.schedule.init_args",
        "group_size": "parallel.group_size",
        "steps": "sampling.steps",
    }
    return {short: option(options, name) for short, name in names.items()}


def _summary(document: dict[str, Any]) -> str:
    """The main figures in one line, for the card."""
    figures = ", ".join(f"{name} {_shown(one.get('value', one.get('mean')))}" for name, one in document["metrics"].items())
    images = document["images"]
    repeats = images["duplicates_exact"] + images["duplicates_near"]
    checks = f"of {images['images']} images {images['black']} black, {repeats} duplicates"
    return f"{figures}; {checks}" if figures else checks


def _shown(value: Any) -> str:
    return "-" if value is None else f"{float(value):.4g}"
