"""What was found out about large tables, as JSON."""

import base64
import hashlib
import json
from typing import Any

import pyarrow as pa

from hybridiff.prompts.copies import COPIED
from hybridiff.prompts.making import CopyPlace, Made
from hybridiff.prompts.parts import Part
from hybridiff.prompts.rows import Request
from hybridiff.prompts.streamed import UserColumn
from hybridiff.prompts.tables import reported

FORMAT = 3  # of records and copies; another one is not read
_CHANGES = ("size", "mtime", "created", "ETag", "LastModified", "last_modified", "Last-Modified", "md5", "generation", "modified")


def identity(request: Request) -> str | None:
    """What names a request's files as they are now: it changes whenever a file does; None where a file system does not tell."""
    files = []
    for source in request.sources:
        with reported(source.name, "cannot be read"):
            info = source.files.info(source.path)
        changes = {name: str(info[name]) for name in _CHANGES if info.get(name) is not None}
        if not changes.keys() - {"size"}:
            return None
        files.append([source.name, source.path, source.suffix, source.compression, changes])
    options = [FORMAT, request.data.prompt_column, request.data.key_column, request.images, request.slugs]
    return hashlib.sha256(json.dumps([options, files]).encode()).hexdigest()[:32]


def make_record(made: Made) -> dict[str, Any]:
    """Everything but the request itself, as JSON holds it."""
    parts = [
        {
            "rows": part.rows,
            "copied": part.path != part.source.path,
            "is_copy": part.is_copy,
            "makes_keys": part.makes_keys,
            "kinds": _text(pa.schema(list(part.kinds.items()))),
        }
        for part in made.parts
    ]
    return {
        "parts": parts,
        "columns": [[column.name, column.as_text] for column in made.columns],
        "kinds": _text(pa.schema([(column.stored, column.kind) for column in made.columns])),
        "content": made.content,
    }


def read_record(record: dict[str, Any], request: Request, place: CopyPlace) -> Made:
    """What a record tells, for the same request."""
    parts = []
    for index, one in enumerate(record["parts"]):
        source, slug, copied = request.sources[index], request.slugs[index], one["copied"]
        files, path = (place.files, place.path(index)) if copied else (source.files, source.path)
        data = COPIED if one["is_copy"] else request.data
        kinds = {field.name: field.type for field in _schema(one["kinds"])}
        parts.append(Part(source, files, path, slug, data, request.images, one["rows"], kinds, one["is_copy"], one["makes_keys"]))
    fields = zip(record["columns"], _schema(record["kinds"]), strict=True)
    columns = [UserColumn(name, field.name, field.type, as_text) for (name, as_text), field in fields]
    return Made(parts, columns, record["content"])


def _text(schema: pa.Schema) -> str:
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def _schema(text: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))
