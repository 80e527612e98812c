"""Pipelines of all families on one rank: stock results with full steps, skipped steps, and fewer calls of the network."""

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
)

from hybridiff.errors import UsageError
from hybridiff.models.guidance import clamped_weight, fitted_weight
from hybridiff.parallel import parallelize
from hybridiff.parallel.reference import emulate
from hybridiff.schedule import Adaptive
from tests.dist.tiny import tiny_xl
from tests.dist.tiny_families import BRANCHES, CASES, DOUBLED, SINGLE, autoencoder, noise
from tests.parallel.scripted import Scripted

ADAPTIVE = Adaptive(tolerance=3.0, min_full_steps=3)
STEPS = 10


@pytest.mark.parametrize("name", CASES)
def test_full_steps_are_the_stock_pipelines_and_adaptive_skips_as_the_reference(name: str) -> None:
    case = CASES[name]
    pipeline, images = case.make(), min(2, case.most)
    stock = case.generate(pipeline, images, STEPS)
    assert stock.isfinite().all()
    with parallelize(pipeline, "full", 1) as handle:
        assert torch.equal(case.generate(pipeline, images, STEPS), stock) and handle.trace.compact() == f"F{STEPS}"
    with parallelize(pipeline, ADAPTIVE, 1) as handle:
        latents = case.generate(pipeline, images, STEPS)
        assert "S" in handle.trace.compact() and len(handle.trace.decisions) == STEPS
        assert (name in SINGLE) == (handle.trace.curves() == [])
    distance = ((latents - stock).norm() / stock.norm()).item()
    assert 0 < distance < 0.3
    with emulate(pipeline, ADAPTIVE, 1):
        assert torch.equal(case.generate(pipeline, images, STEPS), latents)
    assert torch.equal(case.generate(pipeline, images, STEPS), stock)


@pytest.mark.parametrize("name", BRANCHES)
def test_the_reference_of_a_pair_is_the_stock_pipeline_even_where_two_rows_are_equal(name: str) -> None:
    case = BRANCHES[name]
    pipeline = case.make()
    stock = case.generate(pipeline, 2, 4, same=True)
    with emulate(pipeline, "full", 2):
        torch.testing.assert_close(case.generate(pipeline, 2, 4, same=True), stock, atol=1e-4, rtol=1e-4)
    with parallelize(pipeline, Scripted("FHSFFHFF"), 1) as handle:
        case.generate(pipeline, 2, 8, same=True)
        fills = name == "qwen-2.1"  # its first step fills caches, so that its second one is learned from
        assert handle.trace.compact() == ("F2 H1 S1 F2 H1 F1" if fills else "F1 H1 S1 F2 H1 F2")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.most > 1])
def test_rows_are_not_taken_for_tokens_or_layers_where_there_are_as_many(name: str) -> None:
    case = CASES[name]
    pipeline = case.make()
    for images in (4, 5, 7, 8, 16):  # prompts have 5 and 7 tokens, images 16 or 64, HiDream's prompts 2 layers
        stock = case.generate(pipeline, images, 2)
        with emulate(pipeline, "full", 2):
            torch.testing.assert_close(case.generate(pipeline, images, 2), stock, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["flux", "flux-dev", "z-image", "cogview4"])
def test_skipped_steps_do_not_run_the_network(name: str) -> None:
    case = CASES[name]
    pipeline = case.make()
    block = next(module for module in pipeline.transformer.modules() if isinstance(module, torch.nn.ModuleList))[0]
    rows: list[int] = []
    block.register_forward_hook(lambda *_: rows.append(1))
    with parallelize(pipeline, Scripted("FFSFHSF"), 1):
        case.generate(pipeline, 1, 7)
    computed = {"F": 2 if name in BRANCHES else 1, "H": 1, "S": 0}
    assert len(rows) == sum(computed[letter] for letter in "FFSFHSF")


@pytest.mark.parametrize("name", ["qwen", "flux", "chroma", "krea2", "lumina2", "hunyuan-image", "longcat"])
def test_the_weight_of_guidance_is_known_from_the_pipeline_or_the_first_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    class Watching(Adaptive):
        def begin(self, sampler: Any) -> Any:
            seen.append(sampler.guidance_scale)
            return super().begin(sampler)

    case = BRANCHES[name]
    pipeline = case.make()
    with parallelize(pipeline, Watching(), 1):
        case.generate(pipeline, 2, 4)
    assert seen == [pytest.approx(4.0, abs=0.3)]  # Qwen scales each token after guidance


