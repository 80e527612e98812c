"""Stock pipelines on one rank: PixArt, which does not report its guidance and predicts an unused variance, and Sana."""

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from diffusers import PixArtSigmaPipeline
from torch import Tensor

from hybridiff.errors import UsageError
from hybridiff.models.guidance import reports_guidance, sampled_channels
from hybridiff.parallel import parallelize
from hybridiff.parallel.reference import emulate
from hybridiff.schedule import Adaptive, Branches, Sampler, StepKind
from tests.dist.tiny import SIZE, latents_of, tiny_pixart, tiny_sana, tiny_sd3
from tests.parallel.scripted import Carried, Scripted

PIPELINES = {"alpha": tiny_pixart, "sigma": lambda: tiny_pixart(PixArtSigmaPipeline), "sana": tiny_sana}


@pytest.mark.parametrize("name", PIPELINES)
def test_full_steps_on_one_rank_are_the_stock_pipeline_bit_for_bit(name: str) -> None:
    pipeline = PIPELINES[name]()
    scale = None if reports_guidance(type(pipeline)) else 5.0
    stock = latents_of(pipeline, 2, 4)
    for run in (lambda: parallelize(pipeline, group_size=1, guidance_scale=scale), lambda: emulate(pipeline, "full", 1, scale)):
        handle = run()
        assert torch.equal(latents_of(pipeline, 2, 4), stock)
        handle.remove()
    handle = emulate(pipeline, Adaptive(tolerance=30.0, min_full_steps=3), 2, scale)
    latents = latents_of(pipeline, 2, 10)
    assert latents.isfinite().all() and StepKind.SKIP in handle.trace.kinds
    handle.remove()


@pytest.mark.gpu
def test_adaptive_plans_a_flow_matching_sampler_on_a_gpu_as_on_a_cpu(caplog: pytest.LogCaptureFixture) -> None:
    kinds = []
    for device in ("cpu", "cuda"):
        pipeline = tiny_sd3().to(device)
        handle = parallelize(pipeline, Adaptive(tolerance=30.0, min_full_steps=3), group_size=1)
        assert latents_of(pipeline, 2, 10).isfinite().all()
        kinds.append(handle.trace.kinds)
        handle.remove()
    assert kinds[0] == kinds[1] and StepKind.SKIP in kinds[0] and caplog.messages == []


class Watching(Scripted):
    """Remembers the shapes that its policy is shown."""

    def begin(self, sampler: Sampler) -> "Watched":
        assert sampler.guidance_scale == 5.0
        return Watched(self.script)


class Watched(Carried):
    def full(self, step: int, branches: Branches, discrepancy: Tensor) -> None:
        assert branches.conditional.shape == branches.difference.shape == (2, 4, SIZE, SIZE)
        super().full(step, branches, discrepancy)

    def half(self, step: int, conditional: Tensor) -> Branches:
        assert conditional.shape == (2, 4, SIZE, SIZE)
        return super().half(step, conditional)


@pytest.mark.parametrize("run", [parallelize, emulate])
def test_a_policy_does_not_get_the_variance_that_the_pipeline_drops(run: Callable[..., Any]) -> None:
    pipeline = tiny_pixart()
    sent: list[Tensor] = []
    handle = run(pipeline, Watching("FHSF"), group_size=1, guidance_scale=5.0)
    pipeline.transformer.register_forward_hook(lambda module, args, output: sent.append(output[0]))
    latents_of(pipeline, 2, 4)
    assert [tuple(prediction.shape) for prediction in sent] == [(4, 8, SIZE, SIZE)] * 4
    assert [bool(prediction[:, 4:].any()) for prediction in sent] == [True, False, False, True]
    assert torch.equal(sent[2], sent[1]) and sent[1][:, :4].all()
    handle.remove()


def test_a_scheduler_that_reads_the_variance_gets_it() -> None:
    class Scheduler:
        config: ClassVar[dict[str, str]] = {"variance_type": "learned_range"}

    prediction, latents = torch.zeros(2, 8, 2, 2), torch.zeros(2, 4, 2, 2)
    assert sampled_channels(prediction, latents, Scheduler) == 8
    assert sampled_channels(prediction, latents, tiny_pixart().scheduler) == 4
    assert sampled_channels(torch.zeros(2, 4, 2, 2), torch.zeros(2, 9, 2, 2), tiny_pixart().scheduler) == 4  # inpainting


def test_a_given_scale_decides_whether_guidance_is_on() -> None:
    pipeline = tiny_pixart()
    with pytest.raises(UsageError, match="PixArtAlphaPipeline does not report its guidance scale; allowed: guidance_scale="):
        parallelize(pipeline, group_size=1)
    handle = parallelize(pipeline, group_size=1, guidance_scale=4.5)
    with pytest.raises(UsageError, match=r"guidance_scale is 4.5 for parallelize, and PixArtAlphaPipeline does not double"):
        latents_of(pipeline, 1, 2, guidance_scale=1.0)
    handle.remove()
