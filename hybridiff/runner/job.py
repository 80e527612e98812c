"""A checked job: what it writes, what it is known by, and how its shards are opened."""

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import torch

from hybridiff import __version__
from hybridiff.cluster.launch import Launch
from hybridiff.config import JobConfig, SamplingConfig
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.layout import lease_of
from hybridiff.corpus.record import RunRecord
from hybridiff.corpus.rewrite import ShardRewriter
from hybridiff.corpus.shard import ShardWriter
from hybridiff.errors import require
from hybridiff.models.facts import ModelFacts
from hybridiff.prompts.plan import Plan
from hybridiff.schedule import schedule_spec
from hybridiff.storage.lease import Leases

PACKAGES = ("torch", "lightning", "diffusers", "transformers", "webdataset", "pyarrow", "pillow", "zlib-ng")
NOT_CONTENT = frozenset(
    {
        "output.url",
        "output.shard_bytes",  # counts by the shard_size that it makes
        "parallel.leave_idle",
        "parallel.timeout_s",
        "parallel.across_nodes",
        "data.prompts",
        "data.prompt_column",
        "data.key_column",
        "data.delimiter",
        "data.encoding",
        "data.empty_prompts",
        "data.max_text",
        "data.max_expansion",
        "data.max_rows",
        "data.max_row_group",
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
        return RunRecord(
            configuration=recorded_options(self.config, self.facts, self.run_values["revision"]),
            plan={"rows": self.plan.rows, "shards": self.plan.shards, "content": self.plan.content, "table": self.plan.summary},
            excluded=NOT_CONTENT,
            versions={"hybridiff": __version__, "python": platform.python_version()} | {p: version(p) for p in PACKAGES},
            hardware=hardware,
            describe_change=self.plan.describe_change,
        )

    def open_shard(self, index: int, leases: Leases | None = None, rewrites: bool = False) -> ShardWriter:
        """The writer of a shard, or of a committed one some of whose rows are generated again.

        Args:
            index: of the shard
            leases: that hold it; None where the storage has none
            rewrites: whether it is committed
        """
        self.corpus.check_there()
        kind = ShardRewriter if rewrites else ShardWriter
        require = None if leases is None else partial(leases.require, lease_of(index))
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
        allowed = f"{', '.join(user_schema.names) or 'none'} (columns of data.prompts), or nothing for all"
        require(name in user_schema.names, "output.columns", name, allowed)
    return user_schema if columns is None else pa.schema([field for field in user_schema if field.name in columns])


def recorded_options(config: JobConfig, facts: ModelFacts, revision: str | None) -> dict[str, Any]:
    """The options of a job as run.json holds them, with the identity of the weights."""
    options = asdict(replace(config, data=replace(config.data, prompts=[*config.data.names])))
    options["parallel"]["schedule"] = schedule_spec(config.parallel.schedule)
    options["model"]["weights"] = revision
    options["output"]["shard_size"] = config.output.images_per_shard(*image_size(config.sampling, facts))
    return options


def image_size(sampling: SamplingConfig, facts: ModelFacts) -> tuple[int, int]:
    """Width and height of an image in pixels."""
    return sampling.width or facts.default_size, sampling.height or facts.default_size
