"""CONFIG: a job's options, as frozen dataclasses that check themselves, a file for each section. Nothing here imports torch."""

from hybridiff.config.data import DataConfig, PromptSource
from hybridiff.config.job import JobConfig
from hybridiff.config.model import DTYPES, ModelConfig
from hybridiff.config.output import OutputConfig
from hybridiff.config.parallel import GROUP_SIZES, ParallelConfig
from hybridiff.config.sampling import SamplingConfig
from hybridiff.config.trainer import TrainerConfig

__all__ = [
    "DTYPES",
    "GROUP_SIZES",
    "DataConfig",
    "JobConfig",
    "ModelConfig",
    "OutputConfig",
    "ParallelConfig",
    "PromptSource",
    "SamplingConfig",
    "TrainerConfig",
]
