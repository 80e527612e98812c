"""Files that the package carries beside its code: batch scripts and configurations, in a checkout the folders of its root."""

from importlib.resources import as_file, files
from pathlib import Path


def slurm_script(name: str) -> Path:
    """A file of ``slurm/``, such as "array.sbatch"."""
    return _shipped("slurm") / name


def shipped_configs() -> dict[str, Path]:
    """The configurations of ``configs/`` by their names without ending, such as "demo"."""
    return {path.stem: path for path in sorted(_shipped("configs").glob("*.yaml"))}


def _shipped(folder: str) -> Path:
    with as_file(files("hybridiff") / folder) as path:  # of a package in a directory, as installers leave it
        return path.resolve()
