"""The denoiser of a pipeline, and the inputs of its calls."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hybridiff.errors import UsageError
from hybridiff.models.inputs import denoiser_name, find_denoiser, map_batched, map_tensors, model_input, tensors_in


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
    assert model_input((), {"sample": latents}) is latents


def test_tensors_at_any_depth() -> None:
    first, second, third = (torch.full((1,), float(i)) for i in range(3))
    given = (first, {"b": [second, None, "text"], "a": (third, 7)})
    assert [tensor.item() for tensor in tensors_in(given)] == [0, 1, 2]

    def double(tensor: Tensor) -> float:
        return 2 * tensor.item()

    assert map_tensors(double, given) == (0.0, {"b": [2.0, None, "text"], "a": (4.0, 7)})


def test_tensors_with_a_batch_axis_are_those_of_as_many_rows_but_for_position_encodings() -> None:
    latents, ids, scalar, other = torch.zeros(4, 3), torch.arange(4), torch.tensor(7.0), torch.zeros(5, 3)
    kwargs = {"img_ids": ids, "timestep": scalar, "nested": {"mask": torch.arange(4), "other": other}}
    args, mapped = map_batched(lambda tensor: tensor[:1], (latents,), kwargs)
    assert args[0].shape == (1, 3) and mapped["nested"]["mask"].tolist() == [0]
    assert mapped["img_ids"] is ids and mapped["timestep"] is scalar and mapped["nested"]["other"] is other


def test_latents_and_prompts_may_be_lists_of_rows() -> None:
    latents, prompts = [torch.full((1, 2), float(i)) for i in range(4)], [torch.zeros(3 + i, 2) for i in range(4)]
    assert model_input((latents,), {}).shape == (4, 1, 2)
    args, mapped = map_batched(lambda rows: rows[1:3], (latents, torch.arange(4), prompts), {"sizes": [(1, 1)] * 2})
    assert [latent.max().item() for latent in args[0]] == [1, 2] and args[1].tolist() == [1, 2]
    assert [len(prompt) for prompt in args[2]] == [4, 5] and mapped["sizes"] == [(1, 1)] * 2


def test_rows_may_be_on_another_axis() -> None:
    layers = torch.arange(8).view(2, 4, 1)
    _, mapped = map_batched(lambda rows: rows[2:], (torch.zeros(4, 3),), {"encoder_hidden_states_llama3": layers})
    assert mapped["encoder_hidden_states_llama3"].flatten().tolist() == [2, 3, 6, 7]


def test_position_ids_have_rows_if_they_have_three_dimensions() -> None:
    shared, own = torch.zeros(4, 3), torch.arange(4).view(4, 1, 1).expand(4, 7, 3)
    for name in ("img_ids", "txt_ids", "position_ids"):
        assert map_batched(lambda rows: rows[2:], (torch.zeros(4, 3),), {name: shared})[1][name] is shared
        _, mapped = map_batched(lambda rows: rows[2:], (torch.zeros(4, 3),), {name: own})
        assert mapped[name].shape == (2, 7, 3) and mapped[name][:, 0, 0].tolist() == [2, 3]


def test_positions_along_each_axis_are_shared_by_all_rows() -> None:
    positions = {"visual_rope_pos": [torch.arange(1), torch.arange(4), torch.arange(8)], "text_rope_pos": torch.arange(4)}
    _, mapped = map_batched(lambda rows: rows[2:], (torch.zeros(4, 3),), positions)
    assert [len(axis) for axis in mapped["visual_rope_pos"]] == [1, 4, 8] and len(mapped["text_rope_pos"]) == 4


@pytest.mark.parametrize("given", [None, [torch.zeros(1), torch.zeros(2)]])
def test_latents_that_are_not_a_tensor_are_refused(given: Any) -> None:
    with pytest.raises(UsageError, match=r"the denoiser is called with .* as latents; allowed: a tensor"):
        model_input((), {"hidden_states": given})
