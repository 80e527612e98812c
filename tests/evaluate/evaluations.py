"""Small corpora with given images, small networks, and evaluations of them in this process."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from hybridiff import cli
from hybridiff.corpus import Corpus, Result, ShardWriter
from hybridiff.images import Encoder
from hybridiff.prompts.rows import Sample
from tests.corpus.corpora import RUN_VALUES, USER_SCHEMA, record

Pixels = NDArray[np.uint8]
QUIET = ("--trainer.accelerator=cpu", "--no_progress", "--bootstrap=20")


def make_image(number: int, side: int = 32) -> Pixels:
    """A smooth image with some noise; each number gives another one."""
    random = np.random.default_rng(number)
    waves = random.uniform(0.5, 3, (3, 2))
    across, down = np.meshgrid(*[np.linspace(0, np.pi, side)] * 2)
    planes = [np.sin(a * across + random.uniform(0, 6)) * np.cos(b * down + random.uniform(0, 6)) for a, b in waves]
    image = 128 + 100 * np.stack(planes, axis=-1) + random.normal(0, 3, (side, side, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


def write_corpus(
    url: Path | str,
    images: Mapping[str, Pixels | None],
    shard_size: int = 8,
    prompts: Mapping[str, str] | None = None,
    seeds: Mapping[str, int] | None = None,
) -> Corpus:
    """A whole corpus of these images by key; None is a row that failed."""
    corpus, keys = Corpus(str(url)), list(images)
    shards = [keys[start : start + shard_size] for start in range(0, len(keys), shard_size)]
    corpus.start_run(record(plan={"rows": len(keys), "shards": len(shards), "content": "0" * 64}))
    for index, some in enumerate(shards):
        writer = ShardWriter(corpus, index, RUN_VALUES, USER_SCHEMA, Encoder("png"))
        for key in some:
            writer.write(_result(key, images[key], (prompts or {}).get(key, f"picture {key}"), (seeds or {}).get(key, 7)))
        writer.commit({})
    return corpus


def make_images(count: int, first: int = 0, side: int = 32) -> dict[str, Pixels | None]:
    """Images by key."""
    return {f"image-{number:04d}": make_image(first + number, side) for number in range(count)}


def noisy(images: Mapping[str, Pixels | None], level: float = 6.0) -> dict[str, Pixels | None]:
    """The same images, a little different."""
    random = np.random.default_rng(0)
    return {
        k: None if i is None else np.clip(i + random.normal(0, level, i.shape), 0, 255).astype(np.uint8)
        for k, i in images.items()
    }


def evaluate(*arguments: str | Path) -> int:
    """Runs the command in this process; its exit code."""
    return cli.main(["evaluate", *map(str, arguments), *QUIET])


def figures(folder: Path, name: str) -> dict[str, Any]:
    """The figures of a result."""
    document: dict[str, Any] = json.loads((folder / "evaluation" / f"{name}.json").read_text())
    return document


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a result."""
    found: list[dict[str, Any]] = pq.read_table(folder / "evaluation" / f"{name}.parquet").to_pylist()
    return found


class Extractor(torch.nn.Module):
    """A small network: vectors of 12 values."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 12, 5, stride=2), torch.nn.Tanh(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x) * 0 + 1  # as an extractor whose own forward is not what is wanted


def torchscript(path: Path) -> Path:
    """The small network as a TorchScript file whose part ``layers`` is what is called."""
    torch.jit.script(Extractor()).save(str(path))
    return path


def extractors(folder: Path, **given: Any) -> Path:
    """A file of extractors."""
    path = folder / "extractors.yaml"
    path.write_text(json.dumps(given))  # JSON is YAML
    return path


def tiny_clip(path: Path) -> Path:
    """A CLIP of random weights with a tokenizer of a few words, in the format of transformers."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<pad>", "<start>", "<end>", "<unk>", "picture", *map(chr, range(ord("a"), ord("z") + 1))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing("<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)])  # type: ignore[assignment]
    names = {"pad_token": "<pad>", "bos_token": "<start>", "eos_token": "<end>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(path)
    text = {"vocab_size": len(words), "max_position_embeddings": 12, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 8}
    config = transformers.CLIPConfig(
        text_config={**text, **small}, vision_config={**small, "image_size": 32, "patch_size": 8}, projection_dim=8
    )
    torch.manual_seed(1)
    transformers.CLIPModel(config).save_pretrained(path)
    return path


def _result(key: str, image: Pixels | None, prompt: str, seed: int) -> Result:
    sample = Sample(key, prompt, None, seed, {"style": "x", "weight": 1.0})
    error = "ValueError: the latents or the decoded image are not finite" if image is None else None
    return Result(sample, image, error, False, 4, 0, 0, None, None, [])


def planted(count: int) -> tuple[dict[str, Pixels | None], dict[str, Sequence[str]]]:
    """Images of which 1 % each are black, repeat another, and are swapped; and the keys of these."""
    images = make_images(count)
    keys, some = list(images), max(1, count // 100)
    black, copies, swapped = keys[5 : 5 + some], keys[-some:], keys[count // 2 : count // 2 + 2 * some]
    changed = dict(images)
    for key in black:
        changed[key] = np.zeros_like(images[key])
    for place, key in enumerate(copies):
        changed[key] = images[keys[20 + place]]
    for one, two in zip(swapped[::2], swapped[1::2], strict=True):
        changed[one], changed[two] = images[two], images[one]
    return changed, {"black": black, "copies": copies, "swapped": swapped}
