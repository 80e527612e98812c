"""The training of the bundled models: tokenizers, the loop, the scale of the autoencoder's latents, and FLUX.1's stages."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTokenizer, T5Tokenizer

from jobs.train_shapes.architectures import (
    TEXT_WINDOW,
    build_autoencoder,
    build_denoiser,
    build_pipeline,
    build_t5_tokenizer,
    build_text_encoders,
    build_tokenizer,
    save_pipeline,
)
from jobs.train_shapes.evaluation import call_options
from jobs.train_shapes.scenes import random_scene
from jobs.train_shapes.stages import (
    ATTRIBUTES,
    FLUX_MATRICES,
    NOTHING,
    FluxTextClassifier,
    LatentSet,
    attribute_labels,
    call_flux,
    distillation_loss,
    flux_loss,
    load_autoencoder,
    normalise_latents,
    pack,
    random_window,
    training_batch,
)
from jobs.train_shapes.training_loop import LoopConfig, LossFunction, StepRandom, build_optimizers, learning_rate_factor, train


@pytest.mark.parametrize(("build", "special"), [(build_tokenizer, 2), (build_t5_tokenizer, 1)])
def test_each_word_of_a_caption_is_one_token_and_all_fit_the_window(
    build: Callable[[], CLIPTokenizer | T5Tokenizer], special: int
) -> None:
    tokenizer, rng = build(), np.random.default_rng(0)
    for _ in range(200):
        caption = random_scene(rng, two_share=0.5).caption
        ids = tokenizer(caption).input_ids
        assert len(ids) == len(caption.split()) + special <= TEXT_WINDOW
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == caption


def test_any_other_text_is_spelled_out() -> None:
    tokenizer = build_tokenizer()
    ids = tokenizer("Ein Hörnchen, 3!").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == "einhörnchen,3!"
    t5 = build_t5_tokenizer()
    assert t5.decode(t5("Ein Hoernchen, 3!").input_ids, skip_special_tokens=True).replace(" ", "") == "EinHoernchen,3!"


def train_line(work: Path, steps: int, stop_after: int | None = None, muon: str | None = None) -> list[Tensor]:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)

    def loss_of(step: int, random: StepRandom) -> Tensor:
        if step == stop_after:
            raise KeyboardInterrupt
        x = torch.randn(8, 3, generator=random.torch)
        return (model(x) - x.sum(1, keepdim=True)).square().mean()

    train("line", model, loss_of, LoopConfig(steps, 0.1, ema_decay=0.5, checkpoint_every_s=0, muon=muon), work, seed=1)
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("muon", [None, "weight"])
def test_a_killed_training_continues_to_the_same_weights(tmp_path: Path, muon: str | None) -> None:
    for directory in ("a", "b"):
        (tmp_path / directory).mkdir()
    undisturbed = train_line(tmp_path / "a", 40, muon=muon)
    with pytest.raises(KeyboardInterrupt):
        train_line(tmp_path / "b", 40, stop_after=17, muon=muon)
    resumed = train_line(tmp_path / "b", 40, muon=muon)
    assert all(torch.equal(a, b) for a, b in zip(undisturbed, resumed, strict=True))
    assert (undisturbed[0] - 1).abs().max() < 0.3  # and it learns


def test_the_learning_rate_warms_up_and_decays_to_zero() -> None:
    config = LoopConfig(steps=100, learning_rate=1.0, warm_up_share=0.1, decay_share=0.5)
    factors = [learning_rate_factor(step, config) for step in range(100)]
    assert factors[0] == 0.1 and factors[30] == 1.0 and factors[75] == 0.5 and factors[99] == 0.02


def test_latents_are_scaled_without_changing_the_images() -> None:
    torch.manual_seed(0)
    model = build_autoencoder().eval()
    images = training_batch(8, 64, StepRandom(0, 0))
    with torch.no_grad():
        before = model.decode(model.encode(images).latent_dist.mean).sample
        normalise_latents(model, images)
        posterior = model.encode(images).latent_dist
        after = model.decode(posterior.mean).sample
    assert torch.allclose(before, after, atol=1e-4)
    assert torch.allclose(posterior.mean.mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(posterior.mean.std((0, 2, 3)), torch.ones(4), atol=1e-4)


def test_each_attribute_of_a_scene_has_its_label() -> None:
    rng = np.random.default_rng(0)
    scene = random_scene(rng, two_share=0.0)
    values = [options[label] for options, label in zip(ATTRIBUTES, attribute_labels(scene), strict=True)]
    figure = scene.figures[0]
    assert values == [scene.background, figure.size, figure.colour, figure.shape, figure.position, *[NOTHING] * 4]


@pytest.fixture
def flux() -> FluxTransformer2DModel:
    """FLUX.1's denoiser with random weights also where training starts from zero."""
    torch.manual_seed(0)
    model = build_denoiser("flux")
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return model.eval()


@pytest.fixture
def data(tmp_path: Path) -> LatentSet:
    torch.manual_seed(1)
    return LatentSet(build_autoencoder().eval(), FluxTextClassifier("flux").eval(), tmp_path, seed=0, images=8)


def test_an_untrained_flux_predicts_nothing() -> None:
    inputs = [torch.randn(2, 64, 16), torch.randn(2, 24, 64), torch.randn(2, 64), torch.rand(2), torch.ones(2)]
    assert not call_flux(build_denoiser("flux"), *inputs).any()


def test_muon_trains_the_matrices_of_the_blocks_but_their_modulation(flux: FluxTransformer2DModel) -> None:
    adamw, muon = build_optimizers(flux, LoopConfig(1, 1e-3, muon=FLUX_MATRICES))
    blocks = [*flux.transformer_blocks, *flux.single_transformer_blocks]
    expected = [p for block in blocks for name, p in block.named_parameters() if p.ndim == 2 and not name.startswith("norm")]
    assert {id(p) for p in muon.param_groups[0]["params"]} == {id(p) for p in expected}
    assert sum(len(optimizer.param_groups[0]["params"]) for optimizer in (adamw, muon)) == len(list(flux.parameters()))


