"""Denoiser calls, groups, and what parallelize refuses."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from hybridiff.errors import UsageError
from hybridiff.parallel.api import parallelize
from hybridiff.parallel.call import DenoiserCall, with_prediction
from hybridiff.parallel.compatibility import check_guidance
from hybridiff.parallel.exchange import Exchange
from hybridiff.parallel.mesh import Group, check_world


def recording(seen: list[Any]) -> Any:
    def forward(*args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
        seen.append((args, kwargs))
        return (args[0] * 2,)

    return forward


def test_a_call_is_split_by_rows_at_any_depth() -> None:
    seen: list[Any] = []
    latents, text, timestep = torch.arange(4.0).view(4, 1, 1, 1), torch.arange(8.0).view(4, 2), torch.tensor(7)
    added = {"text_embeds": text, "none": None}
    call = DenoiserCall(
        recording(seen), (latents, timestep), {"added": added, "image_embeds": [text, torch.ones(1, 3)], "other": torch.ones(3)}
    )
    prediction, _ = call.part((2, 3)).run()
    (args, kwargs) = seen[0]
    assert torch.equal(prediction, latents[2:] * 2)
    assert args[1] is timestep
    assert torch.equal(kwargs["added"]["text_embeds"], text[2:]) and kwargs["added"]["none"] is None
    assert torch.equal(kwargs["image_embeds"][0], text[2:]) and kwargs["image_embeds"][1].shape == (1, 3)
    assert kwargs["other"].shape == (3,)


def test_a_prediction_has_as_many_rows_as_the_latents() -> None:
    call = DenoiserCall(lambda latents: (latents.mean(0),), (torch.zeros(2, 3, 1),), {})
    with pytest.raises(UsageError, match="the denoiser predicts 3 rows; allowed: 2, as its latents have"):
        call.run()


def test_the_fingerprint_differs_for_any_difference_of_batched_inputs() -> None:
    def fingerprint(latents: torch.Tensor, text: torch.Tensor) -> int:
        return int(DenoiserCall(lambda: None, (latents,), {"text": text}).fingerprint())

    latents, text = torch.randn(2, 4), torch.randn(2, 3)
    assert fingerprint(latents, text) == fingerprint(latents.clone(), text.clone())
    nudged = text.clone()
    nudged[1, 2] = nudged[1, 2].nextafter(torch.tensor(9.0))
    assert fingerprint(latents, text) != fingerprint(latents, nudged)
    assert fingerprint(latents, text) != fingerprint(latents.flip(0), text)
    assert fingerprint(torch.ones(2, 1).expand(2, 3), text) == fingerprint(torch.ones(2, 3), text)


def test_a_doubled_batch_is_recognised() -> None:
    latents = torch.randn(2, 4)
    calls = [
        DenoiserCall(lambda: None, (rows,), {}) for rows in (torch.cat([latents] * 2), latents, latents[:1], torch.randn(3, 1))
    ]
    assert [call.doubled() for call in calls] == [True, False, False, False]


def test_the_prediction_is_replaced_in_tuples_and_output_objects() -> None:
    new = torch.ones(1)
    assert with_prediction((torch.zeros(1), "rest"), new) == (new, "rest")
    replaced = with_prediction(Transformer2DModelOutput(sample=torch.zeros(1)), new)
    assert isinstance(replaced, Transformer2DModelOutput) and replaced.sample is new


@pytest.mark.parametrize(("rows", "shares"), [(1, [[0], [0]]), (3, [[0, 1], [2, 2]]), (4, [[0, 1], [2, 3]])])
def test_ranks_own_equally_many_rows(rows: int, shares: list[list[int]]) -> None:
    groups = [Exchange(Group(size=2, rank=rank)) for rank in range(2)]
    assert [exchange.own_rows(rows, torch.device("cpu")).tolist() for exchange in groups] == shares


def test_worlds_must_split_into_groups_inside_nodes() -> None:
    check_world(8, 2, 4)
    check_world(6, 2, None)  # across nodes, when asked for
    with pytest.raises(UsageError, match=r"parallel.group_size is 2; allowed: a divisor of the world size, which is 3"):
        check_world(3, 2)
    with pytest.raises(UsageError, match="a divisor of the 3 ranks of a node"):
        check_world(6, 2, 3)


@dataclass
class Part:
    unet: Any = None
    transformer: Any = None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 2}, "group_size is 2; allowed: 4, the size of the given group"),
        ({"timeout_s": 120.0}, "timeout_s is 120.0; allowed: nothing together with an existing group"),
        ({"across_nodes": False}, "across_nodes is False; allowed: nothing together with an existing group"),
    ],
)
def test_options_that_contradict_an_existing_group_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parallelize(Part(), group=Group(size=4), **options)


class Reporting(Part):
    do_classifier_free_guidance = True
    guidance_scale = 7.0


def test_the_guidance_scale_is_known_from_the_pipeline_or_the_caller() -> None:
    check_guidance(Part(), 4.5)
    check_guidance(Reporting(), None)
    with pytest.raises(UsageError, match="Part does not report its guidance scale; allowed: guidance_scale="):
        check_guidance(Part(), None)
    with pytest.raises(UsageError, match=r"guidance_scale is 4.5; allowed: None, as .* reports its own"):
        check_guidance(Reporting(), 4.5)


def test_a_pair_needs_a_process_group_and_one_process_is_a_group_of_one() -> None:
    pipeline = object.__new__(StableDiffusionXLPipeline)
    object.__setattr__(pipeline, "unet", torch.nn.Linear(1, 1))
    object.__setattr__(pipeline, "transformer", None)
    with pytest.raises(UsageError, match="group_size is 3; allowed: 1, 2, 4"):
        parallelize(pipeline, group_size=3)
    with pytest.raises(UsageError, match="there is no process group; allowed: a script started by torchrun"):
        parallelize(pipeline, group_size=2)
    with pytest.raises(UsageError, match="timeout_s is 0; allowed: more than 0"):
        parallelize(pipeline, group_size=1, timeout_s=0)
    handle = parallelize(pipeline)
    assert handle.group == Group()
    with pytest.raises(UsageError, match=r"parallelized already"):
        parallelize(pipeline, group_size=1)
    with pytest.raises(UsageError, match="no trace before"):
        _ = handle.trace
    handle.remove()
