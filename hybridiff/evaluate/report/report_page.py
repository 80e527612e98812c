"""``evaluation/report.html``: one page of all results of a directory, in a file that needs no network and runs no script.

The page is made anew from the JSON and Parquet files of the results. Everything in it that users or models wrote is escaped, and
its content policy allows neither scripts nor requests.
"""

import math
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from hybridiff.corpus.layout import EVALUATIONS
from hybridiff.evaluate.report.report_charts import histogram, number, points
from hybridiff.evaluate.report.report_results import Shown, read_results
from hybridiff.storage.folder import Folder

REPORT = f"{EVALUATIONS}/report.html"
MOST_TAGS = 40  # values of a column that are shown
MOST_KEYS = 12  # of a list
LONGEST_PROMPT = 300  # characters
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_UNITS = {"psnr": " dB"}
_WORDS = ("result", "corpus", "against", "schedule")  # columns of the overview that hold words, not figures
_TITLES = {"psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS", "fid": "FID", "kid": "KID", "fd_dinov2": "FD-DINOv2", "cmmd": "CMMD"}
_TITLES |= {"clip": "CLIP score", "nsfw": "NSFW"}
_CHECKS = {
    "black": "black images",
    "flat": "flat images",
    "nan": "images with NaN",
    "duplicates_exact": "exact duplicates",
    "duplicates_near": "near duplicates",
    "prompts_repeated": "repeated prompts",
}
_COUNTS = {
    "failed": "failed rows",
    "truncated": "truncated prompts",
    "only_in_corpus": "keys only in the corpus",
    "only_in_reference": "keys only in the reference",
}


def write_report(folder: Folder) -> str:
    """Writes the page of all results in a directory, and returns its path.

    Args:
        folder: a corpus, or the directory of ``-o``.
    """
    folder.publish(REPORT, page(read_results(folder)).encode())
    return folder.path(REPORT)


def page(results: Sequence[Shown]) -> str:
    """The page of these results."""
    style = (files("hybridiff") / "assets" / "report.css").read_text()
    corpora = dict.fromkeys(_last(one.document["corpus"]) for one in results)
    title = f"Evaluation of {next(iter(corpora))}" if len(corpora) == 1 else f"Evaluation of {len(corpora)} corpora"
    sections = "".join(_result(one) for one in results)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{style}</style></head>\n<body><main><h1>{escape(title)}</h1>"
        f"{_overview(results)}{sections}"
        f"<footer>Made by Hybridiff from the files in <code>{EVALUATIONS}/</code>, which hold all figures and a row for each "
        "image.</footer></main></body></html>\n"
    )


def speed_up(document: dict[str, Any]) -> float | None:
    """Denoiser calls of plain guidance over those that were computed, on one rank; None where steps were not recorded."""
    speed = document.get("speed") or {}
    full, half, skipped = (speed.get(name) for name in ("steps_full", "steps_half", "steps_skipped"))
    if full is None or half is None or skipped is None or not full + half:
        return None
    return float((full + half + skipped) / (full + half / 2))


def _overview(results: Sequence[Shown]) -> str:
    """A table of all results, and speed against fidelity where there are several."""
    if not results:
        return "<p>There are no results yet.</p>"
    if len(results) == 1:
        return ""
    metrics = list(dict.fromkeys(name for one in results for name in one.document["metrics"]))
    head = "".join(f'<th class="words">{escape(name)}</th>' for name in _WORDS)
    head += "".join(f"<th>{escape(name)}</th>" for name in ("speed-up", *map(_with_unit, metrics)))
    body = []
    for one in results:
        document = one.document
        words = [str(document["name"]), _last(document["corpus"]), _last(document.get("against") or "-"), _schedule(document)]
        found = [_times(speed_up(document)), *(number(_main(document["metrics"].get(name, {}))) for name in metrics)]
        cells = "".join(f'<td class="words">{escape(word)}</td>' for word in words)
        body.append(f"<tr>{cells}{''.join(f'<td>{escape(figure)}</td>' for figure in found)}</tr>")
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(body)}</table></div>{_trade_off(results)}'


