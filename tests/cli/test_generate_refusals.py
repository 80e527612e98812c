"""What bad input gets: exit code 2, one line on what was given and what is allowed, and nothing written."""

import json
import shutil
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest

from hybridiff import cli


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a red circle", "key": "a"}\n{"prompt": "a blue ring", "key": "b"}\n')
    return path


@pytest.fixture
def refusal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, table: Path
) -> Callable[..., str]:
    """Runs the job with some more arguments; its one line of complaint."""

    def run(*arguments: str) -> str:
        given = [
            "--model.path=shapes-xl",
            "--data.prompts",
            json.dumps([str(table)]),
            "--output.url",
            str(tmp_path / "corpus"),
            "--trainer.accelerator",
            "cpu",
        ]
        monkeypatch.setattr("sys.argv", ["hybridiff", "generate", *given, *arguments])
        assert cli.main(sys.argv[1:]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("generate: error: ") and captured.err.count("\n") == 1
        assert not (tmp_path / "corpus").exists()
        return captured.err

    return run


OPTIONS = {
    "--output.image_format=gif": "output.image_format is 'gif'; allowed: png, jpg, webp",
    "--parallel.schedule=fast": "parallel.schedule is 'fast'; allowed: adaptive, full, paper, refresh, async, or the class path",
    "--parallel.group_size=2": "which is 1; torchrun --nproc-per-node 2, or --trainer.devices 2, starts more",
    "--parallel.group_size=3": "parallel.group_size is 3; allowed: 1, 2",
    "--sampling.height=100": "sampling.height is 100; allowed: multiples of 8 for shapes-xl",
    "--sampling.steps=0": "sampling.steps is 0; allowed: 1 to 1000",
    "--model.scheduler=Fast": "model.scheduler is 'Fast'; allowed: ",
    "--model.path=/no/such/model": "model.path is '/no/such/model'; allowed: a bundled name (shapes-xl, shapes-sd3, shapes-flux)",
    "--model.offload=model": "model.offload is 'model'; allowed: none on cpu, whose memory is main memory",
    "--model.offload=disk": "model.offload is 'disk'; allowed: none, model, group",
    "--model.attention=_native_math": "model.attention is '_native_math'; allowed: native; Diffusers has no other attention for",
    "--model.quantization.quant_backend=torchao": "model.quantization.quant_backend is 'torchao'; allowed: backends whose",
    "--model.dtype=int8": "model.dtype is 'int8'; allowed: auto, float32, bfloat16, float16",
    "--data.prompt_column=caption": "caption",
    "--data.prompts=/no/such/table.csv": "/no/such/table.csv",
    "--data.lease_s=0": "data.lease_s is 0.0; allowed: 1 to 1200 seconds",
    "--output.sidecar=xml": "output.sidecar is 'xml'; allowed: json, none",
    "--output.shard_bytes=0": "output.shard_bytes is 0; allowed: 1 to 1099511627776 bytes",
    "--output.shard_bytes=10MB": "generate: error: output.shard_bytes is '10MB'; allowed: a number of bytes\n",
    "--trainer.accelerator=gpu": "No supported gpu backend found",
    "--trainer.profiler=all": "trainer.profiler is 'all'; allowed: simple, advanced, pytorch",
    "--trainer.callbacks=no_such.Callback": "trainer.callbacks is 'no_such.Callback', which can't be made: No module named",
    "--output.shard_size=many": "generate: error: output.shard_size is 'many'; allowed: a whole number\n",
    "--output.quality=101": "output.quality is 101; allowed: 1 to 100 with output.image_format png",
    "--output.columns=[nosuch]": "output.columns is 'nosuch'; allowed: none (columns of data.prompts), or nothing for all",
    "--output.url=memory://corpus": "output.url is 'memory://corpus'; allowed: a directory or an fsspec url that lasts",
    "--output.url=/proc/corpus": "output.url is /proc/corpus",
    "--output.url=nowhere://corpus": "nowhere",
    "--sampling.stepz=3": "there is no option 'sampling.stepz'; did you mean sampling.steps?",
    "--sampling.steps=many": "sampling.steps is 'many'; allowed: a whole number",
    "--sampling.max_sequence_length=8": "StableDiffusionXLPipeline has no such option",
    "--model.lora=['x']": "model.lora is ['x']; allowed: none, as peft is not installed",
    "--trainer.limit_predict_batches=0.5": "trainer.limit_predict_batches is '0.5'; allowed: a whole number",
    "--trainer.devices=-2": "trainer.devices is",
    "--trainer.devices=[0,0]": "trainer.accelerator is ",
    "--trainer.accelerator=tpu": "trainer.accelerator is 'tpu' and ",
    "--model.path=~nobody-of-this-name/m": "model.path is '~nobody-of-this-name/m'; allowed: a bundled name",
    "--config=/no/such/config.yaml": "/no/such/config.yaml",
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_are_refused(option: str, monkeypatch: pytest.MonkeyPatch, refusal: Callable[..., str]) -> None:
    monkeypatch.setattr("hybridiff.models.lora.is_peft_available", lambda: False)
    assert OPTIONS[option] in refusal(option)


AT_ITS_START = (
    "--trainer.accelerator=gpu",
    "--trainer.devices=-2",
    "--parallel.group_size=2",
    "--model.offload=model",
    "--output.url=/proc/corpus",
    "--output.columns=[nosuch]",
    "--trainer.callbacks=no_such.Callback",
    "--data.prompts=/no/such/table.csv",
)


@pytest.mark.parametrize("option", AT_ITS_START)
def test_a_dry_run_refuses_what_the_run_would(option: str, refusal: Callable[..., str]) -> None:
    assert OPTIONS[option] in refusal(option, "--dry_run")


UNFIT = {
    "StableDiffusionXLImg2ImgPipeline": "takes an image",
    "StableDiffusionXLInpaintPipeline": "takes an image",
    "StableVideoDiffusionPipeline": "generates video",
    "WanPipeline": "generates video",
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_dry_run_refuses_pipelines_that_the_job_cannot_run(name: str, tmp_path: Path, refusal: Callable[..., str]) -> None:
    shutil.copytree(Path(str(files("hybridiff") / "assets" / "shapes-xl")), tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    (tmp_path / "model" / "model_index.json").write_text(json.dumps(index | {"_class_name": name}))
    said = refusal(f"--model.path={tmp_path / 'model'}", "--dry_run")
    assert f"a {name}, which {UNFIT[name]}; allowed: pipelines that generate images from prompts alone" in said


CONTRADICTIONS = {
    (
        "--model.path=shapes-sd3",
        "--model.compile=true",
    ): "model.compile is True; allowed: false; Diffusers names no blocks of SD3",
    ("--model.offload=group", "--model.compile=true"): "model.compile is True; allowed: false with model.offload group",
    ("--dry_run", "--only=a"): "dry_run is given with only; allowed: one of them",
    ("--dry_run", "--retry_failed"): "retry_failed is given with dry_run, which writes nothing; allowed: one of them",
    ("--only=a", "--retry_failed"): "retry_failed is given with only, which writes nothing; allowed: one of them",
}


@pytest.mark.parametrize("options", CONTRADICTIONS, ids=" ".join)
def test_options_that_contradict_each_other_are_refused(options: tuple[str, ...], refusal: Callable[..., str]) -> None:
    assert CONTRADICTIONS[options] in refusal(*options)


def test_a_shard_has_a_number_of_images_or_of_bytes(refusal: Callable[..., str]) -> None:
    said = refusal("--output.shard_size=5", "--output.shard_bytes=1000")
    assert "output.shard_size is 5; allowed: none next to output.shard_bytes, which is 1000" in said


TABLES = {
    "": "no prompts",
    '{"prompt": null}': "prompts.jsonl",
    '{"prompt": 7}': "7",
    '{"prompt": "x", "key": "../x"}': "../x",
    '{"prompt": "x", "key": "/x"}': "/x",
    '{"prompt": "x", "key": "a\\u0000b"}': "a\\x00b",
    json.dumps({"prompt": "x", "key": "k" * 201}): "200 bytes",
    '{"prompt": "x", "key": "a"}\n{"prompt": "y", "key": "a"}': "'a'",
    "not json": "line 1",
}


@pytest.mark.parametrize("text", TABLES)
def test_tables_are_refused(text: str, table: Path, refusal: Callable[..., str]) -> None:
    table.write_text(text)
    message = refusal()
    assert TABLES[text] in message and str(table) in message


@pytest.mark.parametrize("options", [[], ["--dry_run"], ["--retry_failed"]])
def test_a_directory_that_is_no_corpus_is_refused_and_left_as_it_is(
    options: list[str], tmp_path: Path, refusal: Callable[..., str]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "README.md").write_text("mine")
    said = refusal(f"--output.url={home}", *options)
    assert said.startswith(f"generate: error: output.url {home} holds README.md and no corpus (neither run.json nor a marker")
    assert [path.name for path in home.iterdir()] == ["README.md"] and (home / "README.md").read_text() == "mine"


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, table: Path
) -> None:
    given = [
        "--model.path=shapes-xl",
        f"--data.prompts=['{table}']",
        f"--output.url={tmp_path / 'corpus'}",
        "--output.shard_size=1",
        "--dry_run",
    ]
    monkeypatch.setattr("sys.argv", ["hybridiff", "generate", *given])
    assert cli.main(sys.argv[1:]) == 0
    printed = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    assert printed["rows"].split()[0] == "2"
    assert printed["shards"].split()[0] == "2"
    assert printed["groups"].split()[0] == "1"
    assert printed["done"].split() == ["0", "of", "2", "shards"]
    assert list(tmp_path.iterdir()) == [table]


@pytest.mark.parametrize(("shard_bytes", "shards"), [(1, "2"), (64 * 64 * 3, "1"), (10**9, "1")])
def test_bytes_of_a_shard_become_a_number_of_images_before_any_is_generated(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    table: Path,
    shard_bytes: int,
    shards: str,
) -> None:
    given = [
        "--model.path=shapes-xl",
        f"--data.prompts=['{table}']",
        f"--output.url={tmp_path / 'corpus'}",
        f"--output.shard_bytes={shard_bytes}",
    ]
    monkeypatch.setattr("sys.argv", ["hybridiff", "generate", *given, "--dry_run"])
    assert cli.main(sys.argv[1:]) == 0
    printed = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    assert printed["shards"].split()[0] == shards
