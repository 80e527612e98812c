"""How options are read: from the command line, from YAML and from mappings; what is refused, and in which words."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from hybridiff.cli import main
from hybridiff.cli.config import from_mapping, nearest, option_types, parse
from hybridiff.cli.help_in_words import in_words
from hybridiff.config.model import LoraOption
from hybridiff.config.yaml_text import MAX_DEPTH, MAX_NODES
from hybridiff.errors import UsageError

GIVEN = ["--model.path=m", "--data.prompts=p.txt", "--output.url=out"]


@pytest.mark.parametrize(
    "text", ["#nsfw, blurry", "&amp", "~", "null", "*x", "[a, b]", "{a: b}", "yes", "1e3", "a: b", "'q'", ""]
)
@pytest.mark.parametrize("apart", [False, True])
def test_text_on_the_command_line_is_text(text: str, apart: bool) -> None:
    given = ["--sampling.negative_prompt", text] if apart else [f"--sampling.negative_prompt={text}"]
    assert parse([*GIVEN, *given, "--only", "null"]).config.sampling.negative_prompt == text
    assert parse([*GIVEN, f"--only={text or 'k'}"]).only == (text or "k")


LORAS: dict[str, list[LoraOption]] = {
    "a.safetensors": [LoraOption("a.safetensors")],
    '["a", "b"]': [LoraOption("a"), LoraOption("b")],
    "{path: a, scale: 0.5}": [LoraOption("a", 0.5)],
    "[{path: a, scale: -2}, b]": [LoraOption("a", -2.0), LoraOption("b")],
}


@pytest.mark.parametrize("given", LORAS)
def test_lora_weights_are_paths_with_scales_and_one_alone_is_a_list_of_one(given: str) -> None:
    config = parse([*GIVEN, f"--model.lora={given}"]).config
    assert (config.model.lora, config.data.prompts) == (LORAS[given], ["p.txt"])
    assert from_mapping(config).model == config.model


def test_options_of_the_scheduler_are_names_with_values() -> None:
    given = ["--model.scheduler_options.use_karras_sigmas=true", "--model.scheduler_options.shift", "2.5"]
    assert parse([*GIVEN, *given]).config.model.scheduler_options == {"use_karras_sigmas": True, "shift": 2.5}
    given = ["--model.scheduler_options={timestep_spacing: trailing}"]
    assert parse([*GIVEN, *given]).config.model.scheduler_options == {"timestep_spacing": "trailing"}


def config_file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return f"--config={path}"


def test_null_in_a_file_is_none_and_a_file_without_options_changes_nothing(tmp_path: Path) -> None:
    config = parse([config_file(tmp_path, "sampling: {negative_prompt: null, height: 64}"), *GIVEN]).config
    assert (config.sampling.negative_prompt, config.sampling.height) == (None, 64)
    assert parse([config_file(tmp_path, "# nothing yet\n"), *GIVEN]).config == parse(GIVEN).config


def multiplied() -> str:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]" for i in range(9)]
    return "\n".join(lines)


BAD_YAML = {
    "a reference to itself": ("x: &x [*x]", r"line 1: \*x refers to what it is a part of"),
    "multiplied by anchors": (multiplied(), f"more than {MAX_NODES} values, aliases unfolded"),
    "too deep": ("x: " + "[" * 5000 + "]" * 5000, f"more than {MAX_DEPTH} levels"),
    "too large": ("x: " + "y" * 1_000_001, "has more than 1000000 bytes; allowed: at most that many"),
    "a number of 5000 digits": ("sampling: {steps: " + "9" * 5000 + "}", "can't be read: Exceeds the limit"),
    "a date that is none": ("sampling: {negative_prompt: 2020-99-99}", "can't be read: month must be in 1..12"),
    "a section twice": ("model: {path: a}\ndata: {prompts: p}\nmodel: {path: b}", "line 3: 'model' is given twice"),
    "an option twice": ("sampling:\n  steps: 3\n  steps: 4", "line 3: 'steps' is given twice"),
    "an unknown option": ("sampling: {stepz: 3}", "no option 'sampling.stepz'; did you mean sampling.steps"),
    "an unknown section": ("sampler: {steps: 3}", "no option 'sampler"),
    "a section that is a value": ("model: shapes-xl", "model is 'shapes-xl'; allowed: options of the section model"),
    "a list": ("[model, data]", "allowed: sections such as model and data"),
    "broken": ("model: {path: m", "mine.yaml is not YAML: "),
    "an alias of nothing": ("x: *y", "mine.yaml"),
}


@pytest.mark.parametrize("name", BAD_YAML)
def test_yaml_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    text, message = BAD_YAML[name]
    with pytest.raises(UsageError, match=message) as refused:
        parse([config_file(tmp_path, text), *GIVEN])
    assert "\n" not in str(refused.value)


BLANKS = {
    "model: {'path ': m}": "there is no option 'model.path '; allowed: model.path",
    "'model ': {path: m}": "there is no option 'model '; allowed: ",
    "sampling: {guidance scale: 3}": "there is no option 'sampling.guidance scale'; allowed: sampling.guidance_scale",
    "sampling.steps: 3\nsampling: {steps: 4}": "'sampling.steps' is given twice; allowed: once",
}


@pytest.mark.parametrize("text", BLANKS)
def test_names_with_blanks_and_names_given_in_two_ways_are_refused(text: str, tmp_path: Path) -> None:
    path = config_file(tmp_path, text)
    with pytest.raises(UsageError) as refused:
        parse([path, *GIVEN])
    assert str(refused.value).startswith(f"{path.removeprefix('--').replace('=', ' ')}: {BLANKS[text]}")


@pytest.mark.parametrize("name", ["a: b.csv", "- a.csv", "{a}.csv", "[a].csv", "a::b?c#d.csv", "~", "null", "%20.csv", " a.csv"])
def test_a_path_on_the_command_line_is_a_path(name: str) -> None:
    found = parse([*GIVEN, f"--data.prompts={name}", f"--output.url={name}"]).config
    assert (found.data.prompts, found.output.url) == ([name], name)
    if name[0] not in "{[":  # which are lists and mappings of LoRA weights
        assert parse([*GIVEN, f"--model.lora={name}"]).config.model.lora == [LoraOption(name)]


def test_a_list_in_a_later_file_wins(tmp_path: Path) -> None:
    path = config_file(tmp_path, "data: {prompts: [a.csv, b.csv]}")
    assert parse([*GIVEN, path]).config.data.prompts == ["a.csv", "b.csv"]
    assert parse([path, *GIVEN]).config.data.prompts == ["p.txt"]


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"mine\.yaml can't be read"):
        parse([f"--config={tmp_path / 'mine.yaml'}"])


def test_shared_values_are_allowed(tmp_path: Path) -> None:
    text = "sampling: {height: &size 64, width: *size}"
    assert parse([config_file(tmp_path, text), *GIVEN]).config.sampling.width == 64


NEAR = {
    "sampling.stepz": "sampling.steps",
    "Sampling.Steps": "sampling.steps",
    "sampling.guidance-scale": "sampling.guidance_scale",
    "steps": "sampling.steps",
    "dry-run": "dry_run",
    "outptu.url": "output.url",
    "qqq": None,
}


@pytest.mark.parametrize("given", NEAR)
def test_a_name_that_nearly_matches_is_refused_with_the_one_that_was_meant(given: str) -> None:
    assert nearest(given, list(option_types())) == NEAR[given]
    ending = f"did you mean {NEAR[given]}?" if NEAR[given] else "allowed: those of --help"
    with pytest.raises(UsageError) as refused:
        parse([*GIVEN, f"--{given}=1"])
    assert str(refused.value) == f"there is no option {given!r}; {ending}"


VALUES = {
    "--sampling.steps=many": "sampling.steps is 'many'; allowed: a whole number",
    "--sampling.steps=2.5": "sampling.steps is '2.5'; allowed: a whole number",
    "--sampling.guidance_scale=nan": "sampling.guidance_scale is 'nan'; allowed: a number",
    "--parallel.across_nodes=perhaps": "parallel.across_nodes is 'perhaps'; allowed: true or false",
    "--trainer.deterministic=no_way": "trainer.deterministic is 'no_way'; allowed: true or false or warn",
    f"--trainer.default_root_dir={__file__}": f"trainer.default_root_dir is {__file__!r}; allowed: a directory, there or new",
    "--trainer.default_root_dir=": "trainer.default_root_dir is ''; allowed: a directory, there or new, for logs and profiles",
    "--trainer.num_nodes=0": "trainer.num_nodes is 0; allowed: 1 or more",
    "--trainer.logger={class: a}": "trainer.logger is {'class': 'a'}; allowed: a class path, or class_path with init_args",
    "--model.scheduler=": "model.scheduler is ''; allowed: a name, or leave the option out",
    "--model.attention=": "model.attention is ''; allowed: a name, or leave the option out",
    "--model.lora={path: a, scale: null}": "model.lora scale is None; allowed: a number that is not 0",
    "--model.lora=[{path: a, scale: 0}]": "model.lora scale is 0.0; allowed: a number that is not 0",
    "--model.lora=[{path: a, scle: 1}]": "model.lora is {'path': 'a', 'scle': 1.0}; allowed: a path, {path: ..., scale: ...}",
    "--model.lora=[3]": "model.lora is '[3]'; allowed: a path, {path: ..., scale: ...}, or a list of them",
    "--model.scheduler_options=3": "model.scheduler_options is 3; allowed: names with values",
    "--sampling.guidance_scale=inf": "sampling.guidance_scale is 'inf'; allowed: a number",
    "--sampling.guidance_scale=1e9": "sampling.guidance_scale is 1000000000.0; allowed: 0 to 1000",
    "--sampling.steps=1e23": "sampling.steps is '1e+23'; allowed: a whole number",
    "--sampling.steps=100000000000000000000000": "sampling.steps is 100000000000000000000000; allowed: 1 to 1000",
    "--sampling.height=8000000": "sampling.height is 8000000; allowed: 8 to 16384 pixels",
    "--sampling.images_per_prompt=10000000000": "sampling.images_per_prompt is 10000000000; allowed: 1 to 1000000",
    "--sampling.max_sequence_length=10000000": "sampling.max_sequence_length is 10000000; allowed: 1 to 4096 tokens",
    "--data.batch_size=1000000000": "data.batch_size is 1000000000; allowed: 1 to 4096",
    "--output.shard_size=1000000000000": "output.shard_size is 1000000000000; allowed: 1 to 1000000",
    "--output.grace_s=1e300": "output.grace_s is 1e+300; allowed: 0 to 86400 seconds",
    "--parallel.timeout_s=1e300": "parallel.timeout_s is 1e+300; allowed: more than 0, to 86400 seconds",
    "--sampling.steps=": "sampling.steps is ''; allowed: a whole number",
    "--output.shard_size=1e99": "output.shard_size is '1e99'; allowed: a whole number",
    "--output.columns=": "output.columns is ''; allowed: a list of text",
    '--sampling.options={"a": 1, "a": 2}': "sampling.options, line 1: 'a' is given twice; allowed: once",
    "--model.scheduler_options={shift: 2, shift: 3}": "model.scheduler_options, line 1: 'shift' is given twice; allowed: once",
    "--model.lora=[{path: a, scale: 1, scale: 2}]": "model.lora, line 1: 'scale' is given twice; allowed: once",
    "--sampling.options=" + "[" * 5000: "sampling.options, line 1: more than 40 levels; allowed: at most 40",
    "--model.path=": "model.path is not given; allowed: a bundled name (shapes-xl, shapes-sd3, shapes-flux), a local directory",
    "--data.prompts": "data.prompts has no value; allowed: class_path with init_args or text, or a list",
    "--output.shard_bytes": "output.shard_bytes has no value; allowed: a number of bytes",
    "--parallel.schedule.tolerance": "parallel.schedule.tolerance has no value; allowed: --parallel.schedule.tolerance=VALUE",
    "--trainer.logger.name": "trainer.logger.name has no value; allowed: --trainer.logger.name=VALUE",
    "--model": "--model is a section of options; allowed: one of them, such as --model.path",
    "--output=corpus": "--output is a section of options; allowed: one of them, such as --output.url",
    "--parallel.schedule.help": "parallel.schedule.help has no value; allowed: adaptive, full, paper, refresh, async, or ",
    "--parallel.schedule.help=nix": "parallel.schedule is 'nix'; allowed: adaptive, full, paper, ",
    "--dry_run=maybe": "dry_run is 'maybe'; allowed: --dry_run, without a value",
    "--config=dmeo": "config dmeo can't be read (No such file or directory); allowed: a YAML file, or one of demo, ",
}


@pytest.mark.parametrize("option", VALUES)
def test_values_are_refused_in_words(option: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse([*GIVEN, option])
    assert str(refused.value).startswith(VALUES[option])


def test_rescaling_is_refused_without_guidance() -> None:
    option = "--sampling.guidance_rescale=0.5"
    with pytest.raises(UsageError, match=r"allowed: none with sampling\.guidance_scale at 1 or below, where it changes nothing"):
        parse([*GIVEN, "--sampling.guidance_scale=1", option])
    assert parse([*GIVEN, option]).config.sampling.guidance_scale == 5.0


def test_types_in_words() -> None:
    assert in_words(int | None) == "a whole number"
    assert in_words(list[str] | str) == "text, or a list" and in_words(list[str] | None) == "a list of text"
    assert in_words(Literal["png", "jpg"] | None) == "png, jpg"
    assert in_words(dict[str, Any]) == "names with values"
    assert in_words(dict[str, Any] | str) == "class_path with init_args or text"


def test_a_mapping_holds_what_a_file_holds() -> None:
    options: dict[str, Any] = {"model": {"path": "m"}, "data": {"prompts": ["a.txt"]}, "output": {"url": "out"}}
    assert from_mapping(options) == parse([f"--config={json.dumps(options)}"]).config
    with pytest.raises(UsageError, match=r"no option 'sampling\.stepz'; did you mean sampling\.steps"):
        from_mapping(options | {"sampling": {"stepz": 1}})
    with pytest.raises(UsageError, match="not plain values"):
        from_mapping(options | {"sampling": {"steps": object()}})


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--version"], 0), (["generate"], 2), (["generate", "--help"], 0), (["generate", *GIVEN, "--sampling.steps=x"], 2)],
)
def test_help_and_mistakes_load_no_library_that_takes_seconds(arguments: list[str], code: int) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "hybridiff", *arguments], capture_output=True, text=True, timeout=60
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert done.returncode == code, done.stderr
    assert not loaded & {"torch", "lightning", "diffusers", "transformers", "pyarrow", "numpy"}
    assert after.ru_utime - before.ru_utime < 2.0  # CPU seconds, not those of the clock


def test_help_is_grouped_and_in_words(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hybridiff", "generate", "--help"]
    environment = os.environ | {"COLUMNS": "120"}
    text = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment).stdout
    assert text.startswith("usage: hybridiff generate [--config NAME|FILE]")
    for section in ("model", "sampling", "parallel", "data", "output", "trainer"):
        assert f"\n{section}: " in text
    for choices in ("--output.image_format {png,jpg,webp}", "--parallel.group_size {1,2,4}", "--model.dtype {auto,float32,"):
        assert choices in text
    for notation in ("Union[", "Literal", "<class", "known subclasses", "CONFIG  Path to a configuration file", "| null"):
        assert notation not in text


@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_special_files_are_no_configurations(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "fifo.yaml")
    for path in (tmp_path / "fifo.yaml", Path("/dev/zero")):
        options = [f"--config={path}"] if command == "generate" else [str(tmp_path), f"--extractors={path}"]
        assert main([command, *options]) == 2
        assert "can't be read (not a regular file)" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["~", "null", "#x", "2020-99-99", "a: b"])
def test_arguments_of_a_logger_are_the_text_that_was_given(text: str) -> None:
    given = ["--trainer.logger=CSVLogger", f"--trainer.logger.name={text}", "--trainer.logger.version=3"]
    logger = parse([*GIVEN, *given]).config.trainer.logger
    assert logger == {"class_path": "CSVLogger", "init_args": {"name": text, "version": 3}}


def test_help_of_a_schedule_is_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--parallel.schedule.help", "paper"])
    text = " ".join(capsys.readouterr().out.split())
    assert "g, slope per step below which the window opens. (a number)" in text
    assert "Half steps in the window. (a whole number; default: 5)" in text and "usage:" not in text
