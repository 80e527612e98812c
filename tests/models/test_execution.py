"""How a model is executed: what is passed to Diffusers, and what is refused before anything is loaded."""

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FluxPipeline, StableDiffusionXLPipeline
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from transformers import CLIPTextConfig, CLIPTextModel

from hybridiff.config import ModelConfig
from hybridiff.errors import UsageError
from hybridiff.models import execution
from hybridiff.models.dtypes import resolve_dtype
from hybridiff.models.execution import check_execution, check_execution_device, place, quantized, quantizers
from hybridiff.models.facts import read_facts
from hybridiff.models.load import load_pipeline
from hybridiff.parallel import parallelize
from hybridiff.schedule import Adaptive
from tests.dist.tiny import tiny_sd3, tiny_xl
from tests.dist.tiny_families import BRANCHES, autoencoder

ENCODER = CLIPTextConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
LIBRARIES = {"transformer": "diffusers", "vae": "diffusers", "text_encoder": "transformers"}


class Unable(torch.nn.Module):
    """An autoencoder that can do nothing."""

    _supports_group_offloading = False


def check(kind: str, vae: Any = None, **options: Any) -> None:
    model = ModelConfig("tiny", **options)
    pipeline, name = {
        "xl": (tiny_xl(), "unet"),
        "sd3": (tiny_sd3(), "transformer"),
        "flux": (BRANCHES["flux"].make(), "transformer"),
    }[kind]
    networks = {name: getattr(pipeline, name), "vae": vae or autoencoder(), "text_encoder": CLIPTextModel(ENCODER)}
    check_execution(model, type(pipeline), networks, name)


TAKEN: list[tuple[str, dict[str, Any]]] = [
    ("flux", {"compile": True, "attention": "_native_math", "vae_tiling": True, "vae_slicing": True, "offload": "model"}),
    ("flux", {"offload": "group", "vae_tiling": True}),
    ("xl", {"compile": True, "attention": "native"}),
    ("sd3", {"offload": "group"}),
]


@pytest.mark.parametrize(("kind", "options"), TAKEN)
def test_taken(kind: str, options: dict[str, Any]) -> None:
    check(kind, **options)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (
        "sd3",
        {"compile": True},
        "model.compile is True; allowed: false; Diffusers names no blocks of SD3Transformer2DModel that repeat",
    ),
    ("xl", {"attention": "_native_math"}, "allowed: native; Diffusers has no other attention for UNet2DConditionModel"),
    (
        "flux",
        {"attention": "sage"},
        "model.attention is 'sage'; allowed: backends whose packages are installed (RuntimeError: Sage",
    ),
    ("flux", {"attention": "quick"}, "model.attention is 'quick'; allowed: flash, flash_varlen, "),
    ("flux", {"attention": "flash_hub"}, "the others run code that is downloaded from the hub"),
    ("flux", {"vae": Unable(), "vae_tiling": True}, "model.vae_tiling is True; allowed: false; Unable has no tiling"),
    ("flux", {"vae": Unable(), "vae_slicing": True}, "model.vae_slicing is True; allowed: false; Unable has no slicing"),
    (
        "flux",
        {"vae": Unable(), "offload": "group"},
        "model.offload is 'group'; allowed: none or model; Diffusers can't offload Unable",
    ),
    ("flux", {"offload": "disk"}, "model.offload is 'disk'; allowed: none, model, group"),
    ("flux", {"compile": True, "offload": "group"}, "model.compile is True; allowed: false with model.offload group"),
]


@pytest.mark.parametrize(("kind", "options", "message"), REFUSED)
def test_refused(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        check(kind, **options)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_pipeline_whose_networks_have_no_order_is_not_offloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FluxPipeline, "model_cpu_offload_seq", None)
    with pytest.raises(UsageError, match=r"allowed: none or group; Diffusers names no order .* of FluxPipeline run"):
        check("flux", offload="model")


