"""CONFIG: a job's options, as frozen dataclasses that check themselves, a file for each section. Nothing here imports torch."""

from hybridiff.config.data_config import DataConfig, PromptSource
from hybridiff.config.job_config import JobConfig
from hybridiff.config.model import DTYPES, Dtype, ModelConfig
from hybridiff.config.output import OutputConfig
from hybridiff.config.parallel import GROUP_SIZES, GroupSize, ParallelConfig
from hybridiff.config.sampling import SamplingConfig
from hybridiff.config.trainer_config import TrainerConfig

__all__ = [
    "DTYPES",
    "GROUP_SIZES",
    "DataConfig",
    "Dtype",
    "GroupSize",
    "JobConfig",
    "ModelConfig",
    "OutputConfig",
    "ParallelConfig",
    "PromptSource",
    "SamplingConfig",
    "TrainerConfig",
]
