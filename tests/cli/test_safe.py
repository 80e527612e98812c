"""No configuration and no prompt table can make the job run code that is not its own."""

import json
import sys
from pathlib import Path

import pytest

from hybridiff import cli
from hybridiff.config import DataConfig, SamplingConfig
from hybridiff.prompts.plan import make_plan


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["hybridiff", "generate", *arguments])
    assert cli.main(sys.argv[1:]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("generate: error: ") and captured.err.count("\n") == 1
    return captured.err


CONFIG = "data:\n  prompts: [{table}]\noutput:\n  url: {corpus}\n"
TAGS = {
    "name": "!!python/name:os.system",
    "module": "!!python/module:os",
    "call": "!!python/object/apply:os.mkdir ['{mark}']",
    "new": "!!python/object/new:os.mkdir ['{mark}']",
    "object": "!!python/object:pathlib.Path {{}}",
    "tuple": "!!python/tuple [1, 2]",
}


@pytest.mark.parametrize("where", ["model:\n  path: {}\n", "extra: {}\n", "trainer:\n  logger: {}\n"])
@pytest.mark.parametrize("tag", TAGS)
def test_yaml_with_tags_of_python_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, tag: str, where: str
) -> None:
    mark, table = tmp_path / "mark", tmp_path / "prompts.txt"
    table.write_text("a red circle\n")
    text = CONFIG.format(table=table, corpus=tmp_path / "corpus") + where.format(TAGS[tag].format(mark=mark))
    (tmp_path / "config.yaml").write_text(text)
    assert "python/" in refused(monkeypatch, capsys, "--config", str(tmp_path / "config.yaml"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "prompts.txt"]


SWITCHES = ["model.trust_remote_code", "model.use_safetensors", "model.custom_pipeline", "trust_remote_code"]


@pytest.mark.parametrize("by_file", [False, True])
@pytest.mark.parametrize("switch", SWITCHES)
def test_there_is_no_option_that_trusts_remote_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, switch: str, by_file: bool
) -> None:
    table, corpus = tmp_path / "prompts.txt", tmp_path / "corpus"
    table.write_text("a red circle\n")
    given = [f"--{switch}=true"]
    if by_file:
        section, _, name = switch.rpartition(".")
        nested = f"{section}:\n  {name}: true\n" if section else f"{name}: true\n"
        (tmp_path / "config.yaml").write_text(nested)
        given = ["--config", str(tmp_path / "config.yaml")]
    message = refused(monkeypatch, capsys, *given, f"--data.prompts=['{table}']", f"--output.url={corpus}")
    assert switch.rpartition(".")[2] in message
    assert not corpus.exists()


def test_columns_named_like_options_stay_columns(tmp_path: Path) -> None:
    columns = {"trust_remote_code": True, "use_safetensors": False, "custom_pipeline": "mine.py", "model.path": "evil/model"}
    table = tmp_path / "a.jsonl"
    table.write_text(json.dumps({"prompt": "p"} | columns))
    (sample,) = make_plan(DataConfig([str(table)]), SamplingConfig(), 1).shard(0).samples
    assert (sample.prompt, sample.columns) == ("p", columns)
