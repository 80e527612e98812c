"""The columns of a shard's Parquet file."""

import json
from dataclasses import dataclass

import pyarrow as pa

from hybridiff.errors import UsageError

FIELDS = pa.schema(
    [
        ("key", pa.string()),
        ("prompt", pa.string()),
        ("negative_prompt", pa.string()),
        ("seed", pa.int64()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("file", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),
        ("guidance_scale", pa.float64()),
        ("steps", pa.int32()),
        ("scheduler", pa.string()),
        ("model", pa.string()),
        ("revision", pa.string()),
        ("version", pa.string()),
        ("dtype", pa.string()),
        ("device", pa.string()),
        ("group_size", pa.int32()),
        ("schedule", pa.string()),
        ("schedule_options", pa.string()),
        ("steps_full", pa.int32()),
        ("steps_half", pa.int32()),
        ("steps_skipped", pa.int32()),
        ("tau1", pa.int32()),
        ("tau2", pa.int32()),
        ("discrepancy", pa.list_(pa.float32())),
        ("prompt_truncated", pa.bool_()),
    ]
)
IMAGE = pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))  # as Hugging Face's data sets have it


@dataclass(frozen=True)
class RowSettings:
    """The columns that are equal in all rows of a run.

    Args:
        guidance_scale: Of classifier-free guidance.
        steps: Sampling steps.
        scheduler: Class name.
        model: As it was named.
        revision: What pins its weights.
        version: Of this package.
        dtype: Of the model's arithmetic.
        device: What it ran on.
        group_size: Ranks that made an image together.
        schedule: Its name.
        schedule_options: JSON; those that were given.
    """

    guidance_scale: float
    steps: int
    scheduler: str
    model: str
    revision: str | None
    version: str
    dtype: str
    device: str
    group_size: int
    schedule: str
    schedule_options: str


def metadata_schema(user_schema: pa.Schema, embed_images: bool = False) -> pa.Schema:
    """The corpus's own columns, then the user's; the schema's metadata tells ``datasets`` which column holds images.

    Raises:
        UsageError: If a user's column has the name of one of the corpus's.
    """
    own = [*FIELDS, IMAGE] if embed_images else list(FIELDS)
    names = [column.name for column in own]
    taken = [name for name in user_schema.names if name in names]
    if taken:
        raise UsageError(f"column {taken[0]!r} of the prompt tables is reserved; allowed: any name but {', '.join(names)}")
    metadata = {"huggingface": json.dumps({"info": {"features": {IMAGE.name: {"_type": "Image"}}}})}
    return pa.schema([*own, *(column.remove_metadata() for column in user_schema)], metadata if embed_images else None)
