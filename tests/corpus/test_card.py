"""The dataset card and the contact sheet."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hybridiff.corpus import Corpus, write_card
from hybridiff.corpus.card import contact_sheet, size_category
from hybridiff.errors import StorageError
from tests.corpus.corpora import files, make_corpus, record, result, write_shard


def test_a_corpus_is_finished_once_every_shard_is_committed(url: str) -> None:
    corpus = Corpus(url)
    corpus.start_run(record())
    write_shard(corpus, 0)
    write_shard(corpus, 2)
    assert not write_card(corpus)
    assert not {"README.md", "contact-sheet.png"} & set(files(corpus))
    write_shard(corpus, 1)
    assert write_card(corpus)
    finished = files(corpus)
    assert write_card(corpus) and files(corpus) == finished


def test_the_card_says_what_is_there(url: str) -> None:
    corpus = make_corpus(url)
    write_card(corpus)
    card = files(corpus)["README.md"].decode()
    header, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert "size_categories:\n- n<1K" in header
    assert "configs:\n- config_name: default\n  data_files: metadata/*.parquet" in header
    for text in ("`shapes-xl`", "4 steps, guidance 5.0", "9 (3 of 12", "images/{00000..00002}.tar", "| `style` | string |"):
        assert text in body, text


@pytest.mark.parametrize(
    ("rows", "name"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**6, "1M<n<10M"), (10**10, "10B<n<100B")]
)
def test_size_categories_are_the_hubs(rows: int, name: str) -> None:
    assert size_category(rows) == name


def test_without_a_run_record_there_is_nothing_to_finish(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"run\.json in .* is missing"):
        write_card(Corpus(str(tmp_path)))


def test_the_sheet_shows_the_first_images_large_enough(url: str) -> None:
    corpus = make_corpus(url)
    with Image.open(io.BytesIO(contact_sheet(corpus, [0, 1, 2]))) as image:
        sheet = np.asarray(image)
    first = result(0).image
    assert first is not None
    enlarged = first.repeat(6, axis=0).repeat(6, axis=1)  # 24 x 16 pixels, at least 128 on the longer side
    assert np.array_equal(sheet[8:152, 8:104], enlarged)
    assert sheet.shape == (2 * (144 + 48 + 8) + 8, 8 * (96 + 8) + 8, 3), "nine images: a row of eight and a row of one"


def test_the_sheet_reads_no_more_than_it_shows(url: str) -> None:
    corpus = make_corpus(url)
    sheet = contact_sheet(corpus, [0, 1, 2], most=3)
    corpus.fs.rm_file(corpus.path("images/00001.tar"))
    assert contact_sheet(corpus, [0, 1, 2], most=3) == sheet


def test_an_empty_sheet_and_large_images(tmp_path: Path) -> None:
    corpus = Corpus(str(tmp_path))
    with Image.open(io.BytesIO(contact_sheet(corpus, []))) as image:
        assert image.size[0] > 0
