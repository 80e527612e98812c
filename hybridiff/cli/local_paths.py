"""Checks of paths before the libraries are loaded that open them, which takes seconds: a mistake in one answers at once."""

from hybridiff.config import JobConfig


def check_paths(config: JobConfig) -> None:
    """Refuses a local model and local tables that are not there, as the run's own check would; urls and hub ids are left to it.

    Raises:
        UsageError: names the option, or the table.
    """
    from hybridiff.models.hub_files import model_folder
    from hybridiff.prompts.sources import find_sources
    from hybridiff.storage.filesystem import is_url

    if "/" not in config.model.path or config.model.path.startswith(("/", ".", "~")):
        model_folder(config.model)
    find_sources([source for source in config.data.sources if isinstance(source, str) and not is_url(source)])
