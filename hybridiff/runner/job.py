"""A checked job: what it writes, what it is known by, and how its shards are opened."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import torch

from hybridiff import __version__
from hybridiff.cluster.launch import Launch
from hybridiff.config import JobConfig, SamplingConfig
from hybridiff.corpus.claims import Claims
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.record import RunRecord
from hybridiff.corpus.rewrite import ShardRewriter
from hybridiff.corpus.shard import ShardWriter
from hybridiff.errors import require
from hybridiff.models.facts import ModelFacts
from hybridiff.prompts.plan import Plan

PACKAGES = ("torch", "lightning", "diffusers", "transformers", "webdataset", "pyarrow", "pillow", "zlib-ng")
NOT_CONTENT = frozenset(
    {
        "data.part",
        "data.parts",
        "output.url",
        "output.shard_bytes",  # counts by the shard_size that it makes
        "parallel.leave_idle",
        "parallel.timeout_s",
        "parallel.across_nodes",
        "data.prompts",
        "data.prompt_column",
        "data.key_column",
        "data.assignment",
        "data.lease_s",
        "output.grace_s",
        "output.max_failed_fraction",
        "trainer",
    }
)


@dataclass(frozen=True)
class Job:
    """A checked job, ready to run."""

    config: JobConfig
    trainer_options: dict[str, Any]
    trainer_record: dict[str, Any]
    launch: Launch
    facts: ModelFacts
    plan: Plan
    corpus: Corpus
    run_values: dict[str, Any]

    @property
    def record(self) -> RunRecord:
        """What the corpus will be known by; prompts and weights count by content, wherever they lie."""
        hardware = {
            "machine": platform.machine(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "ranks": self.launch.world_size,
            "nodes": self.launch.nodes,
        }
        options = recorded_options(self.config, self.facts, self.run_values["revision"])
        return RunRecord(
            configuration=options | {"trainer": self.trainer_record},
            plan={"rows": self.plan.rows, "shards": self.plan.shards, "content": self.plan.content},
            excluded=NOT_CONTENT,
            versions={"hybridiff": __version__, "python": platform.python_version()} | {p: version(p) for p in PACKAGES},
            hardware=hardware,
        )

    def make_claims(self, sleep: Callable[[float], None], taken: Callable[[], None]) -> Claims:
        """This group's claims on shards; see ``Claims``."""
        return Claims(self.corpus, self.plan.shards, self.config.data.lease_s, sleep=sleep, taken=taken)

    def open_shard(self, index: int, claims: Claims | None = None) -> ShardWriter:
        """The writer of a shard."""
        self.corpus.check_there()
        return self._writer(ShardWriter, index, None if claims is None else partial(claims.require, index))

    def reopen_shard(self, index: int) -> ShardWriter:
        """The writer of a committed shard, some of whose rows are drawn again."""
        return self._writer(ShardRewriter, index)

    def _writer(self, kind: type[ShardWriter], index: int, require: Callable[[], None] | None = None) -> ShardWriter:
        output = self.config.output
        return kind(
            self.corpus,
            index,
            self.run_values,
            carried(self.plan.user_schema, output.columns),
            output.encoder,
            require=require,
            sidecar=output.sidecar == "json",
            embed_images=output.embed_images,
        )


def carried(user_schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    """The columns of the prompt tables that the corpus carries.

    Args:
        user_schema: the columns of the tables, under the names that the corpus stores them with.
        columns: names of the carried ones; None carries all.

    Raises:
        UsageError: a name is not among them.
    """
    for name in columns or ():
        allowed = f"{', '.join(user_schema.names) or 'none'} (columns of data.prompts), or nothing for all of them"
        require(name in user_schema.names, "output.columns", name, allowed)
    return user_schema if columns is None else pa.schema([field for field in user_schema if field.name in columns])


def recorded_options(config: JobConfig, facts: ModelFacts, revision: str | None) -> dict[str, Any]:
    """The options of a job as run.json holds them, but for the trainer's, with the identity of the weights."""
    options = asdict(config)
    options["model"]["weights"] = revision
    options["output"]["shard_size"] = config.output.images_per_shard(*image_size(config.sampling, facts))
    return options


def image_size(sampling: SamplingConfig, facts: ModelFacts) -> tuple[int, int]:
    """Width and height of an image in pixels."""
    return sampling.width or facts.default_size, sampling.height or facts.default_size
