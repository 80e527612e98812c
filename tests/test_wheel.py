"""The wheel, built from a source distribution as releases are: what it carries, and that it works where there is no checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import hybridiff
from hybridiff.config.model import BUNDLED
from tests.optional import needs

ROOT = Path(__file__).parent.parent
LEFT_OUT = (".git", ".venv", ".*_cache", "__pycache__", "build", "*.egg-info", "runs")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs("build", "dev")
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(folder / "source")]  # no network
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in folder.glob("*.tar.gz")] == [f"hybridiff-{hybridiff.__version__}.tar.gz"]
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The bin directory of an environment that has the wheel, and this one's packages but not its hybridiff."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120)
    python = folder / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index", str(wheel)],
        check=True,
        timeout=120,
    )
    (site,) = folder.glob("lib/python*/site-packages")
    shared = [path for path in sys.path if path.endswith("site-packages") and Path(path, "torch").exists()]
    (site / "shared.pth").write_text("\n".join([*shared, sysconfig.get_path("purelib")]))
    yield folder / "bin"
    shutil.rmtree(folder)


def run(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [str(installed / "hybridiff"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


def test_it_carries_what_a_run_needs_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"hybridiff", f"hybridiff-{hybridiff.__version__}.dist-info"}
    configs = {path.name for path in (ROOT / "configs").glob("*.yaml")}
    assert {name.rpartition("/")[2] for name in names if name.startswith("hybridiff/configs/")} == configs
    scripts = {path.name for path in (ROOT / "slurm").iterdir()}
    assert {name.rpartition("/")[2] for name in names if name.startswith("hybridiff/slurm/")} == scripts
    assert "hybridiff/py.typed" in names and "hybridiff/assets/demo-prompts.jsonl" in names
    models = {name.split("/")[2] for name in names if name.startswith("hybridiff/assets/shapes-")}
    assert models == set(BUNDLED) - {"shapes-flux"}  # which benchmarks and tests use
    assert wheel.stat().st_size < 20e6


def test_its_metadata_has_readme_urls_and_classifiers(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"hybridiff-{hybridiff.__version__}.dist-info/METADATA").decode()
    assert (ROOT / "README.md").read_text().splitlines()[0] in text
    for line in ("Requires-Python: >=3.11", "Project-URL: ", "Classifier: Typing :: Typed", "License-Expression: Apache-2.0"):
        assert f"\n{line}" in text


def test_it_works_in_an_empty_directory(installed: Path, tmp_path: Path) -> None:
    assert run(installed, tmp_path, "--version").stdout == f"hybridiff {hybridiff.__version__}\n"
    plan = run(installed, tmp_path, "generate", "--config", "demo", "--dry_run")
    assert plan.returncode == 0 and "32 images of 64 x 64 pixels" in plan.stdout, plan.stderr
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    (tmp_path / "mine.py").write_text(OWN_CALLBACK)
    given = {
        "model.path": "shapes-xl",
        "data.prompts": "prompts.txt",
        "output.url": "images",
        "sampling.steps": "2",
        "trainer.accelerator": "cpu",
        "trainer.callbacks": "mine.Keys",
    }
    made = run(installed, tmp_path, "generate", *(f"--{name}={value}" for name, value in given.items()))
    assert made.returncode == 0, made.stderr
    assert "loading shapes-xl (float32) ..." in made.stderr
    assert "generated:     2 images in " in made.stdout and "images/s), 0 failed, 0 prompts truncated; 2 steps" in made.stdout
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == [
        "images",
        "keys",
        "mine.py",
        "prompts.txt",
    ]
    assert (tmp_path / "keys").read_text().splitlines() == ["prompts-00000000", "prompts-00000001"]
    checked = run(installed, tmp_path, "verify", "images")
    assert checked.returncode == 0, checked.stdout
    again = run(installed, tmp_path, "generate", *(f"--{name}={value}" for name, value in given.items()))
    assert again.returncode == 0 and again.stdout.startswith("nothing left:  the only shard is committed\n")
    assert "loading" not in again.stderr


OWN_CALLBACK = """
from pathlib import Path
from lightning.pytorch import Callback


class Keys(Callback):
    def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        with Path("keys").open("a") as file:
            file.writelines(f"{result.sample.key}\\n" for result in outputs)
"""
