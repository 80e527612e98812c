"""Small corpora for the tests of this room."""

import dataclasses
import json
from typing import Any

import numpy as np
import pyarrow as pa

from hybridiff.corpus import Corpus, Result, RunRecord, ShardWriter
from hybridiff.images import Encoder
from hybridiff.prompts.rows import Sample

RUN_VALUES = {
    "guidance_scale": 5.0,
    "steps": 4,
    "scheduler": "DDIMScheduler",
    "model": "shapes-xl",
    "revision": None,
    "version": "0",
    "dtype": "float32",
    "device": "cpu",
    "group_size": 2,
    "schedule": "full",
    "schedule_options": "{}",
}
PNG = Encoder("png")
USER_SCHEMA = pa.schema([("style", pa.string()), ("weight", pa.float64())])
SHARDS, PER_SHARD = 3, 4
FAILED = 2  # the place in each shard of the sample that fails


def record(**changed: Any) -> RunRecord:
    """The run record of ``make_corpus``, with some fields replaced."""
    configuration = {
        "model": {"path": "shapes-xl", "revision": None},
        "sampling": {"steps": 4, "guidance_scale": 5.0, "seed": 0},
        "parallel": {"schedule": {"class_path": "full", "init_args": {}}, "timeout_s": 10.0},
        "output": {"url": "here", "image_format": "png"},
    }
    plan = {"rows": SHARDS * PER_SHARD, "shards": SHARDS, "content": "0" * 64}
    whole = RunRecord(configuration, plan, frozenset({"output.url", "parallel.timeout_s"}), {"torch": "2"}, {"device": "cpu"})
    return dataclasses.replace(whole, **changed)


def result(number: int, failed: bool = False) -> Result:
    """The result of one sample; everything in it follows from its number."""
    image = np.random.default_rng(number).integers(0, 256, (24, 16, 3), dtype=np.uint8)
    return Result(
        sample=Sample(f"ключ-{number:04d}", f"an ä\n猫 {number}", None, 2**62 + number, {"style": "ü", "weight": float("nan")}),
        image=None if failed else image,
        error="ValueError: out of luck" if failed else None,
        prompt_truncated=number % 2 == 0,
        steps_full=2,
        steps_half=1,
        steps_skipped=1,
        tau1=2,
        tau2=None,
        discrepancy=[0.5, float("nan")],
    )


def write_shard(corpus: Corpus, index: int, image_format: str = "png", **timings: Any) -> dict[str, Any]:
    """Commits one shard and returns its marker."""
    writer = ShardWriter(corpus, index, RUN_VALUES, USER_SCHEMA, Encoder(image_format))
    for place in range(PER_SHARD):
        writer.write(result(index * PER_SHARD + place, failed=place == FAILED))
    return writer.commit(timings)


def make_corpus(url: str, image_format: str = "png") -> Corpus:
    """A whole corpus of three shards of four rows, one of which failed."""
    corpus = Corpus(url)
    configuration = json.loads(json.dumps(record().configuration))
    configuration["output"]["image_format"] = image_format
    corpus.start_run(record(configuration=configuration))
    for index in range(SHARDS):
        write_shard(corpus, index, image_format)
    return corpus


def files(corpus: Corpus) -> dict[str, bytes]:
    """Everything that is visible in the corpus, by name."""
    paths = corpus.fs.find(corpus.root)
    return {path[len(corpus.root) + 1 :]: corpus.fs.cat_file(path) for path in paths}
