"""The predict step without a trainer, for tests of what becomes of batches."""

from hybridiff.cluster.signals import StopSignals
from hybridiff.config import DataConfig, JobConfig, ModelConfig, OutputConfig, ParallelConfig, SamplingConfig
from hybridiff.models.facts import read_facts
from hybridiff.models.load import load_pipeline
from hybridiff.parallel import Group
from hybridiff.runner.module import CorpusModule
from hybridiff.runner.stopping import Stopping
from hybridiff.schedule import Full


def module_alone(model: str, steps: int, rows: int) -> CorpusModule:
    """A module with a bundled model, in a group of one, that generates by plain guidance."""
    config = JobConfig(
        ModelConfig(path=model),
        SamplingConfig(steps=steps),
        ParallelConfig(schedule=Full()),
        DataConfig(prompts="unused.txt"),
        OutputConfig(url="unused"),
    )
    module = CorpusModule(config, read_facts(config.model))
    module.pipeline = load_pipeline(config.model, module.facts)
    module.parallelize(Group())
    module.stopping = Stopping(StopSignals(), 60.0, 1.0, rows=rows)
    return module
