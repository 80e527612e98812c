"""Every command and Python block of README and docs runs, with few steps, or says what it needs.

The blocks of a page run in order in one directory. Which are left out is decided by what the reader sees alone: a title or first
comment that begins with "needs". A block whose title is a file's name is written to that file.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.docs.fork_server import RANK, SOCKET

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r'^(?P<language>\w+)(?: title="(?P<title>[^"]+)")?$')
NEEDS = re.compile(r"(?:# )?needs (?:a )?(?:GPUs?|cluster|network)(?: and (?:a )?(?:GPUs?|cluster|network))*(?::.*)?")
RUN = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": ["python-as-given", "-c"]}
COMMAND = re.compile(r"^(hybridiff|python|torchrun|make|pip) ", re.MULTILINE)
SHOWN = {"text", "yaml", "csv", "dockerfile"}


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        line: line of the page at which it begins.
        language: language of the block.
        title: title that the reader sees.
        body: content.
    """

    line: int
    language: str
    title: str
    body: str

    @property
    def needs(self) -> bool:
        """Whether it says that it needs what a test lacks."""
        return any(NEEDS.fullmatch(text) for text in (self.title, self.body.partition("\n")[0]))


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = []
    for match in FENCE.finditer(text):
        line, info = text.count("\n", 0, match.start()) + 1, TITLE.fullmatch(match["info"].strip())
        assert info, (
            f"{page.name}:{line}: the block has the heading {match['info']!r}; allowed: a language, and a title in quotes"
        )
        found.append(Block(line, info["language"], info["title"] or "", match["body"]))
    return found


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_run_or_are_only_shown_or_say_what_they_need(page: Path) -> None:
    for block in blocks(page):
        where = f"{name(page)}:{block.line}"
        assert block.language in {*RUN, *SHOWN}, f"{where}: a block in {block.language!r} is neither run nor shown"
        if block.title:
            is_file = re.fullmatch(r"[\w-]+\.\w+|Dockerfile", block.title) is not None
            assert block.needs or is_file, f"{where}: the title {block.title!r} is neither a file nor begins with 'needs'"
        if block.language == "text":
            assert not re.search(r"^(hybridiff|python|torchrun|make|pip) ", block.body, re.MULTILINE), (
                f"{where}: a command as text"
            )
        if block.language == "yaml":
            assert isinstance(yaml.safe_load(block.body), dict), where


def test_the_readme_is_short_and_wrapped() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert not [line for line in lines if len(line) > 120 and not line.startswith("|")]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of commands that take few steps and start soon."""
    programs = tmp_path_factory.mktemp("programs")
    for program in ("hybridiff", "python", "pytest", "torchrun", "python-as-given"):
        script = programs / program
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{HERE / "short_commands.py"}" {program} "$@"\n')
        script.chmod(0o700)
    address = programs / "socket"
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PATH": f"{programs}:{os.environ['PATH']}"}
    environment = os.environ | own | {SOCKET: str(address), RANK: str(programs / "python-as-given")}
    server = subprocess.Popen([sys.executable, "-m", "tests.docs.fork_server", str(address)], cwd=ROOT, env=environment)
    while not address.exists():
        assert server.poll() is None
        time.sleep(0.1)
    yield environment
    server.kill()
    server.wait()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", [page for page in PAGES if any(block.language in RUN for block in blocks(page))], ids=name)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path, commands: dict[str, str]) -> None:
    for folder in ("configs", "hybridiff", "jobs", "slurm", "tests"):  # a directory that looks like a checkout
        (tmp_path / folder).symlink_to(ROOT / folder)
    environment = commands | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    for block in blocks(page):
        if block.needs:
            continue
        if block.title:
            (tmp_path / block.title).write_text(block.body)
        if block.language in RUN and not (block.title and block.language == "bash"):
            command = [*RUN[block.language], block.body]
            if block.title:  # as its own file, so that its main part runs only where a later block starts it
                command = [*RUN["python"], f"import runpy; runpy.run_path({block.title!r})"]
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1100)
            shown = f"{name(page)}:{block.line} ended with {done.returncode}\n{block.body}\n{done.stdout}\n{done.stderr}"
            assert done.returncode == 0, shown
