"""The predict step, without a trainer: what becomes of a batch of samples."""

import copy
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.hooks import HookRegistry

from hybridiff.parallel import Exchange, Group
from hybridiff.prompts.rows import Sample
from hybridiff.runner.data import PromptBatch
from hybridiff.runner.module import CorpusModule, MemoryLimit, generate_isolated, results_of
from hybridiff.schedule import Decision, StepKind, Trace
from tests.runner.modules import module_alone

SAMPLES = tuple(Sample(f"key{i}", "a small red circle on a blue background at the left", None, i, {}) for i in range(3))


@pytest.fixture(scope="module")
def module() -> CorpusModule:
    return module_alone("shapes-xl", steps=2, rows=len(SAMPLES))


def test_an_image_does_not_depend_on_the_others_of_its_batch(module: CorpusModule) -> None:
    together = module.sample(SAMPLES)
    alone = torch.cat([module.sample((sample,)) for sample in SAMPLES])
    assert (together - alone).abs().max() < 1e-4
    assert not torch.equal(together[0], together[1])


def test_initial_noise_depends_on_the_sample_alone(module: CorpusModule) -> None:
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
def test_each_rank_of_a_pair_decodes_its_own_rows(
    module: CorpusModule, monkeypatch: pytest.MonkeyPatch, rank: int, rows: list[int]
) -> None:
    decoded: list[float] = []

    def decode(_: object, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        decoded.append(latents.item())
        return torch.zeros(1, 2, 2, 3, dtype=torch.uint8), torch.ones(1, dtype=torch.uint8)

    exchange = Exchange(Group(size=2, rank=rank))
    monkeypatch.setattr(exchange, "all_gather", lambda tensor: [tensor, tensor])
    monkeypatch.setattr(module.handle, "exchange", exchange)
    monkeypatch.setattr("hybridiff.runner.module.decode_latents", decode)
    images, finite = module.gather(module.decode_own_rows(torch.arange(3.0).view(3, 1, 1, 1)), 3)
    assert decoded == rows
    assert images.shape == (3, 2, 2, 3) and finite == [True] * 3


def test_memory_of_a_failed_attempt_is_freed_before_the_next(module: CorpusModule, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def sample(_: object) -> torch.Tensor:
        alive.append(sum(tensor() is not None for tensor in held))
        activations = torch.zeros(8)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("tried to allocate 40 GiB")

    monkeypatch.setattr(module, "sample", sample)
    results = generate_isolated(SAMPLES, module.generate, MemoryLimit())
    assert [result.error for result in results] == ["OutOfMemoryError: tried to allocate 40 GiB"] * 3
    assert alive == [0] * 5


def test_images_are_those_of_smaller_batches_where_memory_holds_no_larger_ones(
    module: CorpusModule, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    parts = [module.predict_step(PromptBatch(0, some, last=True), 0) for some in (SAMPLES[:1], SAMPLES[1:])]
    forward, rows = module.pipeline.unet.conv_in.forward, list[int]()

    def small(latents: torch.Tensor) -> torch.Tensor:
        rows.append(len(latents))
        if len(latents) > 4:  # two images, doubled
            raise torch.OutOfMemoryError("tried to allocate 40 GiB")
        return forward(latents)

    monkeypatch.setattr(module.pipeline.unet.conv_in, "forward", small)
    monkeypatch.setattr(module, "memory", MemoryLimit())
    for calls in ([6, 2, 2, 4, 4], [2, 2, 4, 4]):
        rows.clear()
        results = module.predict_step(PromptBatch(0, SAMPLES, last=True), 0)
        assert rows == calls and [result.error for result in results] == [None] * 3
        for one, other in zip(results, [result for part in parts for result in part], strict=True):
            assert one.image is not None and other.image is not None and (one.image == other.image).all()
    assert [message for message in caplog.messages if "memory" in message] == [
        "batches of 2 images fit in memory and are used from now on; larger ones run out of it"
    ]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_image_that_is_not_finite_fails_and_the_others_are_generated_without_it(
    module: CorpusModule, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    others = tuple(sample for i, sample in enumerate(SAMPLES) if i != place)
    sound = module.predict_step(PromptBatch(0, others, last=True), 0)
    sample = module.sample

    def broken(samples: tuple[Sample, ...]) -> torch.Tensor:
        latents = sample(samples)
        for i, one in enumerate(samples):
            if one is SAMPLES[place]:
                latents[i, 0, 0, 0] = float("nan")
        return latents

    monkeypatch.setattr(module, "sample", broken)
    results = module.predict_step(PromptBatch(0, SAMPLES, last=True), 0)
    assert [result.sample for result in results] == list(SAMPLES)
    bad = results.pop(place)
    assert bad.error == "the latents or the decoded image are not finite" and bad.image is None
    for before, after in zip(sound, results, strict=True):
        assert before.image is not None and after.image is not None and (before.image == after.image).all()
        assert replace(before, image=None) == replace(after, image=None)


def test_a_row_that_makes_the_pipeline_raise_fails_alone(module: CorpusModule, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = module.pipeline.encode_prompt

    def encode_or_raise(*args: object, prompt: list[str], **kwargs: object) -> object:
        if "poison" in prompt:
            raise torch.OutOfMemoryError("tried to allocate 40 GiB\nof nothing")
        return encode(*args, prompt=prompt, **kwargs)

    monkeypatch.setattr(module.pipeline, "encode_prompt", encode_or_raise)
    samples = (SAMPLES[0], replace(SAMPLES[1], prompt="poison"), SAMPLES[2])
    results = module.predict_step(PromptBatch(0, samples, last=True), 0)
    assert [result.error for result in results] == [None, "OutOfMemoryError: tried to allocate 40 GiB", None]
    assert [result.image is None for result in results] == [False, True, False]


def test_a_black_image_is_an_error(module: CorpusModule, monkeypatch: pytest.MonkeyPatch) -> None:
    def black(_: object, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.ones(1, dtype=torch.uint8)

    monkeypatch.setattr("hybridiff.runner.module.decode_latents", black)
    (result,) = module.predict_step(PromptBatch(0, SAMPLES[:1], last=True), 0)
    assert result.error == "the image is black" and result.image is None


def test_batches_are_generated_in_inference_mode_where_lightning_uses_no_grad(
    module: CorpusModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[bool] = []
    monkeypatch.setattr(module, "generate", lambda samples: modes.append(torch.is_inference_mode_enabled()) or [])
    with torch.no_grad():
        module.predict_step(PromptBatch(0, SAMPLES, last=True), 0)
    assert modes and all(modes)


def test_the_hook_of_a_pair_is_installed_and_removed(module: CorpusModule) -> None:
    pair = CorpusModule(module.config, module.facts)
    pair.pipeline = copy.copy(module.pipeline)
    pair.pipeline.unet = type(module.pipeline.unet).from_config(module.pipeline.unet.config)
    registry = HookRegistry.check_if_exists_or_initialize(pair.pipeline.unet)
    assert registry._hook_order == []
    pair.parallelize(Group(size=2, rank=0))
    assert registry._hook_order == ["hybridiff"]
    pair.teardown("predict")
    assert registry._hook_order == [] and registry.hooks == {}


def test_pipelined_steps_count_as_full_ones() -> None:
    kinds = [StepKind.FULL, StepKind.FULL, StepKind.PIPELINED, StepKind.SKIP, StepKind.PIPELINED, StepKind.HALF]
    trace = Trace("async", [Decision(kind, "test") for kind in kinds])
    sample = Sample("key", "a red circle", None, 0, {})
    (result,) = results_of((sample,), np.ones((1, 2, 2, 3), np.uint8), [True], [False], trace)
    assert (result.steps_full, result.steps_half, result.steps_skipped) == (4, 1, 1)
    assert (result.tau1, result.tau2) == (2, 6)
