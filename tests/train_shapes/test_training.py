"""The training of the bundled models: its tokenizer, its loop, and the scale of the autoencoder's latents."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from jobs.train_shapes.architectures import TEXT_WINDOW, build_autoencoder, build_tokenizer
from jobs.train_shapes.scenes import random_scene
from jobs.train_shapes.stages import ATTRIBUTES, NOTHING, attribute_labels, normalise_latents, training_batch
from jobs.train_shapes.training_loop import LoopConfig, StepRandom, learning_rate_factor, train


def test_each_word_of_a_caption_is_one_token_and_all_fit_the_window() -> None:
    tokenizer, rng = build_tokenizer(), np.random.default_rng(0)
    for _ in range(200):
        caption = random_scene(rng, two_share=0.5).caption
        ids = tokenizer(caption).input_ids
        assert len(ids) == len(caption.split()) + 2 <= TEXT_WINDOW
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == caption


def test_any_other_text_is_spelled_out() -> None:
    tokenizer = build_tokenizer()
    ids = tokenizer("Ein Hörnchen, 3!").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == "einhörnchen,3!"


def train_line(work: Path, steps: int, stop_after: int | None = None) -> list[Tensor]:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)

    def loss_of(step: int, random: StepRandom) -> Tensor:
        if step == stop_after:
            raise KeyboardInterrupt
        x = torch.randn(8, 3, generator=random.torch)
        return (model(x) - x.sum(1, keepdim=True)).square().mean()

    train("line", model, loss_of, LoopConfig(steps, 0.1, ema_decay=0.5, checkpoint_every_s=0), work, seed=1)
    return [p.detach().clone() for p in model.parameters()]


def test_a_killed_training_continues_to_the_same_weights(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    undisturbed = train_line(tmp_path / "a", 40)
    with pytest.raises(KeyboardInterrupt):
        train_line(tmp_path / "b", 40, stop_after=17)
    resumed = train_line(tmp_path / "b", 40)
    assert all(torch.equal(a, b) for a, b in zip(undisturbed, resumed, strict=True))
    assert (undisturbed[0] - 1).abs().max() < 0.2  # and it learns


def test_the_learning_rate_warms_up_and_decays_to_zero() -> None:
    config = LoopConfig(steps=100, learning_rate=1.0, warm_up_share=0.1, decay_share=0.5)
    factors = [learning_rate_factor(step, config) for step in range(100)]
    assert factors[0] == 0.1 and factors[30] == 1.0 and factors[75] == 0.5 and factors[99] == 0.02


def test_latents_are_scaled_without_changing_the_pictures() -> None:
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
