"""The section ``data``."""

from dataclasses import dataclass, field
from importlib.resources import files

from hybridiff.errors import require

BUNDLED_PROMPTS = "demo-prompts"
LONGEST_LEASE_S = 1200.0  # a group waits as long for shards of others, where nothing else is left


@dataclass(frozen=True)
class DataConfig:
    """Which prompts are drawn.

    Args:
        prompts: Prompt tables (.jsonl, .csv, .tsv, .txt, .parquet): a file, url or glob, or a list of them, read in this order;
            demo-prompts is the bundled one.
        prompt_column: Column that holds the prompt.
        key_column: Column that holds each row's key; by default a column named key, else keys are made from file and row.
        batch_size: Prompts that a group draws at once; where a row gets several images, each counts.
        lease_s: seconds after which a shard whose group does not answer is another group's; on s3, gs and abfs 120 or more, as
            requests are retried for 90 there
    """

    prompts: list[str] | str = field(default_factory=list)
    prompt_column: str = "prompt"
    key_column: str | None = None
    batch_size: int = 4
    lease_s: float = 120.0

    def __post_init__(self) -> None:
        require(len(self.prompts) > 0, "data.prompts", self.prompts, "one or more files, urls or globs")
        if isinstance(self.prompts, str):
            object.__setattr__(self, "prompts", [self.prompts])
        object.__setattr__(self, "prompts", [_bundled(one) for one in self.prompts])
        require(self.batch_size >= 1, "data.batch_size", self.batch_size, "1 or more")
        require(1 <= self.lease_s <= LONGEST_LEASE_S, "data.lease_s", self.lease_s, f"1 to {LONGEST_LEASE_S:g} seconds")


def _bundled(table: str) -> str:
    """The path of the bundled table where its name is given."""
    return str(files("hybridiff") / "assets" / f"{table}.jsonl") if table == BUNDLED_PROMPTS else table
