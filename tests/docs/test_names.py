"""What documents and code name exists: files, options, public names; the tables of the reference come from the code."""

import importlib.util
import re
from dataclasses import fields
from pathlib import Path

import pytest

import hybridiff
from hybridiff.cli.config import option_types
from hybridiff.columns import COLUMNS
from hybridiff.schedule import SCHEDULES
from tests.docs.test_blocks import PAGES, ROOT, name

PATH = re.compile(r"(?<!output )(?<![\w/.{}:-])(?:configs|docs|hybridiff|jobs|slurm|tests)/[\w./-]*\w(?![\w*{/-])")
FILE = re.compile(r"(?<![\w/.*{}<>\"'-])[\w-]+\.(?:py|sh|sbatch|toml)\b(?![\w*(\[\"'])")
OPTION = re.compile(r"(?<![\w./-])(?:--)?((?:model|sampling|parallel|data|output|trainer)\.[a-z_]+(?:\.[a-z_]+)*)")
OPEN = ("model.scheduler_options.", "sampling.options.", "trainer.logger.")  # names below are those of others
FOLDERS = ("hybridiff", "jobs", "configs", "slurm", "docs", ".ci")
CODE = sorted(
    path
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".yaml", ".sh", ".sbatch", ".toml") or path.name == "run"
)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_paths_of_the_repository_exist(page: Path) -> None:
    assert not [path for path in PATH.findall(page.read_text()) if not (ROOT / path).exists()]


def test_files_that_code_names_exist() -> None:
    known = {path.name for path in [*CODE, *ROOT.glob("*.toml"), *(ROOT / "tests").rglob("*.py")]}
    missing = []
    for file in [*CODE, ROOT / "Makefile", ROOT / "pyproject.toml"]:
        text = file.read_text()
        missing += [f"{name(file)}: {path}" for path in PATH.findall(text) if not (ROOT / path).exists()]
        missing += [f"{name(file)}: {one}" for one in FILE.findall(text) if one not in known]
    assert not missing and len(CODE) > 100


def test_the_layout_of_the_code_lists_all_rooms() -> None:
    layout = (ROOT / "CONTRIBUTING.md").read_text()
    rooms = [path.parent.name for path in (ROOT / "hybridiff").glob("*/__init__.py")]
    assert rooms and not [room for room in rooms if f"\n  {room}/ " not in layout]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_options_that_a_page_names_exist(page: Path) -> None:
    of_schedules = {f"parallel.schedule.{field.name}" for kind in SCHEDULES.values() for field in fields(kind)}
    known = {*option_types(), *of_schedules, "parallel.schedule.help", "parallel.schedule.warm_up"}
    assert not [option for option in OPTION.findall(page.read_text()) if option not in known and not option.startswith(OPEN)]


def test_the_reference_of_the_library_has_all_public_names() -> None:
    text = (ROOT / "docs/reference/api.md").read_text()
    assert not [public for public in hybridiff.__all__ if not re.search(rf"^::: [\w.]+\.{public}$", text, re.MULTILINE)]


PROMISED = ["Adaptive", "Async", "Full", "Paper", "PeerLost", "Refresh", "Schedule", "StepKind", "Trace", "UsageError"]


@pytest.mark.parametrize("public", [*PROMISED, "generate", "parallelize"])
def test_public_names_are_imported_from_the_package(public: str) -> None:
    assert public in hybridiff.__all__ and getattr(hybridiff, public).__name__ == public


def test_tables_of_the_reference_come_from_the_code() -> None:
    found = importlib.util.spec_from_file_location("options_hook", ROOT / "docs/options_hook.py")
    assert found is not None and found.loader is not None
    hook = importlib.util.module_from_spec(found)
    found.loader.exec_module(hook)
    columns, options = (hook.on_page_markdown((ROOT / f"docs/reference/{page}.md").read_text()) for page in ("corpus", "options"))
    assert "<!--" not in columns + options
    assert not [column.name for column in COLUMNS if f"| `{column.name}` |" not in columns]
    assert not [option for option in option_types() if "." in option and f"| `{option}` |" not in options]
    assert not [schedule for schedule in SCHEDULES if f"### `{schedule}`" not in options]
