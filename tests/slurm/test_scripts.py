"""The scripts as text: what shellcheck says, and what has to be edited."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "slurm"


def test_shellcheck_has_nothing_to_say() -> None:
    program = shutil.which("shellcheck")
    assert program is not None or not os.environ.get("CI"), "CI installs shellcheck"
    if program is None:
        pytest.skip("shellcheck is not installed: apt-get install shellcheck")
    paths = sorted(path.relative_to(SCRIPTS.parent).as_posix() for path in SCRIPTS.iterdir())
    done = subprocess.run([program, "-x", *paths], cwd=SCRIPTS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("name", "edited"), [("generate", "nodes"), ("array", "array")])
def test_three_lines_are_to_be_edited_and_jobs_come_back(name: str, edited: str) -> None:
    above, _, below = (SCRIPTS / f"{name}.sbatch").read_text().partition("# Nothing to edit from here on")
    assert re.findall(r"(?m)^#SBATCH --([a-z-]+)=", above) == [edited, "gpus-per-node", "time"]
    assert {"#SBATCH --requeue", "#SBATCH --open-mode=append"} <= set(below.splitlines())
