"""The axis of the batch's rows in each input: described by name, or learned by experiments, whatever else has the same size."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from hybridiff.errors import UsageError
from hybridiff.models import row_axes
from hybridiff.models.row_axes import RowAxes, register_inputs

ROWS = 4  # as many as tokens, channels, heads and layers
LATENTS, TEXT = torch.randn(ROWS, ROWS, ROWS), torch.randn(ROWS, ROWS, ROWS)


def last_two(rows: Any) -> Any:
    return rows[2:]


def mapped(given: dict[str, Any], latents: Any = LATENTS, args: tuple[Any, ...] = ()) -> dict[str, Any]:
    return RowAxes().map_rows(last_two, (latents, *args), given)[1]


def test_inputs_have_the_axes_of_their_names() -> None:
    kwargs = {"img_shapes": [[(1, 2, 2)]] * ROWS, "added_cond_kwargs": {"text_embeds": TEXT, "time_ids": TEXT[:1]}}
    found = mapped(kwargs | {"guidance": torch.arange(ROWS), "freqs_cis": TEXT, "timestep": torch.tensor(7.0)})
    assert torch.equal(found["added_cond_kwargs"]["text_embeds"], TEXT[2:]) and found["guidance"].tolist() == [2, 3]
    assert found["added_cond_kwargs"]["time_ids"].shape == (1, ROWS, ROWS), "one for all rows"
    assert len(found["img_shapes"]) == ROWS and found["freqs_cis"] is TEXT and found["timestep"].ndim == 0


def test_latents_and_prompts_may_be_lists_of_rows() -> None:
    latents, prompts = [torch.full((1, 2), float(i)) for i in range(ROWS)], [torch.zeros(3 + i, 2) for i in range(ROWS)]
    args, found = RowAxes().map_rows(last_two, (latents,), {"cap_feats": prompts, "text_encoder_layers": [TEXT] * ROWS})
    assert [latent.max().item() for latent in args[0]] == [2, 3] and [len(prompt) for prompt in found["cap_feats"]] == [5, 6]
    assert [layer.shape for layer in found["text_encoder_layers"]] == [(2, ROWS, ROWS)] * ROWS, "a layer each, no row"


def test_rows_may_be_on_another_axis() -> None:
    layers = torch.arange(8).view(2, ROWS, 1)
    assert mapped({"encoder_hidden_states_llama3": layers})["encoder_hidden_states_llama3"].flatten().tolist() == [2, 3, 6, 7]


def test_position_ids_have_rows_if_they_have_three_dimensions() -> None:
    shared, own = torch.zeros(ROWS, 3), torch.arange(ROWS).view(ROWS, 1, 1).expand(ROWS, 7, 3)
    for name in ("img_ids", "txt_ids", "position_ids"):
        assert mapped({name: shared})[name] is shared
        assert mapped({name: own})[name][:, 0, 0].tolist() == [2, 3]


def test_positions_along_each_axis_are_shared_by_all_rows() -> None:
    found = mapped({"visual_rope_pos": [torch.arange(1), torch.arange(4), torch.arange(8)], "text_rope_pos": torch.arange(4)})
    assert [len(axis) for axis in found["visual_rope_pos"]] == [1, 4, 8] and len(found["text_rope_pos"]) == 4


def test_an_input_with_another_number_of_rows_is_refused() -> None:
    with pytest.raises(UsageError, match=r"guidance of the denoiser is \(3,\), and has rows on axis 0; allowed: 4 of them"):
        mapped({"guidance": torch.zeros(3)})


def test_names_are_those_of_positional_arguments_too() -> None:
    flux = FluxTransformer2DModel(1, 4, None, 1, 1, 8, 2, 8, 8, axes_dims_rope=(2, 2, 4))
    args = (LATENTS, TEXT, TEXT[:, 0], torch.zeros(ROWS), torch.zeros(ROWS, 3))
    found, _ = RowAxes.of(flux).map_rows(last_two, args, {})
    assert [len(tensor) for tensor in found] == [2, 2, 2, 2, ROWS]


class Own(nn.Module):
    """A network of nobody's class; ``compute`` is a function of the latents and all other inputs."""

    def __init__(self, compute: Callable[..., Tensor]) -> None:
        super().__init__()
        self.compute = compute
        self.calls = 0

    def forward(self, sample: Tensor, /, **given: Any) -> tuple[Tensor]:
        self.calls += 1
        return (self.compute(sample, **given),)


