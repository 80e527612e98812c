"""The report: one file without scripts or requests, whatever the prompts hold; opened in a browser."""

import base64
import datetime
import io
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hybridiff.corpus import Corpus
from hybridiff.corpus.layout import metadata_name
from hybridiff.evaluate.report import report_images, report_page, report_results
from hybridiff.evaluate.report.report_charts import histogram, number, points
from hybridiff.storage.folder import Folder
from tests.evaluate.evaluations import Pixels, evaluate, make_images, noisy, write_corpus

HOSTILE = '</script><script>document.title="hacked"</script><img src=x onerror="document.title=1">'


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def text_of(folder: Path) -> str:
    return (folder / "evaluation" / "report.html").read_text()


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A reference, and two corpora near it with one much worse image each, evaluated in one directory."""
    root = tmp_path_factory.mktemp("report")
    images = make_images(20)
    names = list(images)
    prompts = dict.fromkeys(names[:1], HOSTILE)
    write_corpus(root / "full", images, prompts=prompts)
    for place, level in enumerate((2.0, 8.0)):
        other: dict[str, Pixels | None] = noisy(images, level)
        other[names[place]] = np.zeros((32, 32, 3), np.uint8)
        write_corpus(root / f"fast{place}", {**other}, prompts=prompts)
    assert evaluate(root / "fast0", root / "fast1", "--against", root / "full", "-o", root / "results") == 0
    assert evaluate(root / "fast0", "--against", root / "full") == 0
    yield root


def test_it_needs_no_network_and_runs_no_script(corpora: Path) -> None:
    for folder in (corpora / "results", corpora / "fast0"):
        tags = Tags(text_of(folder)).found
        assert not [tag for tag, _ in tags if tag in ("script", "link", "iframe", "object", "a")]
        assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
        assert all((attributes["src"] or "").startswith("data:image/") for tag, attributes in tags if tag == "img")
        policy = next(attributes["content"] for tag, attributes in tags if tag == "meta" and "http-equiv" in attributes)
        assert policy is not None and policy.startswith("default-src 'none'")


def test_it_has_the_figures_of_all_results(corpora: Path) -> None:
    text = text_of(corpora / "results")
    for part in ("fast0", "fast1", "Speed against fidelity", "PSNR, mean", "Distributions", "black images", "Definitions"):
        assert part in text
    assert text.count("<svg") == 5  # two distributions of each, and speed by psnr
    assert "Speed against fidelity" not in text_of(corpora / "fast0")


def test_the_worst_pair_is_the_planted_one(corpora: Path) -> None:
    mine, theirs = Corpus(str(corpora / "fast1")), Corpus(str(corpora / "full"))
    rows = pq.read_table(corpora / "results" / "evaluation" / "fast1-full.parquet")
    pairs = report_images.worst_pairs(mine, theirs, rows)
    assert pairs[0].key == "image-0001" and len(pairs) == report_images.MOST_PAIRS
    assert [p.figures["psnr"] for p in pairs] == sorted(p.figures["psnr"] for p in pairs)
    shown = Image.open(io.BytesIO(base64.b64decode(pairs[0].image.partition(",")[2])))
    assert not np.asarray(shown).any() and pairs[0].small


def test_images_are_bounded_in_size() -> None:
    random = np.random.default_rng(0)
    large = random.integers(0, 256, (900, 1600, 3), dtype=np.uint8)
    pair = report_images._pair("key", "prompt", {}, large, large)
    shown = Image.open(io.BytesIO(base64.b64decode(pair.image.partition(",")[2])))
    assert max(shown.size) == report_images.LONGEST_SIDE and not pair.small


def test_it_is_made_where_the_corpora_are_gone(corpora: Path, tmp_path: Path) -> None:
    shutil.copytree(corpora / "results", tmp_path / "results")
    for file in (tmp_path / "results" / "evaluation").glob("*.json"):
        file.write_text(file.read_text().replace(str(corpora), str(tmp_path / "absent")))
    report_page.write_report(Folder(str(tmp_path / "results")))
    text = text_of(tmp_path / "results")
    assert "Distributions" in text and "<img" not in text


@pytest.mark.parametrize("text", ["{}", "[1]", '{"x', '{"corpus": "x", "metrics": {}, "rows": 3, "images": {}}'])
def test_files_that_are_no_results_are_left_out(text: str, corpora: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "evaluation"
    shutil.copytree(corpora / "results" / "evaluation", folder)
    (folder / "notes.json").write_text(text)
    (folder / "fast0-full.parquet").write_text("damaged")
    report_page.write_report(Folder(str(tmp_path / "results")))
    assert text_of(tmp_path / "results").count("<h2>") == 2


def test_values_of_user_columns_are_tables(corpora: Path) -> None:
    corpus = Corpus(str(corpora / "fast0"))
    shown = report_results.read_result(corpus, "full")
    assert shown is not None
    half = [("<b>x</b>",) if i % 2 else ("plain",) for i in range(shown.rows.num_rows)]
    page = report_page.page([report_results.Shown(shown.document, shown.rows, {"kind": half}, [])])
    assert "By kind" in page and "&lt;b&gt;x&lt;/b&gt;" in page and "<b>x</b>" not in page
    means = [np.mean(np.where(np.isfinite(v := np.asarray(shown.rows["psnr"])[i::2]), v, np.nan)) for i in range(2)]
    assert all(f"<td>{number(mean)}</td>" in page for mean in means)


COLUMNS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "style": (pa.string(), ["flat", "round"]),
    "strength": (pa.float64(), [0.25, float("nan")]),
    "level": (pa.int64(), [3, None]),
    "day": (pa.date32(), [datetime.date(2026, 5, 1), datetime.date(2026, 5, 2)]),
    "tags": (pa.list_(pa.string()), [["sea", "sky", "sky"], ["sky"]]),
}
OTHERS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "constant": (pa.string(), ["same", "same"]),
    "bytes": (pa.binary(), [b"a", b"b"]),
    "box": (pa.struct([("x", pa.int64())]), [{"x": 1}, {"x": 2}]),
}


def test_any_user_column_whose_values_repeat_is_a_table(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "fast", noisy(make_images(8)))
    write_corpus(tmp_path / "full", make_images(8))
    file = tmp_path / "fast" / metadata_name(0)
    table = pq.read_table(file)
    for name, (kind, values) in (COLUMNS | OTHERS).items():
        if name in table.column_names:
            table = table.drop_columns([name])
        table = table.append_column(name, pa.array([values[i % 2] for i in range(8)], kind))
    assert evaluate(tmp_path / "fast", "--against", tmp_path / "full") == 0
    pq.write_table(table, file)
    shown = report_results.read_result(corpus, "full")
    assert shown is not None and list(shown.tags) == list(COLUMNS)
    assert shown.tags["tags"][:2] == [("sea", "sky"), ("sky",)] and shown.tags["strength"][:2] == [(0.25,), ()]
    page = report_page.page([shown])
    tables = dict(re.findall(r"<h3>By (\w+)</h3>(.*?)</table>", page))
    assert {name: re.findall(r"<tr><td>([^<]*)</td><td[^>]*>(\d+)</td>", text) for name, text in tables.items()} == {
        "style": [("flat", "4"), ("round", "4")],
        "strength": [("0.25", "4"), ("no value", "4")],
        "level": [("3", "4"), ("no value", "4")],
        "day": [("2026-05-01", "4"), ("2026-05-02", "4")],
        "tags": [("sky", "8"), ("sea", "4")],
    }


def test_figures_as_shown() -> None:
    shown = [number(value) for value in (None, float("nan"), "inf", -float("inf"), 3.0, 12345.0, 0.123456, 41.234, 1234.56)]
    assert shown == ["-", "-", "\u221e", "-\u221e", "3", "12,345", "0.1235", "41.23", "1234.6"]


def test_charts_of_few_values() -> None:
    assert histogram(np.array([np.nan, np.inf]), {}, "PSNR dB") == ""
    assert histogram(np.array([2.0, 2.0]), {"median": 2.0}, "PSNR dB").count("<rect") == 1
    assert histogram(np.array([1.0, 1.0 + 2**-52]), {"median": 1.0}, "SSIM").count("<rect") == 1
    drawn = points([1.0, 2.0], [30.0, np.inf], ["a<b", "long " * 20], "speed", "psnr")
    assert "a&lt;b" in drawn and drawn.count("<circle") == 2 and "nan" not in drawn
    assert "(\u221e)</text>" in drawn
    ends = re.findall(
        r'text-anchor="(\w+)">(p05|median)', histogram(np.array([2.0, 2.0]), {"p05": 2.0, "median": 2.0}, "PSNR dB")
    )
    assert ends == [("end", "p05"), ("start", "median")]  # names of marks that are close do not overlap


def test_axes_have_round_values() -> None:
    drawn = histogram(np.array([0.9971, 0.998, 0.998, 0.9998]), {}, "SSIM")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", drawn)
    assert texts == ["rows", "0", "1", "2", "0.998", "0.999", "SSIM"]


@pytest.mark.slow
def test_a_browser_shows_it(corpora: Path, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        if os.environ.get("CI"):
            pytest.fail("CI has no chromium")
        pytest.skip("needs chromium")
    page = corpora / "results" / "evaluation" / "report.html"
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={tmp_path}"]
    shown = subprocess.run(
        [*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    assert re.search(r"<title>Evaluation of 2 corpora</title>", shown)
    assert "document.title=" in shown and "<script" not in shown
    file = tmp_path / "phone.png"
    subprocess.run(
        [*command, f"--screenshot={file}", "--window-size=390,900", page.as_uri()], timeout=120, check=True, capture_output=True
    )
    assert len(np.unique(np.asarray(Image.open(file).convert("RGB")).reshape(-1, 3), axis=0)) > 50
