"""Stage 2: the text encoders, taught to name what a caption says before any picture is made.

A denoiser learns slowly what its text encoders do not tell apart. Trained by themselves for a minute, to answer from their
outputs which colour, shape, size and place each thing has, they give the denoiser a condition that it can follow at once.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from jobs.train_shapes.build import TEXT_WIDTH, build_text_encoders, build_tokenizer
from jobs.train_shapes.fit import FitConfig, StepRandom, fit
from jobs.train_shapes.pictures import COLOURS, PLACES, SHAPES, SIZES, Scene, random_scene

NOTHING = "nothing"
QUESTIONS: tuple[tuple[str, ...], ...] = (
    tuple(COLOURS),  # the background
    *((*options, NOTHING) for _ in range(2) for options in (SIZES, COLOURS, SHAPES, PLACES)),
)


def answers(scene: Scene) -> list[int]:
    """The right answer to each question about a scene, as an index into its options."""
    said = [scene.background]
    for index in range(2):
        thing = scene.things[index] if index < len(scene.things) else None
        said += [thing.size, thing.colour, thing.shape, thing.place] if thing else [NOTHING] * 4
    return [options.index(answer) for options, answer in zip(QUESTIONS, said, strict=True)]


class TextExam(nn.Module):
    """Two text encoders and a linear reading of each output that a denoiser will be given."""

    def __init__(self, encoders: tuple[CLIPTextModel, CLIPTextModel], tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.tokenizer = tokenizer
        self.readings = nn.ModuleList(nn.Linear(TEXT_WIDTH, sum(map(len, QUESTIONS))) for _ in range(4))

    def forward(self, captions: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings (batch, 24, 128), pooled embeddings (batch, 128) and answers (4, batch, options)."""
        ids = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        ids = ids.to(self.readings[0].weight.device)
        end = (ids == self.tokenizer.eos_token_id).int().argmax(-1)
        outputs = [encoder(ids, output_hidden_states=True) for encoder in self.encoders]
        hidden = [output.hidden_states[-2] for output in outputs]
        pooled = [o.text_embeds if hasattr(o, "text_embeds") else o.pooler_output for o in outputs]
        read = [h[torch.arange(len(h), device=h.device), end] for h in hidden] + pooled
        logits = torch.stack([reading(x) for reading, x in zip(self.readings, read, strict=True)])
        return torch.cat(hidden, -1), torch.cat(pooled, -1), logits


def train_text_encoders(kind: str, work: Path, seed: int, steps: int, device: str = "cpu") -> TextExam:
    """Trains both text encoders of a kind until their outputs tell what the caption says."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    exam = TextExam(build_text_encoders(kind, tokenizer), tokenizer).to(device)

    def loss_of(step: int, random: StepRandom) -> Tensor:
        scenes = [random_scene(random.numpy, two_share=0.5) for _ in range(64)]
        right = torch.tensor([answers(scene) for scene in scenes], device=device)
        parts = exam([scene.caption for scene in scenes])[2].split([len(q) for q in QUESTIONS], -1)
        losses = [nn.functional.cross_entropy(p.flatten(0, 1), right[:, i].repeat(4)) for i, p in enumerate(parts)]
        return torch.stack(losses).mean()

    fit(f"text-{kind}", exam, loss_of, FitConfig(steps, 2e-3, ema_decay=0.99), work, seed)
    return exam.eval().requires_grad_(False)