def learned(compute: Callable[..., Tensor], **given: Any) -> tuple[dict[str, Any], Own]:
    network = Own(compute)
    axes = RowAxes.of(network)
    axes.learn(network, (LATENTS,), given)
    return axes.map_rows(last_two, (LATENTS,), given)[1], network


VECTOR = torch.linspace(1, 2, ROWS)
USES: dict[
    str, tuple[Callable[..., Tensor], Any, Any]
] = {  # an input that rows have, or share: its use, itself, and for two rows
    "prompt": (lambda x, given: x * given, TEXT, TEXT[2:]),
    "a scale of each row": (lambda x, given: x * given[:, None, None], VECTOR, VECTOR[2:]),
    "a scale of each channel": (lambda x, given: x * given, VECTOR, VECTOR),
    "a scale of each token": (lambda x, given: x * given[:, None], VECTOR, VECTOR),
    "positions of tokens": (lambda x, given: x + given.sin(), TEXT[0], TEXT[0]),
    "rows on the second axis": (lambda x, given: x * given.transpose(0, 1), TEXT, TEXT[:, 2:]),
    "rows on the last axis": (lambda x, given: x * given.T[:, :, None], TEXT[0], TEXT[0, :, 2:]),
    "a mask": (lambda x, given: x.masked_fill(~given[:, :, None], 0), torch.ones(ROWS, ROWS, dtype=torch.bool), ...),
    "an additive mask": (lambda x, given: (x + given[:, None]).softmax(-1), torch.zeros(ROWS, ROWS), ...),
    "a mask of tokens": (lambda x, given: x * given[:, None], torch.ones(ROWS, dtype=torch.int64), torch.ones(ROWS)),
    "token ids": (lambda x, given: x + TEXT[0][given], torch.zeros(ROWS, ROWS, dtype=torch.int64), ...),
    "a layer each": (lambda x, given: x * sum(layer.sin() for layer in given), [TEXT] * ROWS, [TEXT[2:]] * ROWS),
    "weights of layers": (lambda x, given: x * sum(given), list(VECTOR), list(VECTOR)),
    "a list of rows": (lambda x, given: x * torch.stack(given), list(TEXT), list(TEXT[2:])),
    "sizes of rows": (lambda x, given: x * torch.tensor(given)[:, None, None], [1, 2, 3, 4], [3, 4]),
    "sizes of axes": (lambda x, given: x * sum(given), (1, 2, 3, 4), (1, 2, 3, 4)),
    "a dict": (lambda x, given: x * given["a"] * given["b"], {"a": TEXT, "b": VECTOR}, {"a": TEXT[2:], "b": VECTOR}),
    "a table of which half is in use": (lambda x, given: torch.cat([x[:1], x[1:] * given]), VECTOR, VECTOR),
}


@pytest.mark.parametrize("use", USES)
def test_unknown_inputs_are_learned_by_what_they_change(use: str) -> None:
    compute, given, expected = USES[use]
    found, network = learned(compute, given=given)
    torch.testing.assert_close(found["given"], given[2:] if expected is ... else expected, check_dtype=False)
    calls = network.calls
    axes = RowAxes.of(network)
    axes.learn(network, (LATENTS,), {"given": given})
    more = network.calls
    axes.learn(network, (LATENTS + 1,), {"given": given})
    assert more == 2 * calls and network.calls == more, "learned once"


def test_a_prompt_that_is_nothing_hides_no_use_of_a_shared_input() -> None:
    """Unconditional rows are zeros here, so that of two rows a shared scale changes one alone."""
    latents, prompt = torch.randn(2, 3), torch.stack([torch.zeros(3), torch.ones(3)])

    def compute(sample: Tensor, scales: Tensor, text: Tensor) -> Tensor:
        return sample + scales.sum() * text

    network, given = Own(compute), {"scales": torch.ones(2), "text": prompt}
    axes = RowAxes.of(network)
    axes.learn(network, (latents,), given)
    found = axes.map_rows(lambda rows: rows[1:], (latents,), given)[1]
    assert found["scales"].shape == (2,) and found["text"].shape == (1, 3)


