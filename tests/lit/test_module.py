"""The predict step, without a trainer: what becomes of a batch of samples."""

from dataclasses import replace

import pytest
import torch

from hybridiff import parallelize
from hybridiff.config import DataConfig, JobConfig, ModelConfig, OutputConfig, ParallelConfig, SamplingConfig
from hybridiff.data.rows import Sample
from hybridiff.lit.datamodule import PromptBatch
from hybridiff.lit.module import CorpusModule
from hybridiff.models.facts import read_facts
from hybridiff.models.load import load_pipeline
from hybridiff.parallel import Exchange, Group

SAMPLES = tuple(Sample(f"key{i}", "a small red circle on a blue background at the left", None, i, {}) for i in range(3))


@pytest.fixture(scope="module")
def module() -> CorpusModule:
    config = JobConfig(
        ModelConfig(), SamplingConfig(steps=2), ParallelConfig(), DataConfig(prompts="unused.txt"), OutputConfig(url="unused")
    )
    module = CorpusModule(config, read_facts(config.model))
    module.pipeline = load_pipeline(config.model, module.facts)
    module.handle = parallelize(module.pipeline, group_size=1)
    return module


def test_an_image_does_not_depend_on_its_batch_mates(module: CorpusModule) -> None:
    together = module.sample(SAMPLES)
    alone = torch.cat([module.sample((sample,)) for sample in SAMPLES])
    assert (together - alone).abs().max() < 1e-4
    assert not torch.equal(together[0], together[1])


def test_starting_noise_belongs_to_the_sample_not_to_its_batch(module: CorpusModule) -> None:
    inputs: list[torch.Tensor] = []
    hook = module.pipeline.unet.conv_in.register_forward_pre_hook(lambda _, args: inputs.append(args[0].clone()))
    try:
        module.sample(SAMPLES)
        together = inputs[0]
        for i, sample in enumerate(SAMPLES):
            inputs.clear()
            module.sample((sample,))
            assert torch.equal(inputs[0][0], together[i])
            noise = torch.randn((1, *together[i].shape), generator=torch.Generator("cpu").manual_seed(sample.seed))
            assert torch.equal(inputs[0][:1], noise)
    finally:
        hook.remove()


@pytest.mark.parametrize(("rank", "rows"), [(0, [0, 1]), (1, [2, 2])])
def test_each_rank_of_a_pair_decodes_its_share(
    module: CorpusModule, monkeypatch: pytest.MonkeyPatch, rank: int, rows: list[int]
) -> None:
    decoded: list[float] = []

    def decode(_: object, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        decoded.append(latents.item())
        return torch.zeros(1, 2, 2, 3, dtype=torch.uint8), torch.ones(1, dtype=torch.uint8)

    exchange = Exchange(Group(size=2, rank=rank))
    monkeypatch.setattr(exchange, "all_gather", lambda tensor: [tensor, tensor])
    monkeypatch.setattr(module.handle, "exchange", exchange)
    monkeypatch.setattr("hybridiff.lit.module.decode_latents", decode)
    pictures, finite = module.decode(torch.arange(3.0).view(3, 1, 1, 1))
    assert decoded == rows
    assert pictures.shape == (3, 2, 2, 3) and finite == [True] * 3


def test_an_image_that_is_not_finite_becomes_a_failed_row_and_its_mates_stay(
    module: CorpusModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = PromptBatch(0, SAMPLES, last=True)
    sound = module.predict_step(batch, 0)
    assert [result.error for result in sound] == [None] * 3
    sample = module.sample

    def broken(samples: tuple[Sample, ...]) -> torch.Tensor:
        latents = sample(samples)
        latents[1, 0, 0, 0] = float("nan")
        return latents

    monkeypatch.setattr(module, "sample", broken)
    results = module.predict_step(batch, 0)
    assert [result.error for result in results] == [None, "the latents or the decoded picture are not finite", None]
    assert results[1].image is None
    for before, after in ((sound[0], results[0]), (sound[2], results[2])):
        assert before.image is not None and after.image is not None and (before.image == after.image).all()
        assert replace(before, image=None) == replace(after, image=None)
    assert results[0].steps_full == 2 and len(results[0].discrepancy) == 2
