"""Every shipped configuration loads."""

from pathlib import Path

import pytest

from jobs import generate

CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_it_loads(path: Path) -> None:
    config, trainer_options, dry_run = generate.parse(["--config", str(path)])
    assert config.output.url and config.data.prompts
    assert trainer_options["accelerator"] in ("cpu", "gpu")
    assert not dry_run


def test_there_are_some() -> None:
    assert len(CONFIGS) >= 3


def test_flags_win_over_the_file() -> None:
    config, trainer_options, _ = generate.parse(["--config", str(CONFIGS[0]), "--sampling.steps=7", "--trainer.devices=2"])
    assert (config.sampling.steps, str(trainer_options["devices"])) == (7, "2")
