"""A regenerated row is compared with the right one, and the report names the difference."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hybridiff.corpus.compare import compare, find_row, psnr
from hybridiff.errors import UsageError
from tests.corpus.corpora import PNG, make_corpus, result


def test_an_equal_row_is_found_by_its_key(url: str) -> None:
    corpus = make_corpus(url)
    shard, row = find_row(corpus, result(7).sample.key)
    assert (shard, row["file"]) == (1, "images/00001.tar/ключ-0007.png")
    comparison = compare(corpus, shard, row, result(7), PNG)
    assert comparison.equal and comparison.text == f"the same bytes (SHA-256 {row['sha256']})"


def test_other_pixels_are_reported_with_their_psnr(url: str) -> None:
    corpus = make_corpus(url)
    shard, row = find_row(corpus, result(7).sample.key)
    image = result(7).image
    assert image is not None
    other = replace(result(7), image=image ^ np.uint8(1))  # every value off by one
    comparison = compare(corpus, shard, row, other, PNG)
    assert not comparison.equal and comparison.text == "other bytes than on cpu by version 0, PSNR 48.1 dB"


def test_failures_are_compared_by_what_they_say(tmp_path: Path) -> None:
    corpus = make_corpus(str(tmp_path))
    shard, row = find_row(corpus, result(2).sample.key)
    assert compare(corpus, shard, row, result(2, failed=True), PNG).equal
    comparison = compare(corpus, shard, row, result(2), PNG)
    assert not comparison.equal and comparison.text == "ValueError: out of luck there, an image now"


def test_a_key_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only is 'x'; allowed: a key of the 3 shards"):
        find_row(make_corpus(str(tmp_path)), "x")


def test_psnr() -> None:
    black, white = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    assert (psnr(black, white), psnr(white, white), psnr(white, white[:1])) == (0.0, np.inf, -np.inf)
