"""CONFIG: a job's options, as frozen dataclasses that check themselves, a file for each section. Nothing here imports torch."""

from hybridiff.config.data import DataConfig
from hybridiff.config.job import JobConfig
from hybridiff.config.model import DTYPES, ModelConfig
from hybridiff.config.output import OutputConfig
from hybridiff.config.parallel import GROUP_SIZES, SCHEDULES, ParallelConfig
from hybridiff.config.sampling import SamplingConfig
from hybridiff.config.schedule import ScheduleConfig

__all__ = [
    "DTYPES",
    "GROUP_SIZES",
    "SCHEDULES",
    "DataConfig",
    "JobConfig",
    "ModelConfig",
    "OutputConfig",
    "ParallelConfig",
    "SamplingConfig",
    "ScheduleConfig",
]