def _trade_off(results: Sequence[Shown]) -> str:
    charts = []
    for metric in ("psnr", "lpips", "fid", "clip"):
        found: list[Any] = []
        for one in results:
            value, speed = _main(one.document["metrics"].get(metric, {})), speed_up(one.document)
            if value is not None and speed is not None:
                found.append((speed, float(value), _last(one.document["corpus"])))
        if len({name for _, _, name in found}) > 1:
            speeds, values, names = [row[0] for row in found], [row[1] for row in found], [row[2] for row in found]
            chart = points(
                speeds, values, names, "speed-up by computed steps (times)", f"{_title(metric)}{_UNITS.get(metric, '')}"
            )
            charts.append(f"<figure><h4>{_title(metric)} by speed</h4>{chart}</figure>")
    return f'<h3>Speed against fidelity</h3><div class="grid wide">{"".join(charts)}</div>' if charts else ""


def _result(one: Shown) -> str:
    document = one.document
    against = f" against <code>{escape(document['against'])}</code>" if document.get("against") else ""
    versus = f" against {escape(_last(document['against']))}" if document.get("against") else ""
    rows = document["rows"]
    pairs = f", {number(rows.get('pairs'))} pairs" if "pairs" in rows else ""
    return (
        f"<h2>{escape(_last(document['corpus']))}{versus}: {escape(str(document['name']))}</h2>"
        f'<p class="muted"><code>{escape(document["corpus"])}</code>{against} · {number(rows.get("corpus"))} rows{pairs} · '
        f"{escape(str(document.get('created', '')))}</p>"
        f"{_figures(document)}{_distributions(one)}{_worst(one)}{_tag_tables(one)}{_checks(one)}{_details(document)}"
    )


def _figures(document: dict[str, Any]) -> str:
    tiles = []
    speed = speed_up(document)
    if speed is not None:
        said = _schedule(document)
        tiles.append(_tile(_times(speed), f"speed-up by computed steps, {said}" if said != "-" else "speed-up by computed steps"))
    seconds = (document.get("speed") or {}).get("seconds_per_image")
    if seconds is not None:
        tiles.append(_tile(f"{number(seconds)} s", "an image, as it was generated"))
    for name, figures in document["metrics"].items():
        interval = figures.get("ci95")
        known = interval and all(value is not None for value in interval)
        extra = f", 95 % in {number(interval[0])} to {number(interval[1])}" if known else ""
        kind = f"{_title(name)}, mean" if "mean" in figures else _title(name)
        tiles.append(_tile(f"{number(_main(figures))}{_UNITS.get(name, '')}", f"{kind}{extra}"))
    return f'<div class="grid">{"".join(tiles)}</div>'


def _distributions(one: Shown) -> str:
    charts = []
    for name, values in one.measured().items():
        figures = one.document["metrics"].get(name, {})
        marks = {mark: float(figures[mark]) for mark in ("p05", "median") if figures.get(mark) is not None}
        chart, infinite = histogram(values, marks, _with_unit(name)), int(np.isinf(values).sum())
        if not chart and not infinite:
            continue
        said = [f"{number(np.count_nonzero(~np.isnan(values)))} rows"]
        said += [f"{number(infinite)} infinite (equal images)"] if infinite else []
        said += [f"{mark} {number(figures[mark])}" for mark in ("min", "p01", "p05", "median", "p95", "max") if mark in figures]
        charts.append(f"<figure><h4>{escape(_title(name))}</h4>{chart}<figcaption>{' · '.join(said)}</figcaption></figure>")
    return f'<h3>Distributions</h3><div class="grid wide">{"".join(charts)}</div>' if charts else ""


def _worst(one: Shown) -> str:
    if not one.pairs:
        return ""
    cards = []
    for pair in one.pairs:
        sources = (("corpus", pair.image), ("reference", pair.reference), (f"difference x {pair.gain}", pair.difference))
        small = ' class="small"' if pair.small else ""
        images = "".join(f'<div><img{small} src="{url}" alt="{name}"><span>{name}</span></div>' for name, url in sources)
        figures = " · ".join(
            f"{escape(_title(name))} {number(value)}{_UNITS.get(name, '')}" for name, value in pair.figures.items()
        )
        prompt = pair.prompt if len(pair.prompt) <= LONGEST_PROMPT else f"{pair.prompt[:LONGEST_PROMPT]}…"
        cards.append(
            f'<div class="pair"><div class="images">{images}</div><b>{figures}</b><p class="prompt">{escape(prompt)}</p>'
            f'<span class="note"><code>{escape(pair.key)}</code></span></div>'
        )
    return f'<h3>The pairs that differ most</h3><div class="pairs">{"".join(cards)}</div>'


