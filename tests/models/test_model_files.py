"""Damaged models, LoRA weights without a place, and the identity of weights: one line, before anything is loaded or written."""

import json
import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import pytest
import torch
from diffusers.utils.import_utils import DummyObject
from safetensors.torch import load_file, save_file

from hybridiff.config import ModelConfig, SamplingConfig
from hybridiff.errors import UsageError
from hybridiff.models import facts, model_files, model_parts, schedulers, weight_files
from hybridiff.models.facts import check_model, read_facts, weights_revision
from hybridiff.models.load import load_pipeline
from tests.optional import needs

COMMIT = "0123456789abcdef0123456789abcdef01234567"
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of a bundled model."""
    shutil.copytree(read_facts(ModelConfig("shapes-xl")).source, tmp_path / "m")
    return tmp_path / "m"


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def reshape(file: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def pickled_index(model: Path) -> None:
    weights = load_file(model / UNET)
    (model / UNET).unlink()
    (model / "unet/decoy.safetensors").touch()
    torch.save(weights, model / "unet/weights.bin")
    (model / f"{UNET}.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(weights, "weights.bin")}))


def reheader(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the first tensor's entry in the header of a safetensors file, and leaves its bytes."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header[next(name for name in header if name != "__metadata__")])
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def retoken(file: Path, change: Callable[[dict[str, int]], Any]) -> None:
    parsed = json.loads(file.read_text())
    change(parsed["model"]["vocab"])
    file.write_text(json.dumps(parsed))


def sparse(file: Path) -> None:
    with file.open("ab") as opened:
        opened.truncate(1 << 40)


def shards(model: Path, missing: bool = False, name: str = "a.safetensors") -> None:
    weights = load_file(model / UNET)
    (model / UNET).unlink()
    save_file(weights, model / "unet/a.safetensors")
    names = {key: name for key in weights} | ({"other": "b.safetensors"} if missing else {})
    (model / f"{UNET}.index.json").write_text(json.dumps({"weight_map": names}))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "index is not JSON": (lambda m: (m / "model_index.json").write_text("{"), "model_index.json is JSON"),
    "index is a list": (lambda m: (m / "model_index.json").write_text("[]"), "model_index.json is a JSON object"),
    "index is deep": (lambda m: (m / "model_index.json").write_text("[" * 100_000), "model_index.json is JSON"),
    "no index": (lambda m: (m / "model_index.json").unlink(), "model_index.json"),
    "part of another library": (lambda m: edit(m / "model_index.json", unet=["torch", "nn.Linear"]), "not code of its own"),
    "nested pipeline": (lambda m: edit(m / "model_index.json", unet=["diffusers", "FluxPipeline"]), "not code of its own"),
    "part that is no part": (lambda m: edit(m / "model_index.json", unet=["transformers", "Trainer"]), "not code of its own"),
    "missing part": (lambda m: shutil.rmtree(m / "text_encoder_2"), "the directory text_encoder_2 is missing"),
    "missing config": (lambda m: (m / "unet/config.json").unlink(), "unet/config.json"),
    "missing weights": (lambda m: (m / UNET).unlink(), f"{UNET} is missing"),
    "missing scheduler": (
        lambda m: (m / "scheduler/scheduler_config.json").unlink(),
        "scheduler_config.json is missing",
    ),
    "config is not JSON": (lambda m: (m / "text_encoder/config.json").write_text("no"), "text_encoder/config.json is JSON"),
    "a tokenizer without its window": (
        lambda m: (m / "tokenizer/tokenizer_config.json").unlink(),
        "tokenizer pads to 1e+30 tokens (tokenizer_config.json), and text_encoder has 24 positions",
    ),
    "tokenizer is not JSON": (lambda m: (m / "tokenizer/tokenizer.json").write_text("no"), "tokenizer/tokenizer.json is JSON"),
    "weights are no safetensors": (
        lambda m: (m / "text_encoder/model.safetensors").write_text("x" * 40),
        "text_encoder/model.safe",
    ),
    "weights are empty": (lambda m: (m / UNET).write_bytes(b""), f"{UNET} is damaged"),
    "weights are cut": (lambda m: (m / UNET).write_bytes((m / UNET).read_bytes()[:-100]), f"whole weights; {UNET} has "),
    "weights are longer": (lambda m: (m / UNET).write_bytes((m / UNET).read_bytes() + b"x"), f"whole weights; {UNET} has "),
    "a tensor of a text encoder is missing": (
        lambda m: reshape(m / "text_encoder" / "model.safetensors", lambda w: w.pop("embeddings.position_embedding.weight")),
        "text_encoder lacks embeddings.position_embedding.weight",
    ),
    "a tensor is missing": (lambda m: reshape(m / UNET, lambda w: w.pop("conv_in.bias")), "unet lacks conv_in.bias"),
    "a tensor has another shape": (
        lambda m: reshape(m / UNET, lambda w: w.update({"conv_in.bias": torch.zeros(3)})),
        "unet: conv_in.bias is 3 there, ",
    ),
    "weights of another text encoder": (
        lambda m: shutil.copy(m / "vae/diffusion_pytorch_model.safetensors", m / "text_encoder/model.safetensors"),
        "text_encoder lacks ",
    ),
    "config of another size": (lambda m: edit(m / "unet/config.json", in_channels=9), "unet: conv_in.weight is "),
    "config of fewer blocks": (lambda m: edit(m / "vae/config.json", layers_per_block=0), "is of a block that its config.json"),
    "config of a size in words": (lambda m: edit(m / "unet/config.json", sample_size="x"), "not one like this (ValueError"),
    "endless config": (lambda m: sparse(m / "unet/config.json"), "unet/config.json is a regular file of at most 200 MB"),
    "a scale that is no number": (lambda m: edit(m / "vae/config.json", scaling_factor="x"), "has a number as scaling_factor"),
    "a scale of nan": (lambda m: edit(m / "vae/config.json", scaling_factor=float("nan")), "has a number as scaling_factor"),
    "a tensor of an unknown type": (lambda m: reheader(m / UNET, lambda t: t.update(dtype="XX")), f"{UNET} is damaged"),
    "a tensor of a larger type": (lambda m: reheader(m / UNET, lambda t: t.update(dtype="F64")), f"{UNET} is damaged"),
    "a tensor over another": (lambda m: reheader(m / UNET, lambda t: t["data_offsets"].__setitem__(0, 4)), f"{UNET} is damaged"),
    "no vocabulary": (
        lambda m: (m / "tokenizer/tokenizer.json").unlink(),
        "tokenizer has no vocabulary for CLIPTokenizer in tokenizer/",
    ),
    "tokenizer is empty": (
        lambda m: (m / "tokenizer/tokenizer.json").write_text("{}"),
        "tokenizer is a CLIPTokenizer by tokenizer/tokenizer.json, tokenizer/tokenizer_config.json (KeyError",
    ),
    "tokenizer is a list": (lambda m: (m / "tokenizer_2/tokenizer.json").write_text("[1]"), "by tokenizer_2/tokenizer.json, "),
    "index is empty": (lambda m: (m / "model_index.json").write_text("{}"), "(model_index.json: _class_name is None)"),
    "a part that is a text": (lambda m: edit(m / "model_index.json", unet="diffusers"), "(model_index.json: unet is diffusers)"),
    "scheduler is empty": (
        lambda m: (m / "scheduler/scheduler_config.json").write_text("{}"),
        "scheduler/scheduler_config.json names a class",
    ),
    "integers in place of floats": (
        lambda m: reshape(m / UNET, lambda w: w.update({name: value.int() for name, value in w.items()})),
        "weights of floating-point numbers; unet: ",
    ),
    "quantized by a missing package": (
        lambda m: edit(m / "text_encoder/config.json", quantization_config={"quant_method": "gguf"}),
        "text_encoder/config.json asks for gguf",
    ),
    "quantized by nothing": (
        lambda m: edit(m / "unet/config.json", quantization_config={"load_in_4bit": True}),
        "unet/config.json asks for {",
    ),
    "tokenizer of another text encoder": (
        lambda m: retoken(m / "tokenizer/tokenizer.json", lambda vocabulary: vocabulary.update({"zzz": 49407})),
        "tokenizer has a token 49407, and text_encoder knows 617 of them",
    ),
    "endless window": (
        lambda m: edit(m / "tokenizer/tokenizer_config.json", model_max_length=10**12),
        "has a model_max_length of",
    ),
    "index names a pickle": (pickled_index, "weights as safetensors beside their index"),
    "index leads outside": (lambda m: shards(m, name="../../a.safetensors"), "weights as safetensors beside their index"),
    "a shard is missing": (lambda m: shards(m, missing=True), "unet/b.safetensors is missing"),
    "code from the hub": (
        lambda m: edit(m / "text_encoder/config.json", auto_map={"AutoModel": "owner/repo--mine.Mine"}),
        "brings no code (text_encoder/config.json: auto_map",
    ),
    "experts from the hub": (
        lambda m: edit(m / "text_encoder/config.json", _experts_implementation="owner/kernel"),
        "brings no code (text_encoder/config.json: _experts_implementation",
    ),
    "a kernel from the hub": (
        lambda m: edit(m / "text_encoder/config.json", _attn_implementation="owner/kernel"),
        "brings no code (text_encoder/config.json: _attn_implementation",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_model_is_refused_in_one_line_that_names_the_file(name: str, model: Path) -> None:
    damage, message = DAMAGE[name]
    damage(model)
    with pytest.raises(UsageError) as refused:
        read_facts(ModelConfig(str(model)))
    assert str(refused.value).startswith(f"model.path is '{model}'; allowed: ")
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_configuration_of_a_billion_layers_is_refused_at_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_files, "MAX_MODULES", 500)
    edit(model / "text_encoder/config.json", num_hidden_layers=10**9)
    with pytest.raises(UsageError, match=r"text_encoder/config\.json fits CLIPTextModel.*more than 500 layers"):
        read_facts(ModelConfig(str(model)))


@pytest.mark.parametrize("end", [float("nan"), 2.0, "x"])
def test_a_scheduler_without_noise_levels_is_refused(end: float | str, model: Path) -> None:
    edit(model / "scheduler/scheduler_config.json", beta_end=end)
    config = ModelConfig(str(model))
    with pytest.raises(UsageError, match=r"its scheduler_config\.json can't be used"):
        check_model(config, SamplingConfig(), read_facts(config))


def test_weights_in_several_files_are_allowed(model: Path) -> None:
    shards(model)
    assert "unet/a.safetensors" in read_facts(ModelConfig(str(model))).files


def test_variants(model: Path) -> None:
    (model / UNET).rename(model / "unet/diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(UsageError, match=r"diffusion_pytorch_model\.safetensors, which has .*; model\.variant may be fp16"):
        read_facts(ModelConfig(str(model)))
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in read_facts(ModelConfig(str(model), variant="fp16")).files
    with pytest.raises(UsageError, match=r"model\.variant is 'fp16'; allowed: none"):
        read_facts(ModelConfig("shapes-xl", variant="fp16"))


def test_a_single_file_and_a_home_directory(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="not a single file"):
        read_facts(ModelConfig(str(model / UNET)))
    monkeypatch.setenv("HOME", str(model.parent))
    assert read_facts(ModelConfig("~/m")).source == str(model)


def test_the_identity_of_weights_follows_links_and_ignores_what_is_not_loaded(model: Path) -> None:
    config = ModelConfig(str(model))
    first = weights_revision(config, read_facts(config))
    (model / "unet").rename(model.parent / "unet_a")
    (model / "unet").symlink_to(model.parent / "unet_a")
    (model / "README.md").write_text("new")
    (model / "unet/other.bin").write_bytes(b"not loaded")
    assert weights_revision(config, read_facts(config)) == first
    shutil.copytree(model.parent / "unet_a", model.parent / "unet_b")
    reshape(model.parent / "unet_b/diffusion_pytorch_model.safetensors", lambda w: w["conv_in.bias"].mul_(0.9))
    (model / "unet").unlink()
    (model / "unet").symlink_to(model.parent / "unet_b")
    assert weights_revision(config, read_facts(config)) != first


def test_the_digest_of_a_large_file_is_kept_until_its_content_changes(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(facts, "KEPT_BYTES", 1)
    monkeypatch.setattr(facts, "HF_HOME", str(tmp_path / "cache"))
    config = ModelConfig(str(model))
    first = weights_revision(config, read_facts(config))
    assert len(list((tmp_path / "cache/hybridiff").iterdir())) == len(read_facts(config).files)
    assert weights_revision(config, read_facts(config)) == first
    times = (model / UNET).stat()
    data = bytearray((model / UNET).read_bytes())
    data[-1] ^= 1
    (model / UNET).write_bytes(data)  # of the same size and inode
    os.utime(model / UNET, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert weights_revision(config, read_facts(config)) != first


def lora(folder: Path, layers: dict[str, tuple[int, int]], **other: torch.Tensor) -> str:
    weights = {}
    for name, (inputs, outputs) in layers.items():
        weights[f"{name}.lora_A.weight"] = torch.ones(2, inputs)
        weights[f"{name}.lora_B.weight"] = torch.ones(outputs, 2)
    save_file(weights | other, folder / "lora.safetensors")
    return str(folder / "lora.safetensors")


def attention() -> tuple[str, tuple[int, int]]:
    """The name of a layer of the U-Net and its sizes."""
    weights = load_file(Path(read_facts(ModelConfig("shapes-xl")).source) / UNET)
    name = next(name for name in weights if name.endswith("attn1.to_q.weight"))
    outputs, inputs = weights[name].shape
    return f"unet.{name.removesuffix('.weight')}", (inputs, outputs)


def test_lora_weights_that_land_are_allowed(tmp_path: Path) -> None:
    needs("peft", "lora")
    name, sizes = attention()
    assert len(read_facts(ModelConfig("shapes-xl", lora=[lora(tmp_path, {name: sizes})])).lora) == 1


def test_an_autoencoder_with_the_names_of_its_time_is_whole(tmp_path: Path) -> None:
    """As Stable Diffusion 1.5's."""
    diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2).save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    parts = [model_parts.Part("vae", "diffusers", diffusers.AutoencoderKL)]
    files = {f"vae/{name}": tmp_path / name for name in ("config.json", weights.name)}
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}

    def renamed(name: str) -> str:
        return next((name.replace(new, before) for new, before in old.items() if new in name), name)

    state = {renamed(name): weight for name, weight in load_file(weights).items()}
    save_file(state, weights, metadata={"format": "pt"})
    model_files.check_files("m", files, parts)
    save_file({n: w for n, w in state.items() if not n.endswith(".query.bias")}, weights, metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"vae lacks decoder\.mid_block\.attentions\.0\.to_q\.bias"):
        model_files.check_files("m", files, parts)


