"""Prompts beyond all measure, through the tokenizers of a bundled model: each row is drawn or fails, and the run goes on."""

import pytest

from hybridiff.config import DataConfig, JobConfig, ModelConfig, OutputConfig, ParallelConfig, SamplingConfig
from hybridiff.data.rows import Sample
from hybridiff.lit.batches import PromptBatch
from hybridiff.lit.module import CorpusModule
from hybridiff.lit.signals import StopSignals
from hybridiff.lit.stopping import Stopping
from hybridiff.models.facts import read_facts
from hybridiff.models.load import load_pipeline
from hybridiff.parallel import Group

MEGABYTE = 1 << 20
PROMPTS = {
    "words": "a red circle " * (MEGABYTE // 13),
    "one word": "a" * MEGABYTE,
    "pictures": "🟢" * (MEGABYTE // 4),
    "marks": "\u0301" * (MEGABYTE // 2),
    "nothing": "\0" * MEGABYTE,
}


@pytest.fixture(scope="module")
def module() -> CorpusModule:
    config = JobConfig(
        ModelConfig(path="shapes-sd3"),
        SamplingConfig(steps=1),
        ParallelConfig(schedule="full"),
        DataConfig(prompts="unused.txt"),
        OutputConfig(url="unused"),
    )
    module = CorpusModule(config, read_facts(config.model))
    module.pipeline = load_pipeline(config.model, module.facts)
    module.parallelize(Group())
    module.stopping = Stopping(StopSignals(), 60.0, 1.0, rows=100)
    return module


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", PROMPTS)
def test_a_prompt_of_a_megabyte_is_drawn_or_fails_alone(module: CorpusModule, kind: str) -> None:
    samples = (Sample("long", PROMPTS[kind], None, 0, {}), Sample("short", "a red circle", None, 1, {}))
    long, short = module.predict_step(PromptBatch(0, samples, last=True), 0)
    drawn, failed = long.image is not None, long.error is not None
    assert drawn != failed
    assert (long.sample.key, len(long.sample.prompt)) == ("long", len(PROMPTS[kind]))
    assert failed or long.prompt_truncated
    assert short.error is None and short.image is not None
    assert not short.prompt_truncated