def _tag_tables(one: Shown) -> str:
    measured = {name: values for name, values in one.measured().items() if np.isfinite(values).any()}
    tables = []
    for column, tags in one.tags.items():
        places: dict[Any, list[int]] = {}
        for index, own in enumerate(tags):
            for tag in own or (None,):
                places.setdefault(tag, []).append(index)
        ranked = sorted(places.items(), key=lambda item: (-len(item[1]), str(item[0])))
        most = len(ranked[0][1])
        lines = []
        for tag, rows in ranked[:MOST_TAGS]:
            means = "".join(f"<td>{number(_finite_mean(values[rows]))}</td>" for values in measured.values())
            name = "no value" if tag is None else str(tag)
            share = f'<td class="bar" style="--share:{100 * len(rows) / most:.0f}%">{number(len(rows))}</td>'
            lines.append(f"<tr><td>{escape(name)}</td>{share}{means}</tr>")
        head = "".join(f"<th>{escape(_with_unit(name))}, mean</th>" for name in measured)
        more = f'<p class="note">and {len(ranked) - MOST_TAGS} more values</p>' if len(ranked) > MOST_TAGS else ""
        tables.append(
            f'<h3>By {escape(column)}</h3><div class="scroll"><table><tr><th>{escape(column)}</th><th>rows</th>{head}</tr>'
            f"{''.join(lines)}</table></div>{more}"
        )
    infinite = any(np.isinf(values).any() for values in measured.values())
    return "".join(tables) + ('<p class="note">Means leave out infinite values.</p>' if tables and infinite else "")


def _checks(one: Shown) -> str:
    document = one.document
    found = [(title, document["images"].get(name)) for name, title in _CHECKS.items()]
    found += [(title, document["rows"].get(name)) for name, title in _COUNTS.items()]
    tiles = [_tile(number(count), title, "bad" if count else "good") for title, count in found if count is not None]
    lists = []
    for name in ("black", "flat", "nan", "failed", "truncated", "duplicate"):
        if name in one.rows.column_names:
            keys = one.rows.filter(pc.fill_null(one.rows[name], False))["key"].to_pylist()
            if keys:
                listed = ", ".join(f"<code>{escape(key)}</code>" for key in keys[:MOST_KEYS])
                more = f" and {len(keys) - MOST_KEYS} more" if len(keys) > MOST_KEYS else ""
                lists.append(f"<dt>{name}</dt><dd>{listed}{more}</dd>")
    sizes = ", ".join(f"{escape(size)} ({number(count)})" for size, count in (document["images"].get("sizes") or {}).items())
    lists += [f"<dt>sizes</dt><dd>{sizes}</dd>"] if sizes else []
    return f'<h3>Images and rows</h3><div class="grid">{"".join(tiles)}</div><dl>{"".join(lists)}</dl>'


def _details(document: dict[str, Any]) -> str:
    lines = []
    for name, figures in document["metrics"].items():
        extractor = figures.get("extractor")
        said = f"; {', '.join(f'{key} {value}' for key, value in extractor.items() if value is not None)}" if extractor else ""
        lines.append(f"<dt>{escape(_title(name))}</dt><dd>{escape(str(figures.get('definition', '')))}{escape(said)}</dd>")
    versions = ", ".join(f"{name} {value}" for name, value in (document.get("versions") or {}).items())
    lines.append(f"<dt>versions</dt><dd>{escape(versions)}</dd>")
    return f"<details><summary>Definitions and versions</summary><dl>{''.join(lines)}</dl></details>"


def _finite_mean(values: NDArray[np.float64]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else (math.inf if np.isinf(values).any() else math.nan)


def _title(metric: str) -> str:
    """A metric's name as the page shows it."""
    return _TITLES.get(metric, metric)


def _with_unit(metric: str) -> str:
    return f"{_title(metric)}{_UNITS.get(metric, '')}"


def _main(figures: dict[str, Any]) -> Any:
    return figures.get("value", figures.get("mean"))


def _schedule(document: dict[str, Any]) -> str:
    path = (document.get("speed") or {}).get("schedule")
    return str(path).rpartition(".")[2].lower() if path else "-"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} x"


def _last(url: str) -> str:
    return str(url).rstrip("/").rpartition("/")[2] or str(url)


def _tile(value: str, title: str, kind: str = "") -> str:
    return f'<div class="tile {kind}"><b>{escape(value)}</b><span>{escape(title)}</span></div>'
