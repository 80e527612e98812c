"""Which configurations of a benchmark are allowed."""

from typing import Any

import pytest

from hybridiff.errors import UsageError
from jobs.benchmark.config import (
    BenchmarkConfig,
    BytesConfig,
    CorpusConfig,
    CostsConfig,
    FidelityConfig,
    NetworkConfig,
    RowConfig,
    SettingConfig,
    TimingConfig,
)

REFUSED: dict[str, Any] = {
    "either model or untrained": lambda: NetworkConfig(),
    "network.model with fidelity.shapes_clip is 'm'; allowed: shapes-xl, shapes-sd3": lambda: BenchmarkConfig(
        NetworkConfig(model="m"), fidelity=FidelityConfig(shapes_clip=True)
    ),
    "network.dtype is 'int8'": lambda: NetworkConfig(model="m", dtype="int8"),
    "network.transformer_layers": lambda: NetworkConfig(untrained="unet", channels=[64, 128]),
    r"network.channels is \[50, 100\]; allowed: 2 or more numbers, each 32 or a multiple of 64": lambda: NetworkConfig(
        untrained="unet", channels=[50, 100], transformer_layers=[1, 1]
    ),
    r"network.channels is \[64\]": lambda: NetworkConfig(untrained="unet", channels=[64], transformer_layers=[1]),
    "network.blocks is 1; allowed: 2 or more": lambda: NetworkConfig(untrained="mmdit", blocks=1),
    "network.heads is 0; allowed: 1 or more": lambda: NetworkConfig(untrained="mmdit", heads=0),
    "network.heads is 4; allowed: only with an untrained mmdit": lambda: NetworkConfig(untrained="unet", heads=4),
    "network.blocks is 8; allowed: only with an untrained mmdit": lambda: NetworkConfig(untrained="sdxl", blocks=8),
    "network.channels is .*; allowed: only with an untrained unet": lambda: NetworkConfig(model="m", channels=[64, 128]),
    "network.transformer_layers is .*; allowed: only": lambda: NetworkConfig(untrained="mmdit", transformer_layers=[1, 1, 2]),
    "network.tokens is 24; allowed: only with untrained": lambda: NetworkConfig(model="m", tokens=24),
    "network.max_sequence_length is 8; allowed: only with a model": lambda: NetworkConfig(
        untrained="mmdit", max_sequence_length=8
    ),
    "costs.patterns is 'F5 P5'; allowed: F": lambda: CostsConfig(patterns=["F5", "F5 P5"]),
    "bytes.patterns is 'P5'; allowed: F": lambda: BytesConfig(patterns=["P5"]),
    "costs.patterns is 'S5'; allowed: F": lambda: CostsConfig(patterns=["S5"]),
    "bytes.height is 32; allowed: multiples of 32 pixels from 64 on": lambda: BytesConfig(height=32),
    "bytes.width is 1000; allowed: multiples of 32 pixels": lambda: BytesConfig(width=1000),
    "rows is 1; allowed: none without timing or fidelity": lambda: BenchmarkConfig(
        network=NetworkConfig(model="m"), rows=[RowConfig()], costs=CostsConfig()
    ),
    "settings is 2; allowed: one; or more": lambda: BenchmarkConfig(
        network=NetworkConfig(model="m"), settings=[SettingConfig(), SettingConfig(28)], costs=CostsConfig()
    ),
    "settings is 0": lambda: BenchmarkConfig(network=NetworkConfig(model="m"), settings=[], timing=TimingConfig()),
    "network is 'given'; allowed: none without": lambda: BenchmarkConfig(network=NetworkConfig(model="m"), bytes=BytesConfig()),
    "settings.guidance_scale is 0.5": lambda: SettingConfig(guidance_scale=0.5),
    "settings.guidance_scale is 1; allowed: more than 1 with costs": lambda: BenchmarkConfig(
        network=NetworkConfig(model="m"), settings=[SettingConfig(50, 1.0)], costs=CostsConfig()
    ),
    "rows.schedule is 'fast'": lambda: RowConfig(schedule="fast"),
    "rows.group_size is 3": lambda: RowConfig(group_size=3),
    "rows.steps_share is 0": lambda: RowConfig(steps_share=0),
    "nothing to measure": lambda: BenchmarkConfig(network=NetworkConfig(model="m")),
    "a model or an untrained network": lambda: BenchmarkConfig(timing=TimingConfig()),
    "fidelity needs trained weights": lambda: BenchmarkConfig(network=NetworkConfig(untrained="unet"), fidelity=FidelityConfig()),
    "corpus.quality is 0; allowed: 1 to 100": lambda: CorpusConfig(quality=0),
    "none without fidelity": lambda: BenchmarkConfig(network=NetworkConfig(model="m"), timing=TimingConfig(), plot="a.png"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals(message: str) -> None:
    with pytest.raises(UsageError, match=message):
        REFUSED[message]()


def test_an_untrained_network_has_only_the_defaults_of_its_kind() -> None:
    unet, mmdit, model = NetworkConfig(untrained="unet"), NetworkConfig(untrained="mmdit", heads=2), NetworkConfig(model="m")
    assert (unet.channels, unet.transformer_layers, unet.tokens) == ([64, 128, 256], [1, 1, 2], 24)
    assert (mmdit.blocks, mmdit.heads, mmdit.channels) == (8, 2, None)
    assert NetworkConfig(untrained="sdxl").tokens == 24 and (model.tokens, model.blocks, model.channels) == (None,) * 3


def test_rows_that_need_more_steps_are_left_out_of_a_setting() -> None:
    rows = [RowConfig(name="short"), RowConfig(name="long", needs_steps=35)]
    config = BenchmarkConfig(NetworkConfig(model="m"), rows=rows, timing=TimingConfig())
    assert [row.name for row in config.rows_at(SettingConfig(steps=35))] == ["data parallel", "short", "long"]
    assert [row.name for row in config.rows_at(SettingConfig(steps=34))] == ["data parallel", "short"]


def test_labels_of_rows() -> None:
    setting = SettingConfig(steps=50)
    assert RowConfig(schedule="paper", options={"k": 20}, group_size=2).label(setting) == "paper k=20, group of 2"
    fewer = RowConfig(steps_share=0.66, scheduler="UniPCMultistepScheduler")
    assert fewer.label(setting) == "full, UniPCMultistep, 33 steps, group of 1"
    assert RowConfig(name="mine").label(setting) == "mine"
