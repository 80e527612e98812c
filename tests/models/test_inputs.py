"""The denoiser of a pipeline, and the inputs of its calls."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hybridiff.errors import UsageError
from hybridiff.models.inputs import denoiser_name, find_denoiser, map_tensors, model_input, tensors_in


@dataclass
class Pipeline:
    unet: Any = None
    transformer: Any = None


def test_a_pipeline_has_one_denoiser() -> None:
    network = nn.Identity()
    for name in ("unet", "transformer"):
        pipeline = Pipeline(**{name: network})
        assert denoiser_name(pipeline) == name and find_denoiser(pipeline) is network


@pytest.mark.parametrize("pipeline", [Pipeline(), Pipeline(nn.Identity(), nn.Identity()), Pipeline("a name"), nn.Identity()])
def test_others_are_refused(pipeline: Any) -> None:
    with pytest.raises(
        UsageError, match=f"{type(pipeline).__name__} has no single denoiser; allowed: .* a unet or a transformer"
    ):
        find_denoiser(pipeline)


def test_the_model_input_comes_first_or_by_name() -> None:
    latents, text = torch.zeros(2, 4), torch.ones(2, 3)
    assert model_input((latents, text), {"hidden_states": text}) is latents
    assert model_input((), {"encoder_hidden_states": text, "hidden_states": latents}) is latents
    assert model_input((), {"sample": latents}) is latents and model_input((), {"x": latents}) is latents


def test_tensors_at_any_depth() -> None:
    first, second, third = (torch.full((1,), float(i)) for i in range(3))
    given = (first, {"b": [second, None, "text"], "a": (third, 7)})
    assert [tensor.item() for tensor in tensors_in(given)] == [0, 1, 2]

    def double(tensor: Tensor) -> float:
        return 2 * tensor.item()

    assert map_tensors(double, given) == (0.0, {"b": [2.0, None, "text"], "a": (4.0, 7)})


@pytest.mark.parametrize("given", [None, [torch.zeros(1), torch.zeros(2)]])
def test_latents_that_are_not_a_tensor_are_refused(given: Any) -> None:
    with pytest.raises(UsageError, match=r"the denoiser is called with .* as latents; allowed: a tensor"):
        model_input((), {"hidden_states": given})
