"""Lightning's Trainer, as it is set up for a corpus and under SLURM."""

import warnings
from pathlib import Path

import pytest
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.data import has_len_all_ranks
from torch.utils.data import DataLoader

from hybridiff.cluster.launch import Launch
from hybridiff.config import ParallelConfig
from hybridiff.runner.data import BatchStream
from hybridiff.runner.trainer import build_trainer

SLURM = {"SLURM_NTASKS": "1", "SLURM_NNODES": "1", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "generate"}
SLURM |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_ID": "7"}


def test_lightning_does_not_requeue_a_slurm_job_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "default_root_dir": str(tmp_path)}
    trainer = build_trainer(quiet, ParallelConfig(group_size=1), Launch(0, 1, 1), [])
    environment = trainer.strategy.cluster_environment
    assert isinstance(environment, SLURMEnvironment) and environment.auto_requeue is False


def test_a_stream_of_batches_is_no_reason_to_warn(tmp_path: Path) -> None:
    batches = BatchStream(lambda: iter([]), 1)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "default_root_dir": str(tmp_path)}
        build_trainer(quiet, ParallelConfig(group_size=1), Launch(0, 1, 1), [])
        said.clear()
        assert has_len_all_ranks(DataLoader(batches, batch_size=None), SingleDeviceStrategy())
    assert [str(warning.message) for warning in said] == []
