"""What a benchmark may be asked for."""

from typing import Any

import pytest

from hybridiff.errors import UsageError
from jobs.benchmark.config import (
    BenchmarkConfig,
    BytesConfig,
    CostsConfig,
    FidelityConfig,
    RowConfig,
    SettingConfig,
    TimingConfig,
)
from jobs.benchmark.subject_config import SubjectConfig

REFUSED: dict[str, Any] = {
    "either model or untrained": lambda: SubjectConfig(),
    "subject.dtype is 'int8'": lambda: SubjectConfig(model="m", dtype="int8"),
    "subject.transformer_layers": lambda: SubjectConfig(untrained="unet", channels=[64, 128]),
    r"subject.channels is \[50, 100\]; allowed: 2 or more numbers, each 32 or a multiple of 64": lambda: SubjectConfig(
        untrained="unet", channels=[50, 100], transformer_layers=[1, 1]
    ),
    r"subject.channels is \[64\]": lambda: SubjectConfig(untrained="unet", channels=[64], transformer_layers=[1]),
    "subject.blocks is 1; allowed: 2 or more": lambda: SubjectConfig(untrained="mmdit", blocks=1),
    "subject.heads is 0; allowed: 1 or more": lambda: SubjectConfig(untrained="mmdit", heads=0),
    "subject.heads is 4; allowed: nothing but for an untrained mmdit": lambda: SubjectConfig(untrained="unet", heads=4),
    "subject.blocks is 8; allowed: nothing but for an untrained mmdit": lambda: SubjectConfig(untrained="sdxl", blocks=8),
    "subject.channels is .*; allowed: nothing but for an untrained unet": lambda: SubjectConfig(model="m", channels=[64, 128]),
    "subject.transformer_layers is .*; allowed: nothing but": lambda: SubjectConfig(
        untrained="mmdit", transformer_layers=[1, 1, 2]
    ),
    "subject.tokens is 24; allowed: nothing but for untrained": lambda: SubjectConfig(model="m", tokens=24),
    "subject.max_sequence_length is 8; allowed: nothing but for a model": lambda: SubjectConfig(
        untrained="mmdit", max_sequence_length=8
    ),
    "costs.patterns is 'F5 P5'; allowed: F": lambda: CostsConfig(patterns=["F5", "F5 P5"]),
    "bytes.patterns is 'P5'; allowed: F": lambda: BytesConfig(patterns=["P5"]),
    "costs.patterns is 'S5'; allowed: F": lambda: CostsConfig(patterns=["S5"]),
    "bytes.height is 32; allowed: multiples of 32 pixels from 64 on": lambda: BytesConfig(height=32),
    "bytes.width is 1000; allowed: multiples of 32 pixels": lambda: BytesConfig(width=1000),
    "rows is 1; allowed: none without timing or fidelity": lambda: BenchmarkConfig(
        subject=SubjectConfig(model="m"), rows=[RowConfig()], costs=CostsConfig()
    ),
    "settings is 2; allowed: one; or more": lambda: BenchmarkConfig(
        subject=SubjectConfig(model="m"), settings=[SettingConfig(), SettingConfig(28)], costs=CostsConfig()
    ),
    "settings is 0": lambda: BenchmarkConfig(subject=SubjectConfig(model="m"), settings=[], timing=TimingConfig()),
    "subject is 'given'; allowed: none without": lambda: BenchmarkConfig(subject=SubjectConfig(model="m"), bytes=BytesConfig()),
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


def test_an_untrained_network_has_the_defaults_of_its_kind_alone() -> None:
    unet, mmdit, model = SubjectConfig(untrained="unet"), SubjectConfig(untrained="mmdit", heads=2), SubjectConfig(model="m")
    assert (unet.channels, unet.transformer_layers, unet.tokens) == ([64, 128, 256], [1, 1, 2], 24)
    assert (mmdit.blocks, mmdit.heads, mmdit.channels) == (8, 2, None)
    assert SubjectConfig(untrained="sdxl").tokens == 24 and (model.tokens, model.blocks, model.channels) == (None,) * 3


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