DEVICES: list[tuple[str, dict[str, Any], str]] = [
    ("cpu", {"offload": "model"}, "model.offload is 'model'; allowed: none on cpu, whose memory is main memory"),
    (
        "cpu",
        {"attention": "_native_flash"},
        "backends that run on cpu in float32 (ValueError: Query, key, and value must be either",
    ),
    ("cpu", {"attention": "_native_efficient"}, "backends that run on cpu in float32 (RuntimeError: "),
    ("cuda", {"attention": "_native_cudnn"}, "backends that run on cuda in float32 (ValueError: "),
    ("cpu", {"attention": "_native_cudnn", "dtype": "bfloat16"}, "backends that run on cpu in bfloat16 (RuntimeError: "),
]


@pytest.mark.parametrize(("device", "options", "message"), DEVICES)
def test_what_a_device_cannot_do_is_refused(device: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        check_execution_device(ModelConfig("tiny", **{"dtype": "float32"} | options), device)
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("device", "gpu", "bfloat16", "expected"),
    [
        ("cpu", True, True, "float32"),
        ("auto", False, False, "float32"),
        ("auto", True, True, "bfloat16"),
        ("cuda", True, True, "bfloat16"),
        ("gpu", True, False, "float16"),
        ("mps", False, False, "float16"),
    ],
)
def test_the_dtype_that_a_device_has(
    device: str, gpu: bool, bfloat16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)
    assert resolve_dtype(ModelConfig("tiny").dtype, device) == expected and resolve_dtype("float32", device) == "float32"


@pytest.mark.parametrize("attention", ["native", "_native_math", "flex", None])
def test_attention_that_runs_on_cpus(attention: str | None) -> None:
    check_execution_device(ModelConfig("tiny", attention=attention, dtype="float32"), "cpu")
    check_execution_device(ModelConfig("tiny", attention="_native_flash", dtype="bfloat16"), "cpu")
    check_execution_device(ModelConfig("tiny", attention="_native_cudnn", dtype="bfloat16", offload="group"), "cuda")


def test_compilation_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "_missing_compiler", lambda device: "a C++ compiler, such as g++")
    with pytest.raises(UsageError, match=r"^model.compile is True; allowed: false, as torch.compile needs a C\+\+ compiler"):
        check_execution_device(ModelConfig("tiny", compile=True), "cpu")


QUANTIZATIONS: list[tuple[dict[str, Any], str]] = [
    ({"backend": "torchao"}, "model.quantization is 'backend'; allowed: quant_backend, quant_kwargs, components_to_quantize"),
    ({"quant_kwargs": {}}, "quant_backend is None; allowed: bitsandbytes_4bit, bitsandbytes_8bit, torchao, quanto, modelopt"),
    ({"quant_backend": "gguf"}, "quant_backend is 'gguf'; allowed: bitsandbytes_4bit, "),
    (
        {"quant_backend": "torchao"},
        "quant_backend is 'torchao'; allowed: backends whose packages are installed; this one needs torchao",
    ),
    ({"quant_backend": "quanto", "quant_mapping": {}}, "allowed: either a quant_mapping alone, or a quant_backend"),
    (
        {"quant_mapping": {"unet": {"quant_backend": "quanto"}}},
        "is 'unet'; allowed: text_encoder, transformer, vae (networks of tiny)",
    ),
    ({"quant_mapping": {"vae": "quanto"}}, "allowed: {quant_backend: ..., quant_kwargs: {...}} for vae"),
]


