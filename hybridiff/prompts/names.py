"""Names of columns: each once, not too many, none that nearly equals one with a meaning; and which look like settings."""

import re
from collections.abc import Collection, Iterable, Sequence

from hybridiff.config import DataConfig
from hybridiff.errors import UsageError
from hybridiff.secrets import redact

MAX_COLUMNS = 1000  # every row of the corpus has all of them
SETTINGS = frozenset(
    [
        *("steps", "num_steps", "num_inference_steps", "inference_steps", "sampling_steps"),
        *("guidance", "guidance_scale", "guidance_rescale", "cfg", "cfg_scale", "scale", "strength", "eta", "clip_skip"),
        *("width", "height", "size", "resolution", "aspect_ratio"),
        *("images_per_prompt", "num_images", "num_images_per_prompt", "n_iter", "max_sequence_length"),
        *("scheduler", "sampler", "sampler_name", "schedule", "dtype"),
        *("model", "checkpoint", "ckpt", "lora", "loras", "lora_scale"),
        *("negative", "prompt_2", "negative_prompt_2"),
    ]
)


def shown(value: object) -> str:
    """A value as messages show it: its repr on one line, without secrets, shortened."""
    text = str(redact(repr(value)))
    return text if len(text) <= 60 else f"{text[:57]}..."


def shown_names(names: Iterable[str]) -> str:
    """Names of columns as messages show them: not too many, and none too long."""
    known = list(names)
    return ", ".join([*map(shown, known[:10]), *(["..."] if len(known) > 10 else [])])


def key_column(columns: Collection[str], data: DataConfig) -> str | None:
    """The column that holds the keys of a file with these columns; None if they are made."""
    return data.key_column or ("key" if "key" in columns and data.prompt_column != "key" else None)


def user_columns(columns: Collection[str], data: DataConfig) -> list[str]:
    """The columns of a file that have no meaning here and are carried along."""
    meanings = {data.prompt_column, key_column(columns, data), "negative_prompt", "seed"}
    return [name for name in columns if name not in meanings]


def check_names(file: str, names: Sequence[str], data: DataConfig) -> None:
    """Raises ``UsageError`` where a file's columns are too many, or a name is there twice or nearly one with a meaning."""
    if len(names) > MAX_COLUMNS:
        raise UsageError(f"{file}: has more than {MAX_COLUMNS} columns; allowed: {MAX_COLUMNS} in all files together")
    if len(set(names)) < len(names):
        raise UsageError(f"{file}: column names are [{shown_names(names)}]; allowed: each once")
    meanings = (data.prompt_column, data.key_column or "key", "negative_prompt", "seed")
    meant = {_squashed(name): name for name in meanings}
    for column in names:
        name = meant.get(_squashed(column))
        if name is not None and column not in meanings:
            raise UsageError(f"{file}: has a column {shown(column)}; allowed: {shown(name)}, if that is meant, or another name")


def check_columns(file: str, columns: Collection[str], data: DataConfig) -> None:
    """Raises ``UsageError`` where a file with rows lacks a column that is asked for."""
    for option in ("prompt_column", "key_column"):
        name = getattr(data, option)
        if name is not None and name not in columns:
            raise UsageError(f"{file}: has no column {name!r}; columns there: {shown_names(columns)}; see data.{option}")


def settings_among(names: Iterable[str]) -> list[str]:
    """Those of the user's columns that look like settings of the generation, which come from the configuration alone."""
    return [name for name in names if re.sub(r"[\s-]+", "_", name.strip().lower()) in SETTINGS]


def _squashed(name: str) -> str:
    return re.sub(r"[\s_\u200b\u2060\ufeff-]+", "", name).casefold()  # spaces of no width too
