"""What a benchmark may be asked for."""

from typing import Any

import pytest

from hybridiff.config import UsageError
from hybridiff.measure.config import BenchmarkConfig, FidelityConfig, RowConfig, SettingConfig, SubjectConfig, TimingConfig

REFUSED: dict[str, Any] = {
    "either model or untrained": lambda: SubjectConfig(),
    "subject.dtype is 'int8'": lambda: SubjectConfig(model="m", dtype="int8"),
    "subject.transformer_layers": lambda: SubjectConfig(untrained="unet", channels=[64, 128]),
    "settings.guidance_scale is 1": lambda: SettingConfig(guidance_scale=1),
    "rows.schedule is 'fast'": lambda: RowConfig(schedule="fast"),
    "rows.group_size is 3": lambda: RowConfig(group_size=3),
    "rows.steps_share is 0": lambda: RowConfig(steps_share=0),
    "nothing to measure": lambda: BenchmarkConfig(subject=SubjectConfig(model="m")),
    "a model or an untrained network": lambda: BenchmarkConfig(timing=TimingConfig()),
    "fidelity says nothing of an untrained one": lambda: BenchmarkConfig(
        subject=SubjectConfig(untrained="unet"), fidelity=FidelityConfig()
    ),
    "none without fidelity": lambda: BenchmarkConfig(subject=SubjectConfig(model="m"), timing=TimingConfig(), picture="a.png"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals(message: str) -> None:
    with pytest.raises(UsageError, match=message):
        REFUSED[message]()


def test_a_setting_goes_without_rows_that_need_more_steps() -> None:
    rows = [RowConfig(name="short"), RowConfig(name="long", needs_steps=35)]
    config = BenchmarkConfig(SubjectConfig(model="m"), rows=rows, timing=TimingConfig())
    assert [row.name for row in config.rows_at(SettingConfig(steps=35))] == ["data parallel", "short", "long"]
    assert [row.name for row in config.rows_at(SettingConfig(steps=34))] == ["data parallel", "short"]


def test_rows_name_themselves() -> None:
    setting = SettingConfig(steps=50)
    assert RowConfig(schedule="paper", options={"k": 20}, group_size=2).label(setting) == "paper k=20, group of 2"
    fewer = RowConfig(steps_share=0.66, scheduler="UniPCMultistepScheduler")
    assert fewer.label(setting) == "full, UniPCMultistep, 33 steps, group of 1"
    assert RowConfig(name="mine").label(setting) == "mine"