@pytest.mark.parametrize(("given", "message"), QUANTIZATIONS)
def test_quantization_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        quantizers(ModelConfig("tiny", quantization=given), LIBRARIES)
    assert message in str(refused.value)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all packages of quantization were there; their classes of options are, but for those of torchao."""
    monkeypatch.setattr(
        execution, "QUANTIZERS", {name: (package, lambda: True) for name, (package, _) in execution.QUANTIZERS.items()}
    )


def test_quantization_has_the_arguments_that_its_class_takes(installed: None) -> None:
    options: dict[str, Any] = {"quant_backend": "bitsandbytes_8bit", "quant_kwargs": {"load_in_8bit": True}}
    model = ModelConfig("tiny", quantization=options)
    found = quantizers(model, LIBRARIES)
    assert {name: type(one).__module__.partition(".")[0] for name, one in found.items()} == {
        "text_encoder": "transformers",
        "transformer": "diffusers",
    }
    alone = replace(model, quantization=options | {"components_to_quantize": "transformer"})
    passed = quantized(alone, LIBRARIES)["quantization_config"]
    assert list(passed.quant_mapping) == ["transformer"] and passed.quant_mapping["transformer"].load_in_8bit
    assert quantized(ModelConfig("tiny"), LIBRARIES) == {}
    for arguments, message in (
        ({"bits": 8}, "quant_kwargs is 'bits'; allowed: bnb_4bit_"),
        ({"load_in_8bit": "x"}, "BitsAndBytesConfig takes"),
    ):
        with pytest.raises(UsageError, match=message):
            quantizers(replace(model, quantization=options | {"quant_kwargs": arguments}), LIBRARIES)
    with pytest.raises(UsageError, match=r"allowed: torchao with model.offload group, which moves layers of no other backend"):
        quantizers(replace(model, offload="group"), LIBRARIES)
    with pytest.raises(UsageError, match="allowed: what transformers has for text_encoder"):
        quantizers(replace(model, quantization={"quant_backend": "modelopt"}), LIBRARIES)


def test_quantization_reaches_the_loading(installed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    options = {"quant_backend": "bitsandbytes_8bit", "quant_kwargs": {"load_in_8bit": True}, "components_to_quantize": ["unet"]}
    model = ModelConfig("shapes-xl", quantization=options)
    facts = read_facts(model)
    assert facts.networks["unet"] == "diffusers" and facts.networks["text_encoder"] == "transformers"

    class Loaded(Exception):
        pass

    def load(*_: Any, **arguments: Any) -> None:
        given.update(arguments)
        raise Loaded

    monkeypatch.setattr(StableDiffusionXLPipeline, "from_pretrained", load)
    with pytest.raises(Loaded):
        load_pipeline(model, facts)
    assert list(given["quantization_config"].quant_mapping) == ["unet"]


def test_attention_is_that_of_the_denoiser_alone() -> None:
    case = BRANCHES["flux"]
    pipeline = case.make()
    before = case.generate(pipeline, 2, 3)
    place(pipeline, ModelConfig("tiny", attention="_native_math"), "cpu")
    processors = [module.processor for module in pipeline.transformer.modules() if hasattr(module, "processor")]
    assert processors and all(one._attention_backend is AttentionBackendName._NATIVE_MATH for one in processors)
    assert _AttentionBackendRegistry.get_active_backend()[0] is AttentionBackendName.NATIVE
    torch.testing.assert_close(case.generate(pipeline, 2, 3), before, atol=1e-4, rtol=1e-4)


def test_tiles_and_slices_of_the_autoencoder() -> None:
    pipeline = BRANCHES["flux"].make()
    pipeline.register_modules(vae=autoencoder())
    assert isinstance(pipeline.vae, AutoencoderKL) and not pipeline.vae.use_tiling and not pipeline.vae.use_slicing
    place(pipeline, ModelConfig("tiny", vae_tiling=True), "cpu")
    assert pipeline.vae.use_tiling and not pipeline.vae.use_slicing
    place(pipeline, ModelConfig("tiny", vae_slicing=True), "cpu")
    assert pipeline.vae.use_slicing


def test_compiled_blocks_are_those_that_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = BRANCHES["flux"].make()
    compiled: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(type(module).__name__))
    place(pipeline, ModelConfig("tiny", compile=True), "cpu")
    assert compiled == ["FluxTransformerBlock"] * 2 + ["FluxSingleTransformerBlock"] * 2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_model_takes_the_same_steps_to_the_same_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)
    model = ModelConfig("shapes-xl", dtype="float32", compile=True)
    check_execution_device(model, "cpu")
    prompt = {"prompt": ["a red circle"], "num_inference_steps": 12, "output_type": "latent"}
    found = []
    for options in (replace(model, compile=False), model):
        pipeline = load_pipeline(options, read_facts(options))
        with parallelize(pipeline, Adaptive(min_full_steps=3), 1) as handle:
            latents = pipeline(generator=torch.Generator().manual_seed(0), **prompt).images
        found.append((handle.trace.compact(), latents))
    assert found[0][0] == found[1][0] and "S" in found[0][0]
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-3, rtol=1e-3)
    torch._dynamo.reset()
