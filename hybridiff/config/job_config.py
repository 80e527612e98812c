"""All sections of a job."""

from dataclasses import dataclass, field

from hybridiff.config.data_config import DataConfig
from hybridiff.config.model import ModelConfig
from hybridiff.config.output import OutputConfig
from hybridiff.config.parallel import ParallelConfig
from hybridiff.config.sampling import SamplingConfig
from hybridiff.config.trainer_config import TrainerConfig


@dataclass(frozen=True)
class JobConfig:
    """All options of a job: what the content of a corpus depends on, where it goes, and how the job runs."""

    model: ModelConfig
    sampling: SamplingConfig
    parallel: ParallelConfig
    data: DataConfig
    output: OutputConfig
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
