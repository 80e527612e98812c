"""Networks under test: copies of their pipelines, embeddings, schedulers and schedules."""

import pytest
import torch

from hybridiff.errors import UsageError
from jobs.benchmark.config import NetworkConfig, RowConfig, SettingConfig
from jobs.benchmark.networks import Network, load_network
from jobs.benchmark.pipelines import build_schedule, check_rows, copy_pipeline

SMALL = NetworkConfig(untrained="unet", channels=[32, 64], transformer_layers=[1, 1], height=64, width=64, tokens=4)


@pytest.fixture(scope="module")
def network() -> Network:
    return load_network(SMALL, 1, 0, torch.device("cpu"))


def test_a_copy_shares_weights_and_nothing_else(network: Network) -> None:
    other = copy_pipeline(network.pipeline, RowConfig(scheduler="UniPCMultistepScheduler"))
    mine, its = dict(network.pipeline.unet.named_parameters()), dict(other.unet.named_parameters())
    assert mine.keys() == its.keys() and all(its[name] is mine[name] for name in mine)
    assert not set(map(id, network.pipeline.unet.modules())) & set(map(id, other.unet.modules()))
    assert type(other.scheduler).__name__ == "UniPCMultistepScheduler"
    assert type(network.pipeline.scheduler).__name__ == "DDIMScheduler"


def test_a_copy_generates_the_same(network: Network) -> None:
    arguments = [network.arguments([0, 3], SettingConfig(steps=2), 2) for _ in range(2)]
    first = network.pipeline(**arguments[0], output_type="latent")[0]
    second = copy_pipeline(network.pipeline, RowConfig()).__call__(**arguments[1], output_type="latent")[0]
    assert first.shape == (2, 4, 8, 8) and first.isfinite().all() and torch.equal(first, second)


def test_an_image_has_the_same_embedding_in_any_batch(network: Network) -> None:
    alone, together = (network.arguments(images, SettingConfig(), 1) for images in ([3], [0, 3]))
    for name in ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"):
        assert torch.equal(alone[name][0], together[name][1])
        assert not torch.equal(together[name][0], together[name][1])


def test_unknown_networks_schedulers_and_options_are_refused(network: Network) -> None:
    with pytest.raises(UsageError, match=r"allowed: unet, mmdit, flux, .*sdxl"):
        load_network(NetworkConfig(untrained="vit"), 1, 0, torch.device("cpu"))
    with pytest.raises(UsageError, match=r"rows.scheduler is 'Fast'; allowed: .*DDIMScheduler"):
        copy_pipeline(network.pipeline, RowConfig(scheduler="Fast"))
    with pytest.raises(UsageError, match="options of schedule full are none"):
        build_schedule(RowConfig(options={"k": 3}))


def test_flow_matching_accepts_solvers_that_are_configured_for_it() -> None:
    flow = load_network(NetworkConfig(untrained="mmdit", blocks=2, heads=1), 1, 0, torch.device("cpu"))
    options = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    other = copy_pipeline(flow.pipeline, RowConfig(scheduler="UniPCMultistepScheduler", scheduler_options=options))
    assert other.scheduler.config.use_flow_sigmas
    with pytest.raises(UsageError, match=r"allowed: FlowMatchEulerDiscreteScheduler, or .* with use_flow_sigmas"):
        copy_pipeline(flow.pipeline, RowConfig(scheduler="UniPCMultistepScheduler"))


def test_scheduler_options_that_the_scheduler_does_not_have_are_refused(network: Network) -> None:
    with pytest.raises(
        UsageError, match=r"rows.scheduler_options.order is 3; allowed: nothing; the options of UniPC.* solver_order"
    ):
        copy_pipeline(network.pipeline, RowConfig(scheduler="UniPCMultistepScheduler", scheduler_options={"order": 3}))
    with pytest.raises(UsageError, match=r"rows.scheduler_options are {'algorithm_type': 'fast'}: .*fast"):
        copy_pipeline(
            network.pipeline, RowConfig(scheduler="DPMSolverMultistepScheduler", scheduler_options={"algorithm_type": "fast"})
        )


@pytest.mark.parametrize(
    ("untrained", "size", "allowed"),
    [
        ("unet", 100, "multiples of 8"),
        ("mmdit", 104, "multiples of 16"),
        ("mmdit", 1040, "at most 1024"),
        ("flux", 104, "multiples of 16"),
    ],
)
def test_sizes_that_an_untrained_network_cannot_generate_are_refused(untrained: str, size: int, allowed: str) -> None:
    for name in ("height", "width"):
        with pytest.raises(UsageError, match=f"network.{name} is {size}; allowed: {allowed}"):
            load_network(NetworkConfig(untrained=untrained, **{name: size}), 1, 0, torch.device("cpu"))


def test_a_window_that_does_not_fit_is_refused_before_anything_is_generated(network: Network) -> None:
    row = RowConfig(schedule="paper", options={"tau_cap": 15, "k": 20}, group_size=2)
    check_rows(network, SettingConfig(steps=50), [row])
    with pytest.raises(UsageError, match="tau_cap is 15 and k is 20"):
        check_rows(network, SettingConfig(steps=28), [row])


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_true_guidance_calls_a_network_of_fluxs_shape_once_per_branch(scale: float) -> None:
    config = NetworkConfig(untrained="flux", blocks=2, heads=1, height=64, width=64, tokens=4, options={"guidance_scale": 2.0})
    flux = load_network(config, 1, 0, torch.device("cpu"))
    arguments = flux.arguments([0, 1], SettingConfig(2, scale), 2)
    assert (arguments["true_cfg_scale"], arguments["guidance_scale"]) == (scale, 2.0)
    calls: list[int] = []
    flux.pipeline.transformer.register_forward_hook(lambda *_: calls.append(1))
    assert flux.pipeline(**arguments, output_type="latent")[0].isfinite().all()
    assert len(calls) == 2 * SettingConfig(2, scale).branches
