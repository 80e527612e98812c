"""The CLIP of shapes: what it learns from, and what the bundled one knows of generated images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from jobs.benchmark.features import ShapesFeatures, frechet_distance, rendered_images
from jobs.train_shapes import clip
from jobs.train_shapes.architectures import build_tokenizer
from jobs.train_shapes.clip import BUNDLED, altered, build_clip, caption_scores, contrastive_loss, disturbed, save_clip
from jobs.train_shapes.evaluation import call_options, held_out_scenes
from jobs.train_shapes.scenes import Scene, random_scene, render
from jobs.train_shapes.training_loop import LoopConfig, StepRandom, train
from tests.evaluate.evaluations import evaluate, extractors, rows, write_corpus


def differences(one: Scene, two: Scene) -> int:
    figures = [(getattr(a, name), getattr(b, name)) for a, b in zip(one.figures, two.figures, strict=True) for name in vars(a)]
    return sum(a != b for a, b in [*figures, (one.background, two.background)])


def test_an_altered_scene_differs_in_one_attribute() -> None:
    random = np.random.default_rng(0)
    scenes = [random_scene(random, two_share=0.5) for _ in range(200)]
    others = [altered(scene, random) for scene in scenes]
    assert {differences(*pair) for pair in zip(scenes, others, strict=True)} == {1}
    assert all(len({s.background, *(f.colour for f in s.figures)}) == 1 + len(s.figures) for s in others)


def test_a_disturbed_image_is_still_near() -> None:
    random = np.random.default_rng(0)
    image = render(random_scene(random), random)
    other = disturbed(image, random)
    assert other.dtype == np.uint8 and other.shape == image.shape
    assert 0 < np.abs(other.astype(float) - image).mean() < 40


def test_it_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip, "BATCH_SIZE", 8)
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = build_clip(tokenizer)
    loss = contrastive_loss(model, tokenizer)

    def loss_of_one_batch(step: int, random: StepRandom) -> Tensor:
        return loss(0, StepRandom(0, 0))

    before = loss_of_one_batch(0, StepRandom(0, 0)).item()
    train("clip", model, loss_of_one_batch, LoopConfig(12, 2e-3, ema_decay=0.5), tmp_path, seed=0)
    assert loss_of_one_batch(0, StepRandom(0, 0)).item() < 0.9 * before


def test_it_is_saved_as_transformers_reads_it(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    save_clip(build_clip(tokenizer), tokenizer, tmp_path)
    CLIPModel.from_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("a red circle").input_ids == tokenizer("a red circle").input_ids
    assert (tmp_path / "preprocessor_config.json").is_file()


def test_the_bundled_one_is_small() -> None:
    assert sum(file.stat().st_size for file in BUNDLED.iterdir()) < 4_000_000


def above_shuffled(images: np.ndarray, captions: list[str]) -> float:
    """Share of rows whose caption scores above another row's that differs."""
    model: Any = CLIPModel.from_pretrained(BUNDLED).eval()
    scores = caption_scores(model, AutoTokenizer.from_pretrained(BUNDLED), images, captions)
    count = len(captions)
    order = [next(j % count for j in range(i + 1, i + count) if captions[j % count] != captions[i]) for i in range(count)]
    return float(np.mean([scores[i, i] > scores[i, j] for i, j in enumerate(order)]))


def test_right_captions_of_rendered_images_score_higher() -> None:
    scenes = held_out_scenes(64, seed=3)
    images = np.stack([render(scene, np.random.default_rng(i)) for i, scene in enumerate(scenes)])
    assert above_shuffled(images, [scene.caption for scene in scenes]) >= 0.95


@pytest.mark.slow
def test_evaluation_scores_right_captions_of_generated_images_higher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command: the CLIP as its extractor, and the judge as a score of one's own."""
    from hybridiff.config import ModelConfig
    from hybridiff.models.facts import read_facts
    from hybridiff.models.load import load_pipeline

    model = ModelConfig(path="shapes-xl", dtype="float32")
    pipeline = load_pipeline(model, read_facts(model), torch.device("cpu"))
    captions = [scene.caption for scene in held_out_scenes(40, seed=5)]
    generators = [torch.Generator().manual_seed(i) for i in range(len(captions))]
    found = pipeline(captions, num_inference_steps=12, guidance_scale=5.0, generator=generators, **call_options(pipeline)).images
    images = {f"{row:02d}": np.asarray(image) for row, image in enumerate(found)}
    (tmp_path / "judging.py").write_text(JUDGING)
    monkeypatch.syspath_prepend(tmp_path)
    given = extractors(tmp_path, clip={"path": str(BUNDLED), "preprocessing": "directory"})
    table = {}
    for name, texts in (("right", captions), ("shuffled", [*captions[1:], captions[0]])):
        write_corpus(tmp_path / name, images, prompts=dict(zip(images, texts, strict=True)))
        assert evaluate(tmp_path / name, "--scores", "clip,judging:Judge", "--extractors", given) == 0
        table[name] = rows(tmp_path / name, "scores")
    pairs = list(zip(table["right"], table["shuffled"], strict=True))
    assert all(right["key"] == shuffled["key"] for right, shuffled in pairs) and len(set(captions)) == len(captions)
    assert np.mean([right["clip"] > shuffled["clip"] for right, shuffled in pairs]) >= 0.95
    assert np.mean([right["judge"] >= shuffled["judge"] for right, shuffled in pairs]) >= 0.95
    assert np.mean([row["judge"] for row in table["right"]]) >= 0.9 > 0.6 > np.mean([row["judge"] for row in table["shuffled"]])


JUDGING = """
import numpy as np
from jobs.train_shapes.evaluation import held_out_scenes, judge

SCENES = {scene.caption: scene for scene in held_out_scenes(40, seed=5)}


class Judge:
    def __call__(self, images, rows):
        verdicts = [judge(image, SCENES[row["prompt"]]) for image, row in zip(images, rows)]
        return [float(np.mean([one.background, *one.colours, *one.shapes])) for one in verdicts]
"""


def test_distances_tell_images_apart() -> None:
    features = ShapesFeatures()
    one, two = rendered_images(32, 11), rendered_images(32, 12)
    near = (one + 0.02 * torch.randn(one.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    vectors = [features.vectors(images) for images in (one, near, two)]
    assert vectors[0].shape == (32, 64)
    assert (
        frechet_distance(vectors[0], vectors[0])
        < 1e-6
        < frechet_distance(*vectors[:2])
        < frechet_distance(vectors[0], vectors[2])
    )
    assert max(features.lpips(one, one)) < 1e-6 and 0 < np.mean(features.lpips(one, near)) < np.mean(features.lpips(one, two))
