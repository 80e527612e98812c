"""Weights of text encoders under the names that published files have, whole or not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from hybridiff.errors import UsageError
from hybridiff.models.model_files import check_files
from hybridiff.models.model_parts import Part

SMALL = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 8}
CLIP = SMALL | {"projection_dim": 4}
T5 = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 8}
LLAMA = SMALL | {"num_key_value_heads": 2, "head_dim": 4}
Weights = dict[str, Tensor]


def clip() -> Any:
    return transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP))


def clip_with_projection() -> Any:
    return transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**CLIP))


def t5() -> Any:
    return transformers.T5EncoderModel(transformers.T5Config(**T5))


def llama() -> Any:
    return transformers.LlamaModel(transformers.LlamaConfig(**LLAMA))


def tied_llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True))


def llava() -> Any:
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 14}
    eyes, words = transformers.CLIPVisionConfig(**vision, patch_size=14), transformers.LlamaConfig(**LLAMA)
    return transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(vision_config=eyes, text_config=words))


def with_prefix(prefix: str) -> Callable[[Weights], Weights]:
    return lambda weights: {prefix + name: weight for name, weight in weights.items()}


def without(*names: str) -> Callable[[Weights], Weights]:
    def drop(weights: Weights) -> Weights:
        assert any(name in weights for name in names)
        return {name: weight for name, weight in weights.items() if name not in names}

    return drop


def as_embedding_of_the_encoder(weights: Weights) -> Weights:
    return without("shared.weight")(weights) | {"encoder.embed_tokens.weight": weights["shared.weight"]}


def checked(network: Any, change: Callable[[Weights], Weights], folder: Path, **config: Any) -> None:
    network.save_pretrained(folder)
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | config))
    weights = folder / "model.safetensors"
    save_file(change(load_file(weights)), weights, metadata={"format": "pt"})
    files = {f"text_encoder/{name}": folder / name for name in ("config.json", "model.safetensors")}
    check_files("m", files, [Part("text_encoder", "transformers", type(network))])


@pytest.mark.parametrize(
    ("network", "change"),
    [
        (clip, dict),
        (clip, with_prefix("text_model.")),  # all that were published before transformers 5
        (clip_with_projection, dict),
        (t5, dict),
        (t5, as_embedding_of_the_encoder),
        (llama, with_prefix("model.")),  # of a LlamaForCausalLM
        (tied_llama, dict),
        (llava, dict),  # saved under other names than the network's
    ],
)
def test_whole_weights_are_known_by_any_name_that_they_are_loaded_under(
    network: Callable[[], Any], change: Callable[[Weights], Weights], tmp_path: Path
) -> None:
    checked(network(), change, tmp_path)


@pytest.mark.parametrize(
    ("network", "change", "lacking"),
    [
        (clip, lambda weights: with_prefix("text_model.")(without("final_layer_norm.bias")(weights)), "final_layer_norm.bias"),
        (t5, without("shared.weight"), "shared.weight"),
        (llama, lambda weights: with_prefix("model.")(without("norm.weight")(weights)), "norm.weight"),
        (tied_llama, without("model.embed_tokens.weight"), "model.embed_tokens.weight"),
        (llava, without("language_model.lm_head.weight"), "lm_head.weight"),
        (clip, with_prefix("another."), "embeddings.position_embedding.weight"),
    ],
)
def test_weights_that_would_be_made_up_are_refused(
    network: Callable[[], Any], change: Callable[[Weights], Weights], lacking: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"whole weights; text_encoder lacks {lacking}"):
        checked(network(), change, tmp_path)


def test_weights_that_are_stored_quantized_have_shapes_of_their_own(tmp_path: Path) -> None:
    def packed(weights: Weights) -> Weights:
        return {name: weight.flatten()[:, None] if weight.ndim == 2 else weight for name, weight in weights.items()}

    with pytest.raises(UsageError, match="weights that fit"):
        checked(t5(), packed, tmp_path)
    checked(t5(), packed, tmp_path, quantization_config={"quant_method": "fp8"})
