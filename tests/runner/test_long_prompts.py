"""Prompts beyond all measure, through the tokenizers of a bundled model: each row is generated or fails, and the run goes on."""

import pytest

from hybridiff.prompts.rows import Sample
from hybridiff.runner.data import PromptBatch
from hybridiff.runner.module import CorpusModule
from tests.runner.modules import module_alone

MEGABYTE = 1 << 20
PROMPTS = {
    "words": "a red circle " * (MEGABYTE // 13),
    "one word": "a" * MEGABYTE,
    "emoji": "🟢" * (MEGABYTE // 4),
    "marks": "\u0301" * (MEGABYTE // 2),
    "nothing": "\0" * MEGABYTE,
}


@pytest.fixture(scope="module")
def module() -> CorpusModule:
    return module_alone("shapes-sd3", steps=1, rows=100)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", PROMPTS)
def test_a_prompt_of_a_megabyte_is_generated_or_fails_alone(module: CorpusModule, kind: str) -> None:
    samples = (Sample("long", PROMPTS[kind], None, 0, {}), Sample("short", "a red circle", None, 1, {}))
    long, short = module.predict_step(PromptBatch(0, samples, last=True), 0)
    generated, failed = long.image is not None, long.error is not None
    assert generated != failed
    assert (long.sample.key, len(long.sample.prompt)) == ("long", len(PROMPTS[kind]))
    assert failed or long.prompt_truncated
    assert short.error is None and short.image is not None
    assert not short.prompt_truncated