def test_a_weight_is_learned_whatever_the_sampler_scales() -> None:
    noise = torch.Generator().manual_seed(0)
    before, unconditional, conditional = (torch.randn(2, 5, 4, generator=noise) for _ in range(3))
    guided = unconditional + 6.5 * (conditional - unconditional)
    for after in (before - 0.1 * guided, 0.9 * before + 0.02 * guided):
        assert fitted_weight(before, after, unconditional, conditional) == pytest.approx(6.5, abs=1e-3)
        assert fitted_weight(before, after, conditional, unconditional) == pytest.approx(1 - 6.5, abs=1e-3), "swapped"
    assert 1 <= clamped_weight(fitted_weight(before, before, unconditional, unconditional)) <= 100
    assert fitted_weight(before[:, :1], after, unconditional, conditional) is None and clamped_weight(None) == 100


@pytest.mark.parametrize(("name", "option"), [("lumina2", {"cfg_trunc_ratio": 0.5}), ("z-image", {"cfg_truncation": 0.5})])
def test_guidance_that_ends_in_mid_run(name: str, option: dict[str, Any]) -> None:
    case = CASES[name]
    pipeline = case.make()
    stock = case.generate(pipeline, 2, STEPS, **option)
    assert not torch.equal(stock, case.generate(pipeline, 2, STEPS))
    with parallelize(pipeline, "full", 1):
        assert torch.equal(case.generate(pipeline, 2, STEPS, **option), stock)
    with parallelize(pipeline, Scripted("FFSFFFSFSF"), 1) as handle:
        latents = case.generate(pipeline, 2, STEPS, **option)
        assert handle.trace.compact().count("S") and ((latents - stock).norm() / stock.norm()) < 0.3


def test_a_class_without_an_entry_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybridiff.models.families.FAMILIES", {})
    for name in ("chroma", "sd3-like"):
        case = BRANCHES["chroma"] if name == "chroma" else DOUBLED["hunyuan-dit"]
        pipeline = case.make()
        stock = case.generate(pipeline, 2, 4, same=True)
        with parallelize(pipeline, "full", 1) as handle:
            assert torch.equal(case.generate(pipeline, 2, 4, same=True), stock) and len(handle.trace.curves()) == 2


def test_few_steps_leave_nothing_to_skip_and_one_image_nothing_to_share(caplog: pytest.LogCaptureFixture) -> None:
    case = SINGLE["flux-dev"]
    pipeline = case.make()
    with parallelize(pipeline, Adaptive(), 1) as handle:
        for _ in range(2):
            case.generate(pipeline, 2, 4)
        assert handle.trace.compact() == "F4"
    assert [m for m in caplog.messages if "few" in m] == ["4 steps are too few for schedule adaptive to skip any"]
    with emulate(pipeline, "full", 2):
        case.generate(pipeline, 1, 4)
    assert any("2 ranks are no faster than one" in message for message in caplog.messages)


def test_a_scale_is_not_given_where_it_is_learned() -> None:
    pipeline = BRANCHES["flux"].make()
    with pytest.raises(UsageError, match=r"guidance_scale is 4.0; allowed: None"):
        parallelize(pipeline, "full", 1, guidance_scale=4.0)


@pytest.mark.parametrize(
    "sampler",
    [DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler],
    ids=lambda kind: kind.__name__,
)
def test_a_pipeline_from_an_image_runs_over_a_part_of_the_steps(sampler: Any) -> None:
    parts = tiny_xl()
    nothing = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    scheduler = sampler.from_config(parts.scheduler.config)
    pipeline = StableDiffusionXLImg2ImgPipeline(
        **nothing, vae=autoencoder(), unet=parts.unet, scheduler=scheduler, add_watermarker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    names = ("prompt_embeds", "negative_prompt_embeds")
    prompts = {name: noise(i, 2, 5, 16) for i, name in enumerate(names)}
    prompts |= {name.replace("prompt", "pooled_prompt"): noise(2 + i, 2, 16) for i, name in enumerate(names)}

    def generate() -> torch.Tensor:
        generators = [torch.Generator().manual_seed(i) for i in range(2)]
        options = {"strength": 0.6, "num_inference_steps": 20, "output_type": "latent"}
        latents: torch.Tensor = pipeline(
            generator=generators, image=noise(5, 2, 3, 64, 64).sigmoid(), **prompts, **options
        ).images
        return latents

    stock = generate()
    calls = 23 if sampler is HeunDiscreteScheduler else 12
    with parallelize(pipeline, "full", 1) as handle:
        assert torch.equal(generate(), stock) and handle.trace.compact() == f"F{calls}"
    with parallelize(pipeline, ADAPTIVE, 1) as handle:
        assert (generate() - stock).norm() / stock.norm() < 0.1 and len(handle.trace.decisions) == calls
        assert "S" in handle.trace.compact()