def in_text_encoder() -> tuple[str, tuple[int, int]]:
    """The name of a layer of the first text encoder and its sizes."""
    weights = load_file(Path(read_facts(ModelConfig("shapes-xl")).source) / "text_encoder/model.safetensors")
    name = next(name for name in weights if name.endswith("q_proj.weight"))
    outputs, inputs = weights[name].shape
    return f"text_encoder.{name.removesuffix('.weight')}", (inputs, outputs)


def test_lora_weights_of_text_encoders_and_their_scales_have_an_effect(tmp_path: Path) -> None:
    needs("peft", "lora")
    path = lora(tmp_path, dict([attention(), in_text_encoder()]))
    outputs = []
    entries: list[Any] = [None, {"path": path}, {"path": path, "scale": 0.25}]
    for entry in entries:
        model = ModelConfig("shapes-xl", lora=[] if entry is None else [entry])
        pipeline = load_pipeline(model, read_facts(model))
        with torch.inference_mode():
            ids = pipeline.tokenizer("a red circle", return_tensors="pt").input_ids
            generator = torch.Generator().manual_seed(0)
            given = {"num_inference_steps": 1, "output_type": "latent", "return_dict": False, "generator": generator}
            outputs.append((pipeline.text_encoder(ids)[0], pipeline("a red circle", **given)[0]))
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert not any(map(torch.equal, outputs[first], outputs[second]))


