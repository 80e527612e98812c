"""The section ``data``."""

import codecs
import importlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, runtime_checkable

from hybridiff.errors import UsageError, require, require_choice, require_whole
from hybridiff.secrets import refuse_credentials

BUNDLED_PROMPTS = "demo-prompts"
EmptyPrompts = Literal["refuse", "allow"]
LONGEST_LEASE_S = 1200.0  # a group waits as long for shards of others, where nothing else is left
MAX_BATCH = 4096  # images


@runtime_checkable
class PromptSource(Protocol):
    """An own source of prompts, used wherever a file is: read more than once, by every rank, with the same rows each time."""

    def identity(self) -> str:
        """Text that changes whenever the rows do, such as a query and the version of what it asks."""
        ...

    def __iter__(self) -> Iterator[Any]:
        """Rows as dicts of column names to values, or pyarrow record batches and tables."""
        ...


if TYPE_CHECKING:
    Prompts = list[str | dict[str, Any] | PromptSource] | dict[str, Any] | PromptSource | str
else:  # what a configuration can hold: a parser that knew the protocol would import each file name as a class path
    Prompts = list[str | dict[str, Any]] | dict[str, Any] | str


@dataclass(frozen=True)
class DataConfig:
    """Tables of prompts, and how they are read.

    Args:
        prompts: prompt tables (.jsonl, .csv, .tsv, .txt, .parquet): files, urls, globs and own sources (class_path with
            init_args, or objects), read in this order; demo-prompts is the bundled one.
        prompt_column: column that holds the prompt.
        key_column: column that holds each row's key; by default a column named key, else keys are made from file name and row.
        delimiter: character between the cells of .csv and .tsv; a comma and a tab by default.
        encoding: encoding of text files, such as utf-8, utf-16 or cp1252.
        empty_prompts: whether rows without a prompt are an error (refuse) or images of the empty prompt (allow).
        max_text: characters of a line or cell, and bytes of a text or binary value in Parquet; longer ones are refused.
        max_expansion: bytes that a byte of a compressed file may unfold to, beyond the first 16 MiB.
        max_rows: rows of all files together.
        max_row_group: unfolded bytes of a row group of Parquet, as its footer states them.
        batch_size: number of images that a group generates at once.
        lease_s: seconds that a group's lease on a shard lasts without renewal; on s3, gs and abfs 120 or more, as requests are
            retried for 90 there.
    """

    prompts: Prompts = field(default_factory=list)
    prompt_column: str = "prompt"
    key_column: str | None = None
    delimiter: str | None = None
    encoding: str = "utf-8"
    empty_prompts: EmptyPrompts = "refuse"
    max_text: int = 1 << 24
    max_expansion: float = 200.0
    max_rows: int = 1_000_000_000
    max_row_group: int = 1 << 32
    batch_size: int = 4
    lease_s: float = 120.0

    def __post_init__(self) -> None:
        given = self.prompts if isinstance(self.prompts, (list, tuple)) else [self.prompts]
        object.__setattr__(self, "prompts", [_source(source) for source in given if source != ""])
        require(len(self.sources) > 0, "data.prompts", self.prompts, "one or more files, urls, globs or own sources")
        for source in self.sources:
            refuse_credentials("data.prompts", source)
        other = "a column of its own; negative_prompt and seed have other meanings"
        require(self.prompt_column not in ("negative_prompt", "seed"), "data.prompt_column", self.prompt_column, other)
        self._check_reading()
        require(1 <= self.batch_size <= MAX_BATCH, "data.batch_size", self.batch_size, f"1 to {MAX_BATCH}")
        require(1 <= self.lease_s <= LONGEST_LEASE_S, "data.lease_s", self.lease_s, f"1 to {LONGEST_LEASE_S:g} seconds")

    @property
    def sources(self) -> list[str | PromptSource]:
        """``prompts`` as the list that it is after checks."""
        assert isinstance(self.prompts, list)
        return [source for source in self.prompts if not isinstance(source, dict)]

    @property
    def names(self) -> list[str]:
        """``sources`` as a run record holds them: own sources by their class."""
        return [source if isinstance(source, str) else type(source).__qualname__ for source in self.sources]

    def _check_reading(self) -> None:
        if self.delimiter in ("\\t", "tab"):  # as a shell passes it on
            object.__setattr__(self, "delimiter", "\t")
        single = self.delimiter is None or (len(self.delimiter) == 1 and self.delimiter not in '"\r\n')
        require(single, "data.delimiter", self.delimiter, 'one character, not a quote or line end, such as ";"')
        known = False
        with suppress(LookupError, ValueError):
            known = codecs.lookup(self.encoding)._is_text_encoding
        require(known, "data.encoding", self.encoding, "a text encoding of Python, such as utf-8, utf-16, cp1252 or gb18030")
        require_choice("data.empty_prompts", self.empty_prompts, get_args(EmptyPrompts))
        for name, largest in (("max_text", 1 << 30), ("max_rows", 1 << 40), ("max_row_group", 1 << 44)):
            given = getattr(self, name)
            require_whole(f"data.{name}", given)
            require(1 <= given <= largest, f"data.{name}", given, f"1 to {largest}")
        require(1 <= self.max_expansion <= 1e6, "data.max_expansion", self.max_expansion, "1 to 1000000")


def _source(given: Any) -> str | PromptSource:
    """A path or url, that of the bundled table where its name is given, or an own source."""
    if given == BUNDLED_PROMPTS:
        return str(files("hybridiff") / "assets" / f"{given}.jsonl")
    made: Any = _made(given) if isinstance(given, dict) else given
    allowed = "files, urls, globs, and own sources: class_path with init_args, or objects with identity() and __iter__()"
    require(isinstance(made, (str, PromptSource)) and not isinstance(made, type), "data.prompts", given, allowed)
    return made


def _made(given: dict[str, Any]) -> Any:
    """An own source from the path of its class and its arguments."""
    path, arguments = given.get("class_path"), given.get("init_args") or {}
    is_spec = (
        isinstance(path, str) and "." in path and isinstance(arguments, dict) and given.keys() <= {"class_path", "init_args"}
    )
    require(is_spec, "data.prompts", given, "class_path (module.Class) and init_args (names and values)")
    module, _, name = str(path).rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)(**arguments)
    except Exception as error:  # the user's code may raise anything
        raise UsageError(f"data.prompts: {path} can't be made: {type(error).__name__}: {' '.join(str(error).split())}") from error
