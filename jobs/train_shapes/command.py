"""Trains a bundled model from scratch: images, autoencoder, text encoders, denoiser, pipeline; or a CLIP that scores images.

    python jobs/train_shapes --kind xl --work_dir runs/shapes --output hybridiff/assets/shapes-xl
    python jobs/train_shapes --kind clip --work_dir runs/shapes --output jobs/train_shapes/shapes-clip

All kinds of pipelines share the autoencoder and the latents of a work directory. A killed run continues from its checkpoints.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jsonargparse
import torch


@dataclass(frozen=True)
class TrainConfig:
    """Options of the training.

    Args:
        kind: ``xl`` (StableDiffusionXLPipeline), ``sd3`` (StableDiffusion3Pipeline), ``flux`` (FluxPipeline) or ``clip``
            (CLIPModel).
        work_dir: directory of checkpoints; stages that are finished there are not trained again.
        output: directory for the pipeline in Diffusers format, or for the CLIP in Transformers format.
        seed: seed of all randomness.
        threads: number of CPU threads.
        device: cpu or cuda.
        images: size of the denoiser's training set.
        autoencoder: directory of a trained autoencoder in Diffusers format; one is trained if absent.
        autoencoder_steps: training steps of the autoencoder.
        text_steps: training steps of the text encoders.
        denoiser_steps: training steps of the denoiser.
        distillation_steps: training steps of the guidance distillation; only ``flux`` has this stage.
        clip_steps: training steps of the CLIP.
        captions: held-out captions on which a trained pipeline is scored.
    """

    kind: Literal["xl", "sd3", "flux", "clip"]
    work_dir: Path = Path("runs/shapes")
    output: Path | None = None
    seed: int = 0
    threads: int = 2
    device: str = "cpu"
    images: int = 20_000
    autoencoder: Path | None = None
    autoencoder_steps: int = 2200
    text_steps: int = 500
    denoiser_steps: int = 5400
    distillation_steps: int = 1000
    clip_steps: int = 800
    captions: int = 128


def main() -> None:
    """Parses the command line and trains."""
    config = jsonargparse.auto_cli(TrainConfig, as_positional=False)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(config.threads)
    config.work_dir.mkdir(parents=True, exist_ok=True)
    if config.kind == "clip":
        from jobs.train_shapes.clip import log_accuracy, save_clip, train_clip

        model, tokenizer = train_clip(config.work_dir, config.seed, config.clip_steps, config.device)
        save_clip(model, tokenizer, config.output or config.work_dir / "shapes-clip")
        log_accuracy(model, tokenizer)
    else:
        train_pipeline(config)


def train_pipeline(config: TrainConfig) -> None:
    """Runs a pipeline's stages in order."""
    from jobs.train_shapes.architectures import build_pipeline, save_pipeline
    from jobs.train_shapes.evaluation import held_out_scenes, score_pipeline
    from jobs.train_shapes.stages import (
        LatentSet,
        distill_guidance,
        load_autoencoder,
        train_autoencoder,
        train_denoiser,
        train_text_encoders,
    )

    work, seed = config.work_dir, config.seed
    if config.autoencoder:
        autoencoder = load_autoencoder(config.autoencoder, config.device)
    else:
        autoencoder = train_autoencoder(work, seed, config.autoencoder_steps, config.device)
    classifier = train_text_encoders(config.kind, work, seed, config.text_steps, config.device)
    data = LatentSet(autoencoder, classifier, work, seed, config.images)
    denoiser = train_denoiser(config.kind, data, work, seed, config.denoiser_steps, config.device)
    if config.kind == "flux":
        denoiser = distill_guidance(denoiser, data, work, seed, config.distillation_steps, config.device)
    output = config.output or work / f"shapes-{config.kind}"
    pipeline = build_pipeline(config.kind, autoencoder, (classifier.encoders[0], classifier.encoders[1]), denoiser)
    save_pipeline(pipeline, output)
    pipeline, scenes = pipeline.to(torch.float32), held_out_scenes(config.captions)
    logging.info("on %d held-out captions, guidance 5: %s", len(scenes), score_pipeline(pipeline, scenes))
    if config.kind == "flux":
        two_calls = score_pipeline(pipeline, scenes, guidance_scale=1.0, true_cfg_scale=5.0)
        logging.info("on %d held-out captions, true guidance 5 in two calls: %s", len(scenes), two_calls)