HALVES = {
    "half a layer": ({"unet.{}.lora_A.weight": (2, 0)}, "it lacks weights: "),
    "nothing but zeros": ({"unet.{}.lora_A.weight": (2, 0), "unet.{}.lora_B.weight": (1, 2)}, "its weights are 0"),
}


@pytest.mark.parametrize("case", HALVES)
def test_lora_weights_that_change_nothing_are_refused(case: str, tmp_path: Path) -> None:
    needs("peft", "lora")
    (name, (inputs, outputs)), (layers, message) = attention(), HALVES[case]
    sizes = {(2, 0): (2, inputs), (1, 2): (outputs, 2)}
    weights = {key.format(name.removeprefix("unet.")): torch.zeros(sizes[size]) for key, size in layers.items()}
    path = lora(tmp_path, {}, **weights)
    with pytest.raises(UsageError, match=message):
        read_facts(ModelConfig("shapes-xl", lora=[path]))


VALUES = {
    "not a number": torch.tensor([[float("nan")]]), "infinite": torch.tensor([[float("inf")]]), "integers": torch.tensor([[1]]),
}  # fmt: skip


@pytest.mark.parametrize("side", ["A", "B"])
@pytest.mark.parametrize("case", VALUES)
def test_lora_weights_that_are_no_finite_floats_are_refused(case: str, side: str, tmp_path: Path) -> None:
    needs("peft", "lora")
    name, (inputs, outputs) = attention()
    shape = {"A": (2, inputs), "B": (outputs, 2)}
    weights = {f"{name}.lora_{one}.weight": torch.ones(shape[one]) for one in "AB"}
    weights[f"{name}.lora_{side}.weight"] = VALUES[case].expand(shape[side]).contiguous()
    with pytest.raises(UsageError, match=rf"{name}\.lora_{side} is .*, or not finite"):
        read_facts(ModelConfig("shapes-xl", lora=[lora(tmp_path, {}, **weights)]))


