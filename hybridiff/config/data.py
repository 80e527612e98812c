"""The section ``data``."""

from dataclasses import dataclass, field

from hybridiff.errors import require, require_choice
from hybridiff.secrets import refuse_credentials

ASSIGNMENTS = ("static", "claims")
LONGEST_LEASE_S = 1200.0  # a group waits for as long where all that is left is others'


@dataclass(frozen=True)
class DataConfig:
    """Which prompts are drawn.

    Args:
        prompts: Prompt tables (.jsonl, .csv, .tsv, .txt, .parquet): a file, url or glob, or a list of them, read in this order.
        prompt_column: Column that holds the prompt.
        key_column: Column that holds each row's key; by default a column named key, else keys are made from file and row.
        batch_size: Prompts that a group draws at once; where a row gets several images, each counts.
        assignment: How groups share shards: static (each has its own from the start) or claims (each takes the next one that is
            free, also from groups that died, also with other jobs on the same output; on local files and s3).
        lease_s: claims: seconds after which a shard whose group does not answer is free again; on s3 120 or more, as requests
            are repeated for 90 there.
        parts: static: number of independent jobs that share the output, such as the tasks of a job array.
        part: Which of them this is, from 0: it makes every parts-th shard.
    """

    prompts: list[str] | str = field(default_factory=list)
    prompt_column: str = "prompt"
    key_column: str | None = None
    batch_size: int = 4
    assignment: str = "static"
    lease_s: float = 120.0
    parts: int = 1
    part: int = 0

    def __post_init__(self) -> None:
        require(len(self.prompts) > 0, "data.prompts", self.prompts, "one or more files, urls or globs")
        if isinstance(self.prompts, str):
            object.__setattr__(self, "prompts", [self.prompts])
        for url in self.prompts:
            refuse_credentials("data.prompts", url)
        require(self.batch_size >= 1, "data.batch_size", self.batch_size, "1 or more")
        require_choice("data.assignment", self.assignment, ASSIGNMENTS)
        require(1 <= self.lease_s <= LONGEST_LEASE_S, "data.lease_s", self.lease_s, f"1 to {LONGEST_LEASE_S:g} seconds")
        require(self.parts >= 1, "data.parts", self.parts, "1 or more")
        require(0 <= self.part < self.parts, "data.part", self.part, f"0 to {self.parts - 1}, as data.parts is {self.parts}")
        alone = self.parts == 1 or self.assignment == "static"
        require(alone, "data.parts", self.parts, "1 with data.assignment=claims, where jobs take what is free")
