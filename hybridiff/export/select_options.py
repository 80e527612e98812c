"""The options of a selection, checked before anything heavy is imported or read."""

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hybridiff.config.output import MAX_SHARD_SIZE
from hybridiff.errors import UsageError, require, require_choice
from hybridiff.images import IMAGE_FORMATS, Encoder
from hybridiff.images.encoder import LOSSLESS

_SPLIT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_WIDEST = 1000  # characters that a format may ask for
_SHARES = "names and shares that sum to 1, such as train:0.98,val:0.02"


@dataclass(frozen=True)
class Split:
    """A part of a selection.

    Args:
        name: its name, and that of its directory.
        share: fraction of the selected rows that it gets, by their keys.
    """

    name: str
    share: float


class Caption:
    """A template of captions: text with names of columns in braces.

    Args:
        template: such as "{prompt}, aesthetic {aesthetic:.1f}"; {{ and }} stand for braces.

    Attributes:
        fields: names of columns, as they are written.

    Raises:
        UsageError: it is no such text.
    """

    def __init__(self, template: str) -> None:
        self.template = template
        try:
            parts = list(string.Formatter().parse(template))
        except ValueError as error:
            raise _wrong_caption(template, str(error)) from error
        self._parts = [(text, field, spec or "") for text, field, spec, _ in parts]
        for _, field, spec, conversion in parts:
            if conversion or "{" in (spec or ""):
                raise _wrong_caption(template, "a conversion (!r) or a brace in a format")
            if any(int(digits) > _WIDEST for digits in re.findall(r"\d+", spec or "")):
                raise _wrong_caption(template, f"a format of more than {_WIDEST} characters")
            if field == "":
                raise _wrong_caption(template, "{} without a name")
        self.fields = tuple(dict.fromkeys(field for _, field, _ in self._parts if field is not None))

    def render(self, values: Callable[[str], Any]) -> str:
        """The caption of a row; a column without a value is empty text.

        Args:
            values: gives the value of a column, by its name as it is written.

        Raises:
            UsageError: a format does not fit a value.
        """
        text = []
        for literal, field, spec in self._parts:
            text.append(literal)
            if field is not None and (value := values(field)) is not None:
                try:
                    text.append(format(value, spec))
                except (ValueError, TypeError) as error:
                    raise _wrong_caption(self.template, f"{spec!r} does not fit {field}, such as {value!r}") from error
        return "".join(text)


@dataclass(frozen=True)
class SelectOptions:
    """What a selection is.

    Args:
        where: condition in SQL on the columns of a row; None selects every row that has an image.
        splits: parts; none for a single corpus.
        image_format: format to encode the images in; None copies them.
        quality: quality of ``image_format``; None copies images that have this format, and encodes others at 95.
        shard_size: images in a shard; None: that of the source.
        columns: columns that the selection carries besides Hybridiff's own; None: those of the source's prompt tables, and the
            scores in ``where``.
        caption: template of the captions; None keeps them.

    Raises:
        UsageError: a value is not allowed.
    """

    where: str | None = None
    splits: tuple[Split, ...] = ()
    image_format: str | None = None
    quality: int | None = None
    shard_size: int | None = None
    columns: tuple[str, ...] | None = None
    caption: Caption | None = None

    def __post_init__(self) -> None:
        if self.image_format is None:
            require(self.quality is None, "--quality", self.quality, "none without --format, as images are then copied")
        else:
            require_choice("--format", self.image_format, IMAGE_FORMATS)
            most = LOSSLESS if self.image_format == "webp" else 100
            fits = self.quality is None or (1 <= self.quality <= most and self.image_format != "png")
            allowed = "none with --format png, which is lossless" if self.image_format == "png" else f"1 to {most}"
            require(fits, "--quality", self.quality, allowed)
        size = self.shard_size
        require(size is None or 1 <= size <= MAX_SHARD_SIZE, "--shard_size", size, f"1 to {MAX_SHARD_SIZE}")

    def encoder_for(self, image_format: str, quality: int) -> tuple[Encoder, bool]:
        """The format of the new images and whether they are encoded anew, given the format and quality of the source."""
        if self.image_format is None or (self.image_format == image_format and self.quality is None):
            return Encoder(image_format, quality), False
        return Encoder(self.image_format, 95 if self.quality is None else self.quality), True


def parse_splits(text: str) -> tuple[Split, ...]:
    """Splits from "train:0.98,val:0.02".

    Raises:
        UsageError: it is something else, or the shares do not sum to 1.
    """
    found = []
    for part in text.split(","):
        name, colon, share = part.strip().partition(":")
        try:
            value = float(share)
        except ValueError:
            value = -1.0
        if not colon or not _SPLIT_NAME.fullmatch(name) or not 0 < value <= 1:
            raise UsageError(f"--split is {text!r}, where {part.strip()!r} is no name and share; allowed: {_SHARES}")
        found.append(Split(name, value))
    names = [split.name.lower() for split in found]
    require(len(set(names)) == len(names), "--split", text, f"each name once: {_SHARES}")
    total = sum(split.share for split in found)
    if abs(total - 1) > 1e-6:
        raise UsageError(f"--split is {text!r}, whose shares sum to {total:g}; allowed: {_SHARES}")
    return tuple(found)


def parse_names(text: str) -> tuple[str, ...]:
    """Names of columns from a list with commas; an empty text names none."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def split_of(number: float, splits: Sequence[Split]) -> int:
    """Index of the split that a number from 0 to 1 falls in."""
    for index, split in enumerate(splits[:-1]):
        if number < split.share:
            return index
        number -= split.share
    return len(splits) - 1


def _wrong_caption(template: str, reason: str) -> UsageError:
    return UsageError(f"--caption is {template!r} ({reason}); allowed: text with names of columns in braces, such as {{prompt}}")
