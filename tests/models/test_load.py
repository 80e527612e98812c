"""Models and LoRA weights come as safetensors and without code, or not at all."""

import logging
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest

from hybridiff.config import ModelConfig
from hybridiff.errors import UsageError
from hybridiff.models.facts import read_facts, weights_revision
from hybridiff.models.load import load_pipeline
from hybridiff.models.lora import Lora, find_lora
from tests.optional import needs

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What only code of the model's would make."""
    return tmp_path / "mark"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A bundled model in a directory of its own."""
    source = Path(read_facts(ModelConfig(path="shapes-xl")).source)
    for file in source.rglob("*"):
        if file.is_file():
            copy = tmp_path / "model" / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(file)
    return tmp_path / "model"


def refusal(model: ModelConfig) -> str:
    with pytest.raises(UsageError) as caught:
        read_facts(model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.unlink()
    path.write_text(text.replace(before, after))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder_2"])
def test_a_model_with_pickles_alone_is_refused_before_it_is_loaded(directory: Path, mark: Path, part: str) -> None:
    for weights in (directory / part).glob("*.safetensors"):
        weights.with_suffix(".bin").write_bytes(pickle.dumps(Payload(mark)))
        weights.unlink()
    (name,) = [path.name for path in (directory / part).glob("*.bin")]
    expected = f"model.path is '{directory}'; allowed: weights as safetensors ({part} has only {name})"
    assert refusal(ModelConfig(path=str(directory))) == expected
    assert not mark.exists()


def test_pickles_beside_safetensors_are_not_touched(directory: Path, mark: Path) -> None:
    for weights in directory.rglob("*.safetensors"):
        weights.with_suffix(".bin").write_bytes(pickle.dumps(Payload(mark)))
    model = ModelConfig(path=str(directory))
    load_pipeline(model, read_facts(model))
    assert not mark.exists()


def test_a_model_with_a_part_of_its_own_code_is_refused(directory: Path, mark: Path) -> None:
    (directory / "unet" / "mine.py").write_text(f"open({str(mark)!r}, 'w')\nclass Mine: pass\n")
    rewrite(directory / "model_index.json", '"diffusers",\n    "UNet2DConditionModel"', '"mine",\n    "Mine"')
    expected = "; allowed: parts of diffusers and transformers, not code of its own (model_index.json: unet is ['mine', 'Mine'])"
    assert refusal(ModelConfig(path=str(directory))) == f"model.path is '{directory}'{expected}"
    assert not mark.exists()


def test_a_model_with_a_pipeline_of_its_own_code_is_refused(directory: Path, mark: Path) -> None:
    (directory / "pipeline.py").write_text(f"open({str(mark)!r}, 'w')\nclass Mine: pass\n")
    rewrite(directory / "model_index.json", '"StableDiffusionXLPipeline"', '["pipeline", "Mine"]')
    assert refusal(ModelConfig(path=str(directory))).endswith(
        "not code of its own (model_index.json: _class_name is ['pipeline', 'Mine'])"
    )
    assert not mark.exists()


def test_pipelines_are_loaded_from_safetensors_and_trust_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    load = diffusers.StableDiffusionXLPipeline.from_pretrained

    def recorded(source: str, **options: Any) -> Any:
        given.update(options)
        return load(source, **options)

    monkeypatch.setattr(diffusers.StableDiffusionXLPipeline, "from_pretrained", recorded)
    model = ModelConfig(path="shapes-xl")
    load_pipeline(model, read_facts(model))
    assert given["use_safetensors"] is True and not given.get("trust_remote_code") and "custom_pipeline" not in given


@pytest.mark.parametrize("name", ["shapes-xl", "shapes-sd3"])
def test_what_is_cut_off_of_prompts_is_not_logged(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelConfig(path=name)
    pipeline = load_pipeline(model, read_facts(model))
    logged: list[str] = []
    library, handler = diffusers.utils.logging.get_logger(), logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: logged.append(record.getMessage()))
    library.addHandler(handler)
    try:
        pipeline("a red circle " * 200, num_inference_steps=1, output_type="latent")
        diffusers.utils.logging.get_logger(type(pipeline).__module__).warning("anything else")
    finally:
        library.removeHandler(handler)
    assert logged == ["anything else"]


PICKLED = ["a.bin", "a.pt", "a.ckpt", "a", "pytorch_lora_weights.bin"]


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", PICKLED)
def test_lora_weights_that_are_pickles_are_refused(
    tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch, name: str, inside: bool
) -> None:
    monkeypatch.setattr("hybridiff.models.lora.is_peft_available", lambda: True)
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / name).write_bytes(pickle.dumps(Payload(mark)))
    given = str(folder if inside else folder / name)
    message = refusal(ModelConfig("shapes-xl", lora=[given]))
    assert message.startswith(f"model.lora has '{given}'; allowed: a .safetensors file, ")
    assert message.endswith("(it holds 0 .safetensors files)" if inside else "(it is another file)")
    assert not mark.exists()


def test_a_pickle_that_is_called_safetensors_is_not_unpickled(tmp_path: Path, mark: Path) -> None:
    weights = tmp_path / "a.safetensors"
    weights.write_bytes(pickle.dumps(Payload(mark)))
    model = ModelConfig(path="shapes-xl")
    facts = replace(read_facts(model), lora=(Lora(weights, None),))
    with pytest.raises(Exception, match=r"(?i)header"):
        load_pipeline(model, facts)
    assert not mark.exists()


def found(monkeypatch: pytest.MonkeyPatch, *given: str | Path) -> tuple[Lora, ...]:
    monkeypatch.setattr("hybridiff.models.lora.is_peft_available", lambda: True)
    return find_lora(ModelConfig("shapes-xl", lora=[str(one) for one in given]))


def test_the_usual_name_goes_before_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tmp_path / "a.safetensors"
    first.touch()
    assert found(monkeypatch, first, tmp_path) == (Lora(first, None), Lora(first, None))
    usual = tmp_path / "pytorch_lora_weights.safetensors"
    (tmp_path / "b.safetensors").touch()
    with pytest.raises(UsageError, match=r"\(it holds 2 \.safetensors files\)$"):
        found(monkeypatch, tmp_path)
    usual.touch()
    assert found(monkeypatch, tmp_path) == (Lora(usual, None),)


def test_lora_weights_of_the_hub_are_in_the_revision_with_their_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repository: str, file: str) -> str:
        path = tmp_path / repository.replace("/", "--") / "snapshots" / COMMIT / file
        path.parent.mkdir(parents=True)
        path.touch()
        return str(path)

    monkeypatch.setattr("hybridiff.models.hub_files.hf_hub_download", download)
    lora = found(monkeypatch, "owner/usual", "owner/other/deep/a.safetensors")
    pins = [f"owner/usual@{COMMIT}/pytorch_lora_weights.safetensors", f"owner/other@{COMMIT}/deep/a.safetensors"]
    assert [one.pin for one in lora] == pins
    facts = read_facts(ModelConfig(path="shapes-xl"))
    plain = weights_revision(ModelConfig(path="shapes-xl"), facts)
    with_lora = weights_revision(ModelConfig(path="shapes-xl"), replace(facts, lora=lora))
    assert with_lora == " ".join([plain, *(f"lora:{pin}" for pin in pins)])


@pytest.mark.parametrize("given", ["name", "owner/name/a.bin", "/no/such/file.safetensors"])
def test_what_is_nowhere_is_refused_without_asking_the_hub(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setattr("hybridiff.models.hub_files.hf_hub_download", lambda *_: pytest.fail("asked"))
    with pytest.raises(UsageError, match=r"\(there is no such file\)$"):
        found(monkeypatch, given)


def test_lora_weights_are_applied(tmp_path: Path) -> None:
    peft = needs("peft", "lora")
    plain = ModelConfig(path="shapes-xl")
    pipeline = load_pipeline(plain, read_facts(plain))
    pipeline.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    layers = peft.get_peft_model_state_dict(pipeline.unet)
    diffusers.StableDiffusionXLPipeline.save_lora_weights(tmp_path / "one", unet_lora_layers=layers)
    model = ModelConfig(
        path="shapes-xl", lora=[str(tmp_path / "one"), str(tmp_path / "one" / "pytorch_lora_weights.safetensors")]
    )
    facts = read_facts(model)
    loaded = load_pipeline(model, facts)
    assert loaded.get_active_adapters() == ["lora_0", "lora_1"]
    digests = weights_revision(model, facts).split()[1:]
    assert len(digests) == 2 and digests[0] == digests[1] and digests[0].startswith("lora-sha256:")