@pytest.fixture
def of_hub(model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the model owner/name in the cache of the hub, which is not asked."""
    cache = model.parent / "cache"
    folder = cache / "models--owner--name/snapshots" / COMMIT
    folder.parent.mkdir(parents=True)
    model.rename(folder)
    (cache / "models--owner--name/refs").mkdir()
    (cache / "models--owner--name/refs/main").write_text(COMMIT)
    for module in (huggingface_hub.constants, diffusers.pipelines.pipeline_utils, huggingface_hub._snapshot_download.constants):
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
            monkeypatch.setattr(module, name, str(cache), raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return folder


def test_a_model_of_the_hub_is_known_by_its_commit(of_hub: Path) -> None:
    config = ModelConfig("owner/name")
    facts = read_facts(config)
    assert (facts.commit, weights_revision(config, facts)) == (COMMIT, COMMIT)
    assert load_pipeline(config, facts).unet is not None


OF_HUB = ["part of another library", "config is not JSON", "index names a pickle", "code from the hub", "a kernel from the hub"]
LATER = ["weights are cut", "a tensor is missing", "missing weights", "weights are no safetensors"]


@pytest.mark.parametrize("name", OF_HUB)
def test_configurations_of_the_hub_are_checked_before_weights_are_downloaded(name: str, of_hub: Path) -> None:
    damage, message = DAMAGE[name]
    damage(of_hub)
    with pytest.raises(UsageError) as refused:
        read_facts(ModelConfig("owner/name"))
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", LATER)
def test_weights_of_the_hub_are_checked_before_they_are_loaded(name: str, of_hub: Path) -> None:
    damage, message = DAMAGE[name]
    damage(of_hub)
    config = ModelConfig("owner/name")
    facts = read_facts(config)
    with pytest.raises(UsageError) as refused:
        load_pipeline(config, facts)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_revision_is_of_a_model_of_the_hub(model: Path) -> None:
    for path in ("shapes-xl", str(model)):
        with pytest.raises(UsageError, match=r"model\.revision is 'main'; allowed: none, as .* is no model of the hub"):
            read_facts(ModelConfig(path, revision="main"))


@pytest.mark.parametrize("case", ["another model", "one layer too many", "another size", "no lora at all"])
def test_lora_weights_that_do_not_all_land_are_refused(case: str, tmp_path: Path) -> None:
    needs("peft", "lora")
    name, sizes = attention()
    layers, lost = {
        "another model": ({"transformer.blocks.0.attn.to_q": (64, 64)}, "transformer.blocks.0.attn.to_q.lora_A.weight"),
        "one layer too many": ({name: sizes, "unet.nowhere.to_q": (4, 4)}, "unet.nowhere.to_q.lora_A.weight"),
        "another size": ({name: (sizes[0] + 1, sizes[1])}, f"{name}.lora_A.weight"),
        "no lora at all": ({}, ""),
    }[case]
    path = lora(tmp_path, layers)
    if not layers:
        save_file({"foo.weight": torch.zeros(2)}, path)
    with pytest.raises(UsageError) as refused:
        read_facts(ModelConfig("shapes-xl", lora=[path]))
    assert str(refused.value).startswith(f"model.lora has '{path}'; allowed: ") and lost in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has a library seem as it is without an optional package: with a placeholder for a class that needs it."""

    def hidden(library: Any, name: str, package: str) -> None:
        monkeypatch.setattr(library, name, DummyObject(name, (), {"_backends": ["torch", package]}))
        monkeypatch.setattr(schedulers, "find_spec", lambda one: None if one == package else find_spec(one))

    return hidden


def test_schedulers_that_need_missing_packages_are_refused(hide: Callable[..., None], model: Path) -> None:
    hide(diffusers, "LMSDiscreteScheduler", "scipy")
    config = ModelConfig("shapes-xl", scheduler="LMSDiscreteScheduler")
    with pytest.raises(UsageError, match=r"model\.scheduler is 'LMSDiscreteScheduler'; .* needs scipy$"):
        check_model(config, SamplingConfig(), read_facts(config))
    own = json.loads((model / "model_index.json").read_text()) | {"scheduler": ["diffusers", "LMSDiscreteScheduler"]}
    (model / "model_index.json").write_text(json.dumps(own))
    with pytest.raises(UsageError, match=r"model\.path is .*: scheduler, a LMSDiscreteScheduler, needs scipy$"):
        read_facts(ModelConfig(str(model)))


def test_pipelines_and_tokenizers_that_need_missing_packages_are_refused(hide: Callable[..., None], model: Path) -> None:
    index = json.loads((model / "model_index.json").read_text())
    hide(model_parts.LIBRARIES["transformers"], "SiglipTokenizer", "sentencepiece")
    hide(diffusers, "KolorsPipeline", "sentencepiece")
    for change, named in (
        ({"tokenizer": ["transformers", "SiglipTokenizer"]}, "tokenizer, a SiglipTokenizer,"),
        ({"_class_name": "KolorsPipeline"}, "KolorsPipeline"),
    ):
        (model / "model_index.json").write_text(json.dumps(index | change))
        with pytest.raises(UsageError, match=rf"model\.path is .* {named} needs sentencepiece$"):
            read_facts(ModelConfig(str(model)))
