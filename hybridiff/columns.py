"""The columns of a corpus: one line each. The writer, the dataset card, the check and the prompt tables read this one list.

Adding a column is one line of ``COLUMNS`` and its value at the source that the line names.
"""

import json
from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple

import pyarrow as pa

from hybridiff.errors import UsageError


class ValueSource(Enum):
    """What has a column's value, under the column's name."""

    PROMPT = "the requested sample"
    RESULT = "the generated result"
    RUN = "the run, for all of its rows"
    FILE = "the image file"


class Column(NamedTuple):
    """A column that Hybridiff writes."""

    name: str
    type: pa.DataType
    source: ValueSource
    meaning: str


COLUMNS = (
    Column("key", pa.string(), ValueSource.PROMPT, "name of the image, unique in the corpus"),
    Column("prompt", pa.string(), ValueSource.PROMPT, "text that the image was generated from"),
    Column("negative_prompt", pa.string(), ValueSource.PROMPT, "text that the image was steered away from"),
    Column("seed", pa.int64(), ValueSource.PROMPT, "seed of the initial noise"),
    Column("status", pa.string(), ValueSource.FILE, "`ok` or `error`"),
    Column("error", pa.string(), ValueSource.FILE, "why the row failed"),
    Column("file", pa.string(), ValueSource.FILE, "the image: tar file, then the name inside"),
    Column("width", pa.int32(), ValueSource.FILE, "pixels"),
    Column("height", pa.int32(), ValueSource.FILE, "pixels"),
    Column("sha256", pa.string(), ValueSource.FILE, "SHA-256 of the image file"),
    Column("guidance_scale", pa.float64(), ValueSource.RUN, "weight of classifier-free guidance"),
    Column("steps", pa.int32(), ValueSource.RUN, "sampling steps"),
    Column("scheduler", pa.string(), ValueSource.RUN, "class of the noise scheduler"),
    Column("model", pa.string(), ValueSource.RUN, "model that generated the image"),
    Column("revision", pa.string(), ValueSource.RUN, "revision or digest of the model's weights"),
    Column("version", pa.string(), ValueSource.RUN, "version of Hybridiff"),
    Column("dtype", pa.string(), ValueSource.RUN, "data type of the model's arithmetic"),
    Column("device", pa.string(), ValueSource.RUN, "device that generated the image"),
    Column("group_size", pa.int32(), ValueSource.RUN, "ranks that generated the image together"),
    Column("schedule", pa.string(), ValueSource.RUN, "schedule, which decides the steps that are computed in full"),
    Column("schedule_options", pa.string(), ValueSource.RUN, "JSON; options that are not in it have their defaults"),
    Column("steps_full", pa.int32(), ValueSource.RESULT, "steps computed with both guidance branches"),
    Column("steps_half", pa.int32(), ValueSource.RESULT, "steps computed with one guidance branch"),
    Column("steps_skipped", pa.int32(), ValueSource.RESULT, "steps extrapolated from earlier ones, without computation"),
    Column("tau1", pa.int32(), ValueSource.RESULT, "first step that was not full, counted from 0; null if all were full"),
    Column("tau2", pa.int32(), ValueSource.RESULT, "step after the last that was not full"),
    Column("discrepancy", pa.list_(pa.float32()), ValueSource.RESULT, "difference of the guidance branches, one per full step"),
    Column(
        "prompt_truncated",
        pa.bool_(),
        ValueSource.RESULT,
        "whether the prompt exceeded a text encoder's window",
    ),
)
IMAGE = pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))  # as Hugging Face's datasets have it
IMAGE_MEANING = "the image file itself"
CAPTION = "caption"  # column of a selection's own texts, and the option of its run record that holds their template
NULL_COLUMNS = "null_columns"  # in a tar's first JSON: the columns whose value is null, though it shows an empty one
USER_MEANING = "carried over from the prompt table"
SCHEMA = pa.schema([(column.name, column.type) for column in COLUMNS])
PROMPT_COLUMNS = tuple(column.name for column in COLUMNS if column.source is ValueSource.PROMPT)
RUN_COLUMNS = frozenset(column.name for column in COLUMNS if column.source is ValueSource.RUN)
RESERVED = frozenset({*SCHEMA.names, IMAGE.name, NULL_COLUMNS})  # user columns of these names are stored as input_<name>


def row_of(sources: Mapping[ValueSource, Any]) -> dict[str, Any]:
    """The values of all of ``COLUMNS``.

    Args:
        sources: for each source a mapping or an object that has its columns' values by name.
    """
    return {column.name: _value(sources[column.source], column.name) for column in COLUMNS}


def meaning(name: str) -> str:
    """What a column of the Parquet files means, in a few words."""
    known = {column.name: column.meaning for column in COLUMNS} | {IMAGE.name: IMAGE_MEANING}
    return known.get(name, USER_MEANING)


def metadata_schema(user_schema: pa.Schema, embed_images: bool = False) -> pa.Schema:
    """The schema of the Parquet files: ``COLUMNS``, the image if embedded, then the user's columns.

    Its metadata marks the column of images for ``datasets``.

    Raises:
        UsageError: a user column has a reserved name.
    """
    reserved = [name for name in user_schema.names if name in RESERVED - (set() if embed_images else {IMAGE.name})]
    if reserved:
        allowed = f"any name but {', '.join(sorted(RESERVED))}"
        raise UsageError(f"column {reserved[0]!r} of the prompt tables is reserved; allowed: {allowed}")
    own = [*SCHEMA, IMAGE] if embed_images else list(SCHEMA)
    metadata = {"huggingface": json.dumps({"info": {"features": {IMAGE.name: {"_type": "Image"}}}})}
    return pa.schema([*own, *(column.remove_metadata() for column in user_schema)], metadata if embed_images else None)


def _value(source: Any, name: str) -> Any:
    return source[name] if isinstance(source, Mapping) else getattr(source, name)
