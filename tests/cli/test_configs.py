"""Every shipped configuration loads."""

from dataclasses import fields
from pathlib import Path

import pytest

from hybridiff.cli.config import SECTIONS, parse
from hybridiff.runner.trainer import lightning_options

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))  # those in bench: test_benchmark.py


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_it_loads(path: Path) -> None:
    arguments = parse(["--config", str(path)])
    assert arguments.config.output.url and arguments.config.data.prompts
    assert arguments.config.trainer.accelerator in ("cpu", "gpu")
    assert not arguments.dry_run


def test_there_are_some() -> None:
    assert len(CONFIGS) >= 3


def test_flags_win_over_the_file() -> None:
    arguments = parse(["--config", str(CONFIGS[0]), "--sampling.steps=7", "--trainer.devices=2"])
    assert (arguments.config.sampling.steps, arguments.config.trainer.devices) == (7, 2)


def test_one_table_needs_no_list_and_loggers_are_made_but_recorded_as_text() -> None:
    logger = ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir=logs"]
    arguments = parse(["--model.path=m", "--data.prompts=a.csv", "--output.url=corpus", *logger])
    assert arguments.config.data.prompts == ["a.csv"]
    trainer = arguments.config.trainer
    assert type(lightning_options(trainer)["logger"][0]).__name__ == "CSVLogger"
    assert trainer.logger["init_args"] == {"save_dir": "logs"}


def test_help_names_every_option_with_its_unit(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        parse(["--help"])
    text = capsys.readouterr().out
    for name, section in SECTIONS.items():
        for option in fields(section):
            assert f"--{name}.{option.name} " in text
    for unit in ("pixels", "seconds", "sampling steps", "images in a shard"):
        assert unit in text.lower()
