"""Which prompts a text encoder's window cuts off, seen in the calls of a pipeline's tokenizers.

Pipelines put prompts into chat templates and behind system prompts, each in its own way, and limit the length of the whole. So a
pipeline's own calls are observed: what a tokenizer was told to cut is tokenized again without a limit.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

LONGEST_PROMPT = 20_000  # characters; the longest windows, a few thousand tokens, are those of pipelines for long captions


def shortened_prompt(prompt: str) -> str:
    """What the pipeline is given of a prompt: no more than any text encoder reads, as tokenizers take minutes for a megabyte."""
    return prompt[:LONGEST_PROMPT]


@dataclass(frozen=True)
class Cut:
    """A text that a pipeline's tokenizer cut off.

    Args:
        text: the whole text, with the pipeline's template.
        row: its position in the tokenizer's call.
        rows: number of texts of that call.
    """

    text: str
    row: int
    rows: int


@dataclass
class PromptWindows:
    """What the tokenizers of a pipeline did in one call of it.

    Args:
        limit: number of tokens that the pipeline keeps of a prompt, where its call has such an option.

    Attributes:
        cuts: the texts that were cut off.
        unlimited: tokenizers that may return more than ``limit`` tokens, which the pipeline then cuts by itself.
    """

    limit: int | None
    cuts: list[Cut] = field(default_factory=list)
    unlimited: list[PreTrainedTokenizerBase] = field(default_factory=list)

    def observe(self, tokenizer: PreTrainedTokenizerBase, text: Any, options: dict[str, Any]) -> None:
        """Called before a tokenizer is."""
        texts = [text] if isinstance(text, str) else list(text) if isinstance(text, (list, tuple)) else []
        if not texts or not all(isinstance(one, str) for one in texts):
            return
        window = options.get("max_length") or tokenizer.model_max_length
        if not options.get("truncation") or (self.limit is not None and window > self.limit):
            self.unlimited.append(tokenizer)
        if options.get("truncation"):
            lengths = token_counts(tokenizer, texts, options.get("add_special_tokens", True))
            rows = enumerate(zip(texts, lengths, strict=True))
            self.cuts += [Cut(one, row, len(texts)) for row, (one, length) in rows if length > window]

    def padded(self, encoded: Any, options: dict[str, Any]) -> None:
        """Called before a tokenizer pads what the pipeline itself has cut: rows that fill the window are taken for cut off."""
        if isinstance(encoded, dict) and options.get("max_length"):
            rows = encoded["input_ids"]
            self.cuts += [Cut("", row, len(rows)) for row, ids in enumerate(rows) if len(ids) >= options["max_length"]]

    def truncated(self, prompts: Sequence[str], negative: Sequence[str]) -> list[bool]:
        """Which prompts were cut off.

        Args:
            prompts: prompts of the rows, whole.
            negative: negative prompts that the pipeline was given too.
        """
        given, others = ([shortened_prompt(prompt) for prompt in some] for some in (prompts, negative))
        found = [len(prompt) > LONGEST_PROMPT for prompt in prompts]
        for cut in self.cuts:
            for row in _rows_of(cut, given, others):
                found[row] = True
        if self.limit is not None:
            for tokenizer in {id(one): one for one in self.unlimited}.values():
                lengths = token_counts(tokenizer, given, special=False)
                found = [was or length > self.limit for was, length in zip(found, lengths, strict=True)]
        return found


def token_counts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], special: bool) -> list[int]:
    """Number of tokens of each text, however long.

    Args:
        tokenizer: tokenizer of a pipeline.
        texts: texts to count.
        special: whether the tokens around each text count.
    """
    encoded = tokenizer(list(texts), add_special_tokens=special, truncation=False, verbose=False)
    return [len(ids) for ids in encoded["input_ids"]]


@contextmanager
def observed_windows(pipeline: Any, limit: int | None) -> Iterator[PromptWindows]:
    """The context of a pipeline's call that observes its tokenizers.

    Args:
        pipeline: a pipeline of Diffusers.
        limit: maximum length of prompts in tokens, as it was given to the pipeline; None for its default.
    """
    option = inspect.signature(type(pipeline).__call__).parameters.get("max_sequence_length")
    default = option.default if option is not None and isinstance(option.default, int) else None
    windows = PromptWindows(limit or default or getattr(pipeline, "tokenizer_max_length", None))
    parts = [getattr(part, "tokenizer", part) for part in getattr(pipeline, "components", {}).values()]  # processors have one
    tokenizers = {id(part): part for part in parts if isinstance(part, PreTrainedTokenizerBase)}.values()
    kinds = [type(tokenizer) for tokenizer in tokenizers]
    for tokenizer in tokenizers:
        tokenizer.__class__ = _observed(type(tokenizer), windows)
    try:
        yield windows
    finally:
        for tokenizer, kind in zip(tokenizers, kinds, strict=True):
            tokenizer.__class__ = kind


def _observed(kind: type[PreTrainedTokenizerBase], windows: PromptWindows) -> Any:
    """A class of tokenizers that reports its calls; calls of objects are looked up in their class, so no attribute would do."""

    inside = False  # a tokenizer's call may pad by itself

    def call(self: PreTrainedTokenizerBase, text: Any = None, *args: Any, **options: Any) -> Any:
        nonlocal inside
        if inside:
            return kind.__call__(self, text, *args, **options)
        inside = True
        try:
            windows.observe(self, text, options)
            return kind.__call__(self, text, *args, **options)
        finally:
            inside = False

    def pad(self: PreTrainedTokenizerBase, encoded: Any, *args: Any, **options: Any) -> Any:
        if not inside:
            windows.padded(encoded, options)
        return kind.pad(self, encoded, *args, **options)

    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__call__": call, "pad": pad}
    return type(kind.__name__, (kind,), names)


def _rows_of(cut: Cut, prompts: Sequence[str], negative: Sequence[str]) -> list[int]:
    """Rows whose prompt a text was made of: the longest that it contains, as one prompt may contain another.

    Where it contains none, the pipeline has changed the prompt, and the text's position says the row; else it may be of any.
    """
    text = _plain(cut.text)
    inside = [(len(plain), row) for row, one in enumerate(prompts) if (plain := _plain(one)) in text]
    others = [len(plain) for one in negative if (plain := _plain(one)) and plain in text]
    longest = max((length for length, _ in inside), default=0)
    if longest < max(others, default=0):
        return []
    if longest:
        return [row for length, row in inside if length == longest]
    return [cut.row] if cut.rows == len(prompts) else list(range(len(prompts)))


def _plain(text: str) -> str:
    """A text without what templates and pipelines change: case, and white space."""
    return " ".join(text.casefold().split())
