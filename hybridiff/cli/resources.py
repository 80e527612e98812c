"""Files that the package carries beside its code: batch scripts and configurations, in a checkout the folders of its root."""

from importlib.resources import as_file, files
from pathlib import Path

from hybridiff.errors import require_choice


def slurm_script(name: str) -> Path:
    """A file of ``slurm/``, such as "array.sbatch"."""
    return _shipped("slurm") / name


def shipped_config(name: str) -> Path:
    """A configuration of ``configs/`` by its name without ending, such as "demo".

    Raises:
        UsageError: there is none of this name.
    """
    folder = _shipped("configs")
    require_choice("config", name, sorted(path.stem for path in folder.glob("*.yaml")))
    return folder / f"{name}.yaml"


def _shipped(folder: str) -> Path:
    with as_file(files("hybridiff") / folder) as path:  # of a package in a directory, as installers leave it
        return path.resolve()
