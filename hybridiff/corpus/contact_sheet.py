"""The first images of a corpus on one page, each over its prompt."""

import io
import textwrap
from collections.abc import Iterable, Iterator
from itertools import islice

from PIL import Image, ImageDraw, ImageFont

from hybridiff.config import IMAGE_FORMATS
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.damage import reading
from hybridiff.corpus.names import tar_name
from hybridiff.corpus.samples import read_samples

_COLUMNS = 8
_GAP = 8  # pixels around a picture
_SMALLEST, _LARGEST = 128, 256  # pixels of a shown picture's longer side
_LINES, _LINE_HEIGHT, _LETTER_WIDTH = 4, 12, 5.5  # of the text, in pixels


def contact_sheet(corpus: Corpus, marker_indices: Iterable[int], most: int = 32) -> bytes:
    """A PNG of the first images of these shards, in order; reads no more of the tars than it shows.

    Raises:
        ShardDamaged: If one of them can't be read.
    """
    shown = [(_fit(image), prompt) for image, prompt in islice(_pictures(corpus, sorted(marker_indices)), most)]
    width = max((image.width for image, _ in shown), default=_SMALLEST)
    height = max((image.height for image, _ in shown), default=_SMALLEST)
    cell_width, cell_height = width + _GAP, height + _LINES * _LINE_HEIGHT + _GAP
    columns = max(1, min(_COLUMNS, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    sheet = Image.new("RGB", (columns * cell_width + _GAP, rows * cell_height + _GAP), "white")
    for place, (image, prompt) in enumerate(shown):
        row, column = divmod(place, columns)
        left, top = _GAP + column * cell_width, _GAP + row * cell_height
        sheet.paste(image, (left, top))
        sheet.paste(_text(prompt, width), (left, top + height + 2))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _pictures(corpus: Corpus, indices: Iterable[int]) -> Iterator[tuple[Image.Image, str]]:
    for index in indices:
        with reading(corpus, index, tar_name(index)), corpus.fs.open(corpus.path(tar_name(index)), "rb") as handle:
            for _, files in read_samples(handle):
                encoded = next((files[ending] for ending in IMAGE_FORMATS if ending in files), b"")
                yield Image.open(io.BytesIO(encoded)).convert("RGB"), files["txt"].decode()


def _fit(image: Image.Image) -> Image.Image:
    longer = max(image.size)
    if longer > _LARGEST:
        size = tuple(max(1, round(side * _LARGEST / longer)) for side in image.size)
        return image.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    factor = max(1, -(-_SMALLEST // longer))  # whole, so that every pixel keeps its shape
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _text(prompt: str, width: int) -> Image.Image:
    label = Image.new("RGB", (width, _LINES * _LINE_HEIGHT), "white")
    lines = textwrap.wrap(prompt, max(8, int(width / _LETTER_WIDTH)), max_lines=_LINES, placeholder=" ...")
    draw, font = ImageDraw.Draw(label), ImageFont.load_default(size=10)
    for number, line in enumerate(lines):
        draw.text((0, number * _LINE_HEIGHT), line, fill="black", font=font)
    return label