def test_lengths_that_decide_how_far_all_rows_are_padded_are_refused() -> None:
    """The longest row's length changes all predictions by rounding, another one's its own alone."""

    def compute(sample: Tensor, given: Tensor) -> Tensor:
        return sample * given[:, None, None] + 1e-6 * given.max()

    with pytest.raises(UsageError, match="it is not known whether given"):
        learned(compute, given=torch.tensor([7, 5, 5, 5]))


def test_experiments_change_nothing_that_the_run_needs() -> None:
    """Random numbers, containers that the network empties, gradients, and predictions in memory that is used again."""
    memory = torch.empty_like(LATENTS)

    def compute(sample: Tensor, given: dict[str, Tensor]) -> Tensor:
        torch.rand(())
        grads.append(torch.is_grad_enabled())
        return torch.mul(sample, given.pop("prompt"), out=memory)

    grads: list[bool] = []
    given, state = {"prompt": TEXT}, torch.get_rng_state()
    found, _ = learned(compute, given=given)
    assert found["given"]["prompt"].shape == (2, ROWS, ROWS) and given["prompt"] is TEXT
    assert torch.equal(state, torch.get_rng_state()) and grads and not any(grads)


def test_images_for_adapters_have_rows() -> None:
    found = mapped({"joint_attention_kwargs": {"ip_adapter_image_embeds": [TEXT], "ip_hidden_states": [TEXT]}})
    assert [len(tensors[0]) for tensors in found["joint_attention_kwargs"].values()] == [2, 2]


@pytest.mark.parametrize("given", [VECTOR, [(2, 2)] * ROWS, torch.zeros(ROWS, dtype=torch.int64)])
def test_what_no_experiment_tells_apart_is_refused(given: Any) -> None:
    with pytest.raises(
        UsageError, match=r"it is not known whether given of the Own has the batch's 4 rows .*register_inputs\(Own,"
    ):
        learned(lambda x, given: x, given=given)


def test_a_known_name_says_what_no_experiment_can() -> None:
    found, network = learned(lambda x, **_: x, timestep=VECTOR)
    assert found["timestep"].shape == (2,) and network.calls == 0, "the same in any network"
    found, _ = learned(lambda x, **_: x, guidance=VECTOR, img_shapes=[[(1, 2, 2)]] * ROWS, txt_seq_lens=[5] * ROWS)
    assert found["guidance"].shape == (2,) and len(found["img_shapes"]) == len(found["txt_seq_lens"]) == ROWS


def test_an_experiment_counts_more_than_a_name() -> None:
    found, _ = learned(lambda x, guidance: x * guidance, guidance=VECTOR)
    assert found["guidance"] is VECTOR, "a scale of channels under another's name"
    lengths = [1, 2, 3, 4]
    for use, expected in ((torch.tensor, lengths[2:]), (lambda given: torch.tensor([max(given)] * ROWS), lengths)):
        found, _ = learned(lambda x, txt_seq_lens, use=use: x * use(txt_seq_lens)[:, None, None], txt_seq_lens=lengths)
        assert found["txt_seq_lens"] == expected


def test_networks_that_mix_rows_or_never_repeat_are_refused() -> None:
    with pytest.raises(UsageError, match="the Own computes rows of a batch from one another"):
        learned(lambda x, given: x - x.mean(0) + given, given=TEXT)
    with pytest.raises(UsageError, match="it is not known whether given"):
        learned(lambda x, given: x * given + torch.rand(()), given=TEXT)


def test_classes_can_be_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_axes, "_REGISTERED", {})
    register_inputs(Own, {"given": 0, "sizes": "items", "table": None, "across": -1})
    network = Own(lambda x, **_: x)
    given = {"given": VECTOR, "sizes": [(2, 2)] * ROWS, "table": VECTOR, "across": TEXT, "encoder_hidden_states": TEXT}
    axes = RowAxes.of(network)
    axes.learn(network, (LATENTS,), given)
    found = axes.map_rows(last_two, (LATENTS,), given)[1]
    assert network.calls == 0 and len(found["given"]) == len(found["sizes"]) == 2 and found["table"] is VECTOR
    assert found["across"].shape == (ROWS, ROWS, 2) and found["encoder_hidden_states"].shape == (2, ROWS, ROWS)


def test_one_row_is_never_divided() -> None:
    given = {"anything": torch.zeros(1, 3), "guidance": torch.zeros(3)}
    assert RowAxes().map_rows(last_two, (LATENTS[:1],), given)[1] is given
