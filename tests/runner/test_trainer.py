"""Lightning's Trainer, as it is set up for a corpus and under SLURM."""

import io
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.data import has_len_all_ranks
from torch.utils.data import DataLoader

from hybridiff.cluster.launch import Launch
from hybridiff.config import ParallelConfig, TrainerConfig
from hybridiff.errors import UsageError
from hybridiff.runner.counts import refresh_s
from hybridiff.runner.data import BatchStream
from hybridiff.runner.trainer import build_trainer, lightning_options

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


@pytest.mark.parametrize(
    ("option", "given", "message"),
    [
        (
            "logger",
            "WandbLogger",
            r"logger is 'WandbLogger', which can't be made: .*wandb.*; allowed: the class path of a Logger, ",
        ),
        ("logger", "TensorBoardLogger", r"'TensorBoardLogger', which can't be made: the following arguments are .*: save_dir; "),
        (
            "logger",
            {"class_path": "CSVLogger", "init_args": {"colour": 1}},
            r"'CSVLogger', .*: Option 'colour' is not accepted; ",
        ),
        (
            "callbacks",
            "pathlib.Path",
            r"'pathlib\.Path', which can't be made: Import path pathlib.Path does not .* of Callback; ",
        ),
        ("callbacks", "mine.Missing", r"trainer\.callbacks is 'mine\.Missing', which can't be made: No module named 'mine'; "),
    ],
)
def test_loggers_and_callbacks_that_cannot_be_made_are_refused_in_one_line(
    option: Any, given: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match=message) as refused:
        lightning_options(TrainerConfig(**{option: given}))
    assert not [word for word in ("\n", "Union", "<class", "Namespace") if word in str(refused.value)]


def test_callbacks_are_made_with_their_arguments_and_nothing_is_logged_unless_asked() -> None:
    timer = {"class_path": "Timer", "init_args": {"duration": "00:00:01:00"}}
    options = lightning_options(TrainerConfig(callbacks=[timer, "Callback"]))
    assert [type(one).__name__ for one in options["callbacks"]] == ["Timer", "Callback"]
    assert options["logger"] is False


def test_a_progress_bar_in_a_log_is_a_few_states(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr("sys.stderr", log)
    with Tqdm(total=2000, file=log, **refresh_s()) as bar:
        for _ in range(2000):
            bar.update()
    assert log.getvalue().count("\r") < 5 and "2000/2000" in log.getvalue()
