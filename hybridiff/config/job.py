"""All sections of a job."""

from dataclasses import dataclass

from hybridiff.config.data import DataConfig
from hybridiff.config.model import ModelConfig
from hybridiff.config.output import OutputConfig
from hybridiff.config.parallel import ParallelConfig
from hybridiff.config.sampling import SamplingConfig


@dataclass(frozen=True)
class JobConfig:
    """Everything that the content of a corpus depends on, and where it goes."""

    model: ModelConfig
    sampling: SamplingConfig
    parallel: ParallelConfig
    data: DataConfig
    output: OutputConfig
