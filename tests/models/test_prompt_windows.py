"""Which prompts are cut off, by the pipelines' own ways of making tokens of them; the embeddings say what was left."""

import inspect
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from hybridiff.models.load import as_asked
from hybridiff.models.prompt_windows import LONGEST_PROMPT, observed_windows

WINDOW = 64
WORDS = ("<pad>", "<unk>", "word", "last")
LAST = WORDS.index("last")
TEMPLATE = (
    "{% for message in messages %}<|start|> {{ message['role'] }} says "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{{ message['content'][0]['text'] }}{% endif %} <|stop|> {% endfor %}"
    "{% if add_generation_prompt %}<|start|> assistant says {% endif %}"
)
PIPELINES = {
    "ZImagePipeline": "chat template",
    "Flux2KleinPipeline": "chat template, prompt by prompt",
    "Flux2Pipeline": "chat template with a system message, in one step",
    "Lumina2Pipeline": "system prompt in front",
    "OvisImagePipeline": "system prompt in a chat template, dropped behind the encoder",
    "Krea2Pipeline": "prefix and suffix",
    "QwenImagePipeline": "embeddings are cut behind the encoder",
    "LongCatImagePipeline": "words are cut by the pipeline",
    "ChromaPipeline": "no template",
    "CogView4Pipeline": "no template",
}


class Encoder(torch.nn.Module):
    """A text encoder whose embedding of a token is its number."""

    dtype = torch.float32
    device = torch.device("cpu")
    config = SimpleNamespace(hidden_size=1)

    def forward(self, input_ids: Tensor, *args: Any, **options: Any) -> Any:
        return Output(hidden_states=(input_ids[..., None].float(),) * 40, last_hidden_state=input_ids[..., None].float())


class Output(SimpleNamespace):
    def __getitem__(self, index: int) -> Tensor:
        states: Tensor = self.last_hidden_state
        return states


def tokenizer() -> Any:
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    options = {"pad_token": "<pad>", "unk_token": "<unk>", "chat_template": TEMPLATE, "model_max_length": 4096}
    return PreTrainedTokenizerFast(tokenizer_object=words, **options)


def make(name: str) -> Any:
    """A pipeline of a tokenizer and an encoder alone, whose offsets of its template are those of this tokenizer."""
    kind = getattr(diffusers, name)
    required = [key for key, option in inspect.signature(kind.__init__).parameters.items() if option.default is option.empty]
    pipeline = kind(**dict.fromkeys(required[1:]) | {"tokenizer": tokenizer(), "text_encoder": Encoder()})
    if name == "QwenImagePipeline":
        pipeline.prompt_template_encode_start_idx = tokens(pipeline.prompt_template_encode.split("{}")[0])
    if name == "Krea2Pipeline":
        pipeline.prompt_template_encode_start_idx = tokens(pipeline.prompt_template_encode_prefix)
        pipeline.prompt_template_encode_num_suffix_tokens = tokens(pipeline.prompt_template_encode_suffix)
    if name == "OvisImagePipeline":
        pipeline.user_prompt_begin_id = tokens(pipeline._get_messages([""])[0].split("<|stop|>")[0])
    if name == "LongCatImagePipeline":
        pipeline.tokenizer_max_length = WINDOW
    return pipeline


def tokens(text: str) -> int:
    return len(tokenizer()(text).input_ids)


def encode(pipeline: Any, prompts: list[str], **options: Any) -> tuple[list[bool], list[bool]]:
    """Whether each prompt lost its last word, and whether that was seen."""
    taken = inspect.signature(pipeline.encode_prompt).parameters
    limit = WINDOW if "max_sequence_length" in taken else None
    options |= {"max_sequence_length": limit} if limit else {}
    if "do_classifier_free_guidance" in taken and "negative_prompt" not in options:
        options["do_classifier_free_guidance"] = False
    with observed_windows(pipeline, limit) as windows:
        embeddings = pipeline.encode_prompt(prompt=list(prompts), **options)[0]
    negative = options.get("negative_prompt", [""] * len(prompts))
    return [not bool((row == LAST).any()) for row in embeddings], windows.truncated(prompts, negative)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_prompt_that_loses_a_word_is_truncated(name: str) -> None:
    pipeline = make(name)
    kind = type(pipeline.tokenizer)
    early = 0
    for words in range(1, WINDOW + 4):
        lost, found = encode(pipeline, ["word last", "word " * (words - 1) + "last", "a word last"])
        if words == 1 and not any(lost):
            assert found == [False] * 3
        assert found[0] == lost[0] and found[2] == lost[2]
        assert found[1] >= lost[1]
        early += found[1] and not lost[1]
    assert lost[1], "the longest prompt exceeds the window"
    assert early <= tokens("<|stop|> <|start|> assistant says"), "what is behind the prompt is cut off first"
    assert type(pipeline.tokenizer) is kind


def test_a_negative_prompt_that_is_cut_off_truncates_no_prompt() -> None:
    pipeline = make("Lumina2Pipeline")
    negative = ["word last " * WINDOW, "word"]
    assert encode(pipeline, ["word last", "last"], negative_prompt=negative)[1] == [False, False]


def test_a_prompt_that_no_encoder_could_read_is_truncated() -> None:
    with observed_windows(SimpleNamespace(components={}, __call__=None), None) as windows:
        assert windows.truncated(["a" * LONGEST_PROMPT, "a" * (LONGEST_PROMPT + 1)], ["", ""]) == [False, True]


def test_no_language_model_rewrites_prompts_unless_asked() -> None:
    names = ("LongCatImagePipeline", "ErnieImagePipeline")
    kinds = [getattr(diffusers, name) for name in names]
    assert [as_asked(kind.__new__(kind)) for kind in kinds] == [{"enable_prompt_rewrite": False}, {"use_pe": False}]
