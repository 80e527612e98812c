"""The rooms of the house: who may import whom, read from the syntax trees."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEVEL = {
    "jobs": 10,
    "__main__": 10,
    "cli": 9,
    "runner": 8,
    "cluster": 7,
    "evaluate": 6,
    "export": 6,
    "corpus": 5,
    "prompts": 5,
    "parallel": 5,
    "models": 4,
    "storage": 4,
    "config": 3,
    "columns": 1,
    "images": 1,
    "schedule": 2,
    "secrets": 1,
    "errors": 0,
}
ALLOWED = {
    "corpus": ("hybridiff.prompts.rows",),
    "hybridiff": ("hybridiff.cli", "hybridiff.parallel", "hybridiff.schedule", "hybridiff.errors"),
}
ONLY_IN = {  # by name: rooms or files that may use it
    "diffusers": ("models", "jobs"),
    "diffusers.hooks": ("models", "parallel"),
    "transformers": ("models", "evaluate", "jobs"),
    "torch": ("schedule", "models", "parallel", "evaluate", "hybridiff/cluster/gpus.py", "runner", "jobs"),
    "torch.distributed": ("parallel", "hybridiff/runner/trainer.py", "jobs"),
    "fsspec": ("prompts", "corpus", "storage"),
    "lightning": ("runner",),
    "pytorch_lightning": ("runner",),
    "os.environ": ("jobs", "cli", "cluster", "secrets"),
    "os.getenv": ("jobs", "cli", "cluster", "secrets"),
    "print": ("jobs", "cli"),
}


def _room(path: str) -> str:
    parts = Path(path).with_suffix("").parts
    return parts[1] if parts[0] == "hybridiff" and parts[1] != "__init__" else parts[0]


def _names(node: ast.AST) -> list[str]:
    """The dotted names that a node uses or imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
    return [ast.unparse(node)] if isinstance(node, (ast.Name, ast.Attribute)) else []


def _may_use(path: str, name: str) -> bool:
    room, parts = _room(path), name.split(".")
    if f"{name}.".startswith(tuple(f"{allowed}." for allowed in ALLOWED.get(room, ()))):
        return True
    if parts[0] == "hybridiff" and len(parts) > 1:
        target = parts[1]
        return target in (room, "__version__") or LEVEL.get(target, 10) < LEVEL.get(room, 0)
    owners = next((ONLY_IN[n] for n in (".".join(parts[:2]), parts[0]) if n in ONLY_IN), (room,))
    return parts[0] != "" and (room in owners or path in owners)


def violations(path: str, source: str) -> list[str]:
    """Every name in a file, given by its path from the root, that its room may not use."""
    used = [(node, name) for node in ast.walk(ast.parse(source)) for name in _names(node)]
    return [f"{path}:{getattr(node, 'lineno', 0)} {name}" for node, name in used if not _may_use(path, name)]


def test_every_file_keeps_to_its_room() -> None:
    paths = [path for folder in ("hybridiff", "jobs") for path in sorted((ROOT / folder).rglob("*.py"))]
    found = [v for path in paths for v in violations(path.relative_to(ROOT).as_posix(), path.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("hybridiff/schedule/a.py", "from hybridiff.models import load"),
        ("hybridiff/schedule/a.py", "from hybridiff import models"),
        ("hybridiff/parallel/a.py", "import hybridiff.prompts.plan"),
        ("hybridiff/prompts/a.py", "from hybridiff.corpus import results"),
        ("hybridiff/corpus/a.py", "from hybridiff.prompts.plan import Plan"),
        ("hybridiff/storage/a.py", "from hybridiff.corpus.corpus import Corpus"),
        ("hybridiff/cluster/a.py", "from hybridiff.runner.job import Job"),
        ("hybridiff/cluster/a.py", "from lightning.pytorch import Callback"),
        ("hybridiff/cluster/a.py", "import torch"),
        ("hybridiff/runner/a.py", "from .. import jobs"),
        ("hybridiff/parallel/a.py", "from diffusers import DiffusionPipeline"),
        ("jobs/a.py", "from diffusers.hooks import ModelHook"),
        ("jobs/generate.py", "import lightning.pytorch as pl"),
        ("hybridiff/runner/module.py", "from torch import distributed"),
        ("hybridiff/models/a.py", "import torch\ntorch.distributed.barrier()"),
        ("hybridiff/runner/a.py", "import fsspec"),
        ("hybridiff/models/a.py", "import os\nos.environ['A']"),
        ("hybridiff/runner/a.py", "import os\nos.environ.get('A')"),
        ("hybridiff/prompts/a.py", "from os import environ"),
        ("hybridiff/runner/a.py", "print(1)"),
    ],
)
def test_a_wrong_use_is_found(path: str, source: str) -> None:
    assert violations(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("hybridiff/__init__.py", "from hybridiff import parallel\nfrom hybridiff.parallel import parallelize"),
        ("hybridiff/corpus/a.py", "from hybridiff.prompts.rows import Sample"),
        ("hybridiff/corpus/a.py", "from hybridiff.storage.s3 import RetryingS3"),
        ("hybridiff/prompts/a.py", "from hybridiff.storage.filesystem import locate"),
        ("hybridiff/parallel/a.py", "from diffusers.hooks import ModelHook"),
        ("hybridiff/runner/trainer.py", "import torch.distributed as dist"),
        ("hybridiff/runner/a.py", "from hybridiff.cluster.launch import Launch\nimport torch"),
        ("hybridiff/cluster/a.py", "from hybridiff.errors import UsageError\nimport os\nos.environ.get('A')"),
        ("hybridiff/cluster/gpus.py", "import torch"),
        ("jobs/a.py", "from hybridiff.corpus.shard import Result\nprint(1)"),
    ],
)
def test_a_right_use_is_not(path: str, source: str) -> None:
    assert not violations(path, source)