def test_latents_are_packed_as_the_pipeline_packs_them() -> None:
    latents = torch.randn(3, 4, 16, 16)
    assert torch.equal(pack(latents), FluxPipeline._pack_latents(latents, 3, 4, 16, 16))


def test_a_saved_pipeline_is_stock_and_calls_its_denoiser_as_the_training_does(
    tmp_path: Path, flux: FluxTransformer2DModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(2)
    save_pipeline(build_pipeline("flux", build_autoencoder(), build_text_encoders("flux"), flux), tmp_path)
    pipeline = FluxPipeline.from_pretrained(tmp_path, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    calls: list[tuple[dict[str, Any], Tensor]] = []
    forward = pipeline.transformer.forward

    def recorded(**inputs: Any) -> Any:
        calls.append((inputs, forward(**inputs)[0]))
        return calls[-1][1], None

    monkeypatch.setattr(pipeline.transformer, "forward", recorded)
    captions = ["a small red circle on a blue background in the middle", "a large green ring on a white background at the top"]
    options = {"guidance_scale": 1.0, "true_cfg_scale": 5.0, "negative_prompt": ["", ""], **call_options(pipeline)}
    images = pipeline(captions, num_inference_steps=2, **options).images
    assert [image.size for image in images] == [(64, 64)] * 2
    assert len(calls) == 4
    classifier = FluxTextClassifier("flux").eval()
    classifier.encoders = nn.ModuleList([pipeline.text_encoder, pipeline.text_encoder_2])
    for (inputs, predicted), texts in zip(calls, [captions, ["", ""]] * 2, strict=True):
        embeddings, pooled, _ = classifier(texts)
        assert torch.allclose(embeddings, inputs["encoder_hidden_states"], atol=1e-5)
        assert torch.allclose(pooled, inputs["pooled_projections"], atol=1e-5)
        conditions = (embeddings, pooled, inputs["timestep"], torch.ones(2))
        monkeypatch.setattr(pipeline.transformer, "forward", forward)
        assert torch.allclose(call_flux(pipeline.transformer, inputs["hidden_states"], *conditions), predicted, atol=1e-4)


def test_texts_are_padded_to_any_number_of_tokens() -> None:
    windows = [random_window(step, StepRandom(0, step), every=5) for step in range(500)]
    long = windows[::5]
    assert all(20 <= window <= 512 for window in long) and min(long) < 60 and max(long) > 450
    assert {window for step, window in enumerate(windows) if step % 5} == {TEXT_WINDOW}


@pytest.mark.parametrize("step", [0, 1])  # with a longer text, and with the usual one
def test_a_model_that_guides_as_classifier_free_guidance_does_is_distilled_perfectly(
    step: int, flux: FluxTransformer2DModel, data: LatentSet
) -> None:
    class Guided(nn.Module):
        device = torch.device("cpu")

        def __init__(self, power: float) -> None:
            super().__init__()
            self.power = power

        def forward(self, noisy: Tensor, text: Tensor, pooled: Tensor, time: Tensor, *ids_guidance: Tensor) -> Any:
            *ids, guidance = ids_guidance
            empty, empty_pooled, _ = data.classifier([""] * len(noisy), text.shape[1])
            plain = flux(noisy, text, pooled, time, *ids, torch.ones_like(time)).sample
            unguided = flux(noisy, empty, empty_pooled, time, *ids, torch.ones_like(time)).sample
            scale = guidance[:, None, None] ** self.power
            return type("Output", (), {"sample": unguided + scale * (plain - unguided)})

    right, wrong = (distillation_loss(Guided(power), flux, data)(step, StepRandom(0, step)).item() for power in (1.0, 0.5))
    assert right < 1e-6 and wrong > 100 * right


def test_flux_learns_in_both_stages(flux: FluxTransformer2DModel, data: LatentSet, tmp_path: Path) -> None:
    teacher = copy.deepcopy(flux)
    for name, loss in (("base", flux_loss(flux, data)), ("distilled", distillation_loss(flux, teacher, data))):

        def loss_of_one_batch(step: int, random: StepRandom, loss: LossFunction = loss) -> Tensor:
            return loss(1, StepRandom(0, 1))

        before = loss_of_one_batch(0, StepRandom(0, 0)).item()
        train(name, flux, loss_of_one_batch, LoopConfig(12, 1e-3, ema_decay=0.5), tmp_path, seed=0)
        assert loss_of_one_batch(0, StepRandom(0, 0)).item() < 0.9 * before


def test_a_trained_autoencoder_is_loaded(tmp_path: Path) -> None:
    autoencoder = build_autoencoder().half()
    autoencoder.save_pretrained(tmp_path)
    loaded = load_autoencoder(tmp_path)
    assert isinstance(loaded, AutoencoderKL) and loaded.dtype == torch.float32 and not loaded.training
    assert str(tmp_path) not in loaded.to_json_string()
    assert torch.equal(loaded.encoder.conv_in.weight, autoencoder.encoder.conv_in.weight.float())


def test_latents_of_another_autoencoder_are_not_reused(tmp_path: Path) -> None:
    classifier = FluxTextClassifier("flux").eval()
    torch.manual_seed(0)
    first, second = build_autoencoder().eval(), build_autoencoder().eval()
    latents = [LatentSet(model, classifier, tmp_path, 0, 4).latents for model in (first, second, first)]
    assert torch.equal(latents[0], latents[2]) and not torch.equal(latents[0], latents[1])
