"""Images of shards: what is not the image of its row is damage, also where it could be decoded."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hybridiff.corpus import Corpus
from hybridiff.corpus.reader import ShardDamaged
from hybridiff.evaluate.shard_images import ImagesByKey, decode, shard_rows
from tests.evaluate.evaluations import make_images, write_corpus

READERS: dict[str, Callable[[Corpus], object]] = {
    "in order": lambda corpus: list(shard_rows(corpus, 0, 8)),
    "by key": lambda corpus: ImagesByKey(corpus).read(0, "image-0000"),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_changed_bit_of_an_image_is_damage(reader: str, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", make_images(2))
    READERS[reader](corpus)
    tar = tmp_path / "corpus" / "images" / "00000.tar"
    content = bytearray(tar.read_bytes())
    content[content.index(b"IDAT") + 100] ^= 1
    tar.write_bytes(content)
    with pytest.raises(ShardDamaged, match="the image of 'image-0000' is not the one of its row"):
        READERS[reader](corpus)


@pytest.mark.parametrize("kind", ["RGBA", "CMYK", "L", "16 bits"])
def test_images_of_other_kinds_become_rgb_of_8_bits(kind: str) -> None:
    grey = np.arange(0, 256, 17, dtype=np.uint8).reshape(4, 4)
    image = Image.fromarray(grey.astype(np.uint16) * 257) if kind == "16 bits" else Image.fromarray(grey).convert("RGB")
    file = io.BytesIO()
    (image if kind == "16 bits" else image.convert(kind)).save(file, "TIFF")
    assert np.abs(decode(file.getvalue()).astype(int) - grey[..., None]).max() <= 1
