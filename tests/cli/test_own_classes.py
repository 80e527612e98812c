"""Prompt sources and callbacks of one's own: by class path from the working directory, and as objects from Python."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pyarrow.parquet as pq
import pytest

from hybridiff import UsageError, generate
from hybridiff.cli.config import from_mapping
from hybridiff.corpus.shard import Result

MINE = """
from pathlib import Path
import lightning.pytorch as pl

class Colours:
    def __init__(self, colours):
        self.colours = colours

    def identity(self) -> str:
        return " ".join(self.colours)

    def __iter__(self):
        for colour in self.colours:
            yield {"key": colour, "prompt": f"a large {colour} circle"}

class Listed(pl.Callback):
    def __init__(self, path):
        self.path = Path(path)

    def on_result(self, result):
        with self.path.open("a") as file:
            print(result.sample.key, result.image.shape, file=file)
"""
CONFIG = """
model: {path: shapes-xl}
sampling: {steps: 1}
data:
  prompts: {class_path: mine.Colours, init_args: {colours: [red, green, blue]}}
output: {url: corpus, shard_size: 2}
trainer:
  accelerator: cpu
  enable_progress_bar: false
  callbacks: [{class_path: mine.Listed, init_args: {path: seen.txt}}]
"""


def test_they_are_found_in_the_working_directory_and_called(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "job.yaml").write_text(CONFIG)
    program = "import sys; sys.path.remove(''); from hybridiff.cli import entry; entry()"  # as of the installed command
    arguments = [sys.executable, "-c", program, "generate", "--config", "job.yaml"]
    root = str(Path(__file__).parents[2])
    environment = {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    seen = (tmp_path / "seen.txt").read_text().splitlines()
    assert seen == [f"{colour} (64, 64, 3)" for colour in ("red", "green", "blue")]
    table = pq.read_table(tmp_path / "corpus" / "metadata" / "00000.parquet")
    assert table["prompt"].to_pylist() == ["a large red circle", "a large green circle"]


class Rows:
    """Two prompts."""

    def identity(self) -> str:
        return "two prompts"

    def __iter__(self) -> Iterator[Any]:
        yield {"key": "a", "prompt": "a red circle"}
        yield {"key": "b", "prompt": "a blue square"}


class Kept(pl.Callback):
    """The keys of all results."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def on_result(self, result: Result) -> None:
        self.keys.append(result.sample.key)


def sections(tmp_path: Path, prompts: Any) -> dict[str, Any]:
    return {
        "model": {"path": "shapes-xl"},
        "sampling": {"steps": 1},
        "data": {"prompts": prompts},
        "output": {"url": str(tmp_path / "corpus")},
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
    }


def test_objects_are_used_from_python(tmp_path: Path) -> None:
    kept = Kept()
    made = generate(callbacks=[kept], **sections(tmp_path, Rows()))
    assert made.code == 0 and kept.keys == ["a", "b"]
    assert pq.read_table(tmp_path / "corpus" / "metadata" / "00000.parquet")["key"].to_pylist() == ["a", "b"]
    again = generate(**sections(tmp_path, [Rows()]))
    assert again.code == 0 and again.lines[0] == "nothing left:  the only shard is committed"


def test_objects_stay_what_they_are_among_paths_and_in_a_checked_configuration(tmp_path: Path) -> None:
    rows = Rows()
    config = from_mapping(sections(tmp_path, ["a.txt", rows, {"class_path": f"{__name__}.Rows"}]))
    first, second, third = config.data.sources
    assert first == "a.txt" and second is rows and isinstance(third, Rows)
    changed = from_mapping(config, {"sampling": {"steps": 7}})
    assert changed.sampling.steps == 7 and changed.data.sources == config.data.sources
    assert from_mapping(config, {"data": {"prompts": "b.txt"}}).data.sources == ["b.txt"]


@pytest.mark.parametrize("given", [3, Kept, Rows()])
def test_objects_that_are_no_callbacks_are_refused_before_anything_is_written(tmp_path: Path, given: Any) -> None:
    with pytest.raises(UsageError, match="allowed: objects of subclasses of lightning"):
        generate(callbacks=[given], **sections(tmp_path, Rows()))
    assert not (tmp_path / "corpus").exists()


@pytest.mark.parametrize("prompts", [object(), [object()], {"class_path": object()}, ["a.txt", Rows]])
def test_other_objects_are_refused(tmp_path: Path, prompts: Any) -> None:
    with pytest.raises(UsageError, match=r"^(options are not plain values|data\.prompts)") as refused:
        from_mapping(sections(tmp_path, prompts))
    assert "\n" not in str(refused.value)
