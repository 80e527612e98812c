"""Pipelines of classes that nobody described: each is learned right, computed as it is, or refused; never generated wrongly.

The pipelines here are a few lines each, and their latents move, as a sampler's do: what a wrong guess would change shows in them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hybridiff.errors import UsageError
from hybridiff.parallel import Handle, parallelize
from hybridiff.parallel.reference import emulate
from tests.parallel.scripted import Scripted
from tests.parallel.threads import on_threads

SCALE = 5.0
NEGATIVE, PROMPT, OTHER = 2.0, 3.0, 0.5


class Network(nn.Module):
    """Predicts a bent function of latents and prompt; a cache, where it is given one, adds what it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Identity()
        self.cache: Any = None
        self.is_cache_enabled = False
        self.weight = nn.Parameter(torch.full((1,), 0.3))
        self.rows: list[int] = []

    def forward(self, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, cache: Any = None) -> tuple[Tensor]:
        self.rows.append(len(sample))
        prompt = encoder_hidden_states.view(-1, *[1] * (sample.ndim - 1))
        added = cache.read(sample) if cache is not None else 0.0
        return (self.block(torch.tanh(sample * self.weight * prompt) + added),)


@dataclass
class Scheduler:
    """Moves latents against the prediction, and counts its steps."""

    timesteps: Tensor = field(default_factory=lambda: torch.zeros(0))
    config: dict[str, Any] = field(default_factory=dict)
    step_index: int | None = None

    def step(self, prediction: Tensor, time: Tensor, latents: Tensor, **_: Any) -> tuple[Tensor]:
        self.step_index = (self.step_index or 0) + 1
        return (latents - 0.1 * prediction,)


class Pipeline:
    """A pipeline whose steps are a function of the network, the latents, the time, the prompts (images,), and the step."""

    do_classifier_free_guidance = True
    guidance_scale = SCALE

    def __init__(self, predict: Callable[..., Tensor], **attributes: Any) -> None:
        self.predict = predict
        self.unet = Network()
        self.scheduler = Scheduler()
        vars(self).update(attributes)

    @torch.no_grad()
    def __call__(self, steps: int, prompts: Sequence[float] = (PROMPT,), seeds: Sequence[int] | None = None) -> Tensor:
        self.scheduler.timesteps, self.scheduler.step_index = torch.arange(steps, 0, -1), None
        noise = [torch.Generator().manual_seed(i) for i in (seeds or range(len(prompts)))]
        latents = torch.stack([torch.randn(1, 4, 4, generator=generator) for generator in noise])
        for step, time in enumerate(self.scheduler.timesteps):
            prediction = self.predict(self.unet, latents, time, torch.tensor(prompts), step)
            latents = self.scheduler.step(prediction, time, latents)[0]
        return latents


def guided(unconditional: Tensor, conditional: Tensor) -> Tensor:
    return unconditional + SCALE * (conditional - unconditional)


def doubled(unet: Any, latents: Tensor, time: Tensor, prompts: Tensor, step: int, *, swapped: bool = False) -> Tensor:
    """One call on [uncond, cond], or the other way round."""
    negative = torch.full_like(prompts, NEGATIVE)
    both = torch.cat([prompts, negative] if swapped else [negative, prompts])
    halves = unet(torch.cat([latents, latents]), time, encoder_hidden_states=both)[0].chunk(2)
    return guided(*(halves[::-1] if swapped else halves))


def swapped(*given: Any) -> Tensor:
    return doubled(*given, swapped=True)


def branches(
    unet: Any, latents: Tensor, time: Tensor, prompts: Tensor, step: int, *, unconditional_first: bool = False
) -> Tensor:
    """One call per branch."""
    negative = torch.full_like(prompts, NEGATIVE)
    ordered = [negative, prompts] if unconditional_first else [prompts, negative]
    made = [unet(latents, time, encoder_hidden_states=prompt)[0] for prompt in ordered]
    return guided(*(made if unconditional_first else made[::-1]))


def unconditional_first(*given: Any) -> Tensor:
    return branches(*given, unconditional_first=True)


def three(unet: Any, latents: Tensor, time: Tensor, prompts: Tensor, step: int) -> Tensor:
    made = [unet(latents, time, encoder_hidden_states=torch.full_like(prompts, other))[0] for other in (NEGATIVE, OTHER)]
    conditional = unet(latents, time, encoder_hidden_states=prompts)[0]
    return made[0] + 2 * (conditional - made[0]) + 3 * (conditional - made[1])


def interval(unet: Any, latents: Tensor, time: Tensor, prompts: Tensor, step: int) -> Tensor:
    """Guidance in the steps 3 to 6 only, on a doubled batch."""
    if 3 <= step <= 6:
        return doubled(unet, latents, time, prompts, step)
    return unet(latents, time, encoder_hidden_states=prompts)[0]


def interval_of_calls(unet: Any, latents: Tensor, time: Tensor, prompts: Tensor, step: int) -> Tensor:
    return (branches if 3 <= step <= 6 else lambda *_: unet(latents, time, encoder_hidden_states=prompts)[0])(
        unet, latents, time, prompts, step
    )


def one_by_one(unet: Any, latents: Tensor, time: Tensor, prompts: Tensor, step: int) -> Tensor:
    """No guidance, and a call for each image of the batch."""
    pairs = zip(latents.split(1), prompts.split(1), strict=True)
    return torch.cat([unet(image, time, encoder_hidden_states=prompt)[0] for image, prompt in pairs])


def single(unet: Any, latents: Tensor, time: Tensor, prompts: Tensor, step: int) -> Tensor:
    prediction: Tensor = unet(latents, time, encoder_hidden_states=prompts)[0]
    return prediction


STYLES = [doubled, swapped, branches, unconditional_first, three, interval, interval_of_calls, one_by_one, single]
BATCHES: list[tuple[list[float], list[int]]] = [
    ([PROMPT], [0]),
    ([PROMPT, 4.0], [0, 1]),
    ([PROMPT, 4.0], [0, 0]),  # the same noise: looks doubled in the first step
    ([PROMPT, PROMPT], [0, 0]),
    ([PROMPT, 4.0, PROMPT, 4.0], [0, 1, 0, 1]),  # the same noise, as for num_images_per_prompt
    ([PROMPT, 4.0, 1.0, 2.5], [0, 0, 0, 0]),
]


@pytest.mark.parametrize("predict", STYLES)
def test_full_steps_are_the_pipelines_own_whatever_the_batch(predict: Callable[..., Tensor]) -> None:
    for prompts, seeds in BATCHES:
        pipeline = Pipeline(predict)
        expected = pipeline(8, prompts, seeds)
        for run in (lambda made: parallelize(made, "full", 1), lambda made: emulate(made, "full", 2)):
            handle = run(pipeline)
            torch.testing.assert_close(pipeline(8, prompts, seeds), expected, msg=f"{prompts} {seeds}")
            handle.remove()


@pytest.mark.parametrize("predict", STYLES)
@pytest.mark.parametrize("script", ["FFHSFFHSFF", "FHFHFSFSFF"])
def test_half_and_skip_steps_stay_near_the_pipelines_own(predict: Callable[..., Tensor], script: str) -> None:
    """D and e_c are nearly constant here: an image is far off only where they were taken for something else."""
    for prompts, seeds in BATCHES:
        pipeline = Pipeline(predict)
        expected = pipeline(10, prompts, seeds)
        with parallelize(pipeline, Scripted(script), 1):
            found = pipeline(10, prompts, seeds)
        assert (found - expected).abs().max() < 0.1 * expected.abs().max(), f"{prompts} {seeds}"


@pytest.mark.parametrize("predict", [swapped, unconditional_first])
def test_the_order_of_branches_is_noticed(predict: Callable[..., Tensor]) -> None:
    pipeline = Pipeline(predict)
    with parallelize(pipeline, Scripted("FFHF"), 1) as handle:
        prompts: list[float] = []
        watch = pipeline.unet.register_forward_pre_hook(
            lambda _module, _args, kwargs: prompts.extend(kwargs["encoder_hidden_states"].tolist()), with_kwargs=True
        )
        watch.remove()
        pipeline(4)
        discrepancies = [value for _, value in handle.trace.curves()[0]]
    plain = Pipeline(doubled)
    with parallelize(plain, Scripted("FFHF"), 1) as handle:
        plain(4)
        assert discrepancies == pytest.approx([value for _, value in handle.trace.curves()[0]]), "relative to e_u"


def test_a_single_step_is_right_in_every_style() -> None:
    for predict in STYLES:
        for prompts, seeds in BATCHES:
            pipeline = Pipeline(predict)
            expected = pipeline(1, prompts, seeds)
            with parallelize(pipeline, Scripted("F"), 1):
                torch.testing.assert_close(pipeline(1, prompts, seeds), expected)


def test_one_handle_is_learned_anew_in_each_run() -> None:
    pipeline = Pipeline(doubled)
    with parallelize(pipeline, "full", 1):
        for predict in (doubled, branches, single, swapped, three, doubled):
            pipeline.predict = predict
            for prompts, seeds in (BATCHES[2], BATCHES[0]):
                found = pipeline(5, prompts, seeds)
                torch.testing.assert_close(found, Pipeline(predict)(5, prompts, seeds))


def test_guidance_that_a_callback_ends_or_changes() -> None:
    def ending(unet: Any, latents: Tensor, time: Tensor, prompts: Tensor, step: int) -> Tensor:
        pipeline.guidance_scale = SCALE if step < 4 else 0.0
        return (doubled if step < 4 else single)(unet, latents, time, prompts, step)

    for prompts, seeds in BATCHES:
        pipeline = Pipeline(ending)
        expected = pipeline(9, prompts, seeds)
        with parallelize(pipeline, Scripted("FFSFFFSFF"), 1) as handle:
            found = pipeline(9, prompts, seeds)
            assert handle.trace.compact().count("S") == 2
        assert (found - expected).abs().max() < 0.05 * expected.abs().max()


class Cache:
    """What a pipeline adds in one of its two calls, by a switch that is in no argument."""

    def __init__(self) -> None:
        self.mode, self.held = "skip", torch.full((1,), 0.2)

    def read(self, sample: Tensor) -> Tensor:
        return self.held if self.mode == "read" else torch.zeros(1)


def switched(unet: Any, latents: Tensor, time: Tensor, prompts: Tensor, step: int) -> Tensor:
    cache = unet.cache
    cache.mode = "read"
    conditional = unet(latents, time, encoder_hidden_states=prompts, cache=cache)[0]
    cache.mode = "skip"
    negative = torch.full_like(prompts, NEGATIVE)
    return guided(unet(latents, time, encoder_hidden_states=negative, cache=cache)[0], conditional)


def hooked(unet: Any, latents: Tensor, time: Tensor, prompts: Tensor, step: int) -> Tensor:
    """The unconditional branch by a weaker network, as guidance by skipped layers makes it."""
    conditional = unet(latents, time, encoder_hidden_states=prompts)[0]
    weaker = unet.block.register_forward_hook(lambda _module, _inputs, output: output / 2)
    unconditional = unet(latents, time, encoder_hidden_states=torch.full_like(prompts, NEGATIVE))[0]
    weaker.remove()
    return guided(unconditional, conditional)


@pytest.mark.parametrize("predict", [switched, hooked])
def test_branches_that_differ_by_more_than_their_arguments_are_computed_as_they_are(predict: Callable[..., Tensor]) -> None:
    for size in (1, 2):
        pipeline = Pipeline(predict)
        pipeline.unet.cache = Cache()
        expected = pipeline(6, *BATCHES[1])
        with emulate(pipeline, Scripted("FFSSFF"), size) as handle:
            torch.testing.assert_close(pipeline(6, *BATCHES[1]), expected)
            assert handle.trace.compact() == "F6"


def filling(unet: Any, latents: Tensor, time: Tensor, prompts: Tensor, step: int) -> Tensor:
    """Each branch has a cache that its first call fills, as keys and values of a prompt."""
    if step == 0:
        unet.caches = [Filled(), Filled()]
    made = [
        unet(latents, time, encoder_hidden_states=prompt, cache=cache)[0]
        for prompt, cache in zip((prompts, torch.full_like(prompts, NEGATIVE)), unet.caches, strict=True)
    ]
    return guided(made[1], made[0])


class Filled:
    def __init__(self) -> None:
        self.held: Tensor | None = None

    def read(self, sample: Tensor) -> Tensor:
        if self.held is None:
            self.held = 0.1 * sample
        return self.held


def test_caches_that_the_first_call_of_each_branch_fills() -> None:
    pipeline = Pipeline(filling)
    expected = pipeline(8, *BATCHES[1])
    for run in (lambda: parallelize(pipeline, "full", 1), lambda: emulate(pipeline, "full", 2)):
        with run() as handle:
            torch.testing.assert_close(pipeline(8, *BATCHES[1]), expected)
            assert [step for step, _ in handle.trace.curves()[0]] == list(range(1, 8)), "learned from the second step"
    with emulate(pipeline, "full", 4), pytest.raises(UsageError, match="called with a Filled, whose rows cannot be divided"):
        pipeline(8, *BATCHES[1])


def test_a_doubled_batch_with_a_cache_is_one_prediction_of_all_its_rows() -> None:
    """The rows of the cache are those of the batch, and are neither reordered nor divided."""

    def cached(unet: Any, latents: Tensor, time: Tensor, prompts: Tensor, step: int) -> Tensor:
        both = torch.cat([prompts, torch.full_like(prompts, NEGATIVE)])
        cache = Cache()
        cache.mode, cache.held = "read", torch.tensor([0.4, 0.1]).repeat_interleave(len(prompts)).view(-1, 1, 1, 1)
        conditional, unconditional = unet(torch.cat([latents, latents]), time, encoder_hidden_states=both, cache=cache)[0].chunk(
            2
        )
        return guided(unconditional, conditional)

    for images in BATCHES[:2]:
        pipeline = Pipeline(cached)
        expected = pipeline(8, *images)
        with parallelize(pipeline, Scripted("FFHSFHSF"), 1) as handle:
            found = pipeline(8, *images)
            assert handle.trace.compact() == "F3 S1 F2 S1 F1"
        assert (found - expected).abs().max() < 0.05 * expected.abs().max()

        def run(made: Any, _: Handle, images: Any = images) -> Any:
            return made(8, *images)

        for latents in on_threads(lambda: Pipeline(cached), "full", 2, run):
            torch.testing.assert_close(latents, expected)


@pytest.mark.parametrize("predict", [doubled, branches, three, single])
def test_a_network_with_two_predictions_is_refused(predict: Callable[..., Tensor]) -> None:
    class Sounding(Network):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return (*super().forward(*args, **kwargs), further)

    for further in (torch.zeros(2, 8), torch.zeros(2, 8, 4)):  # a mask of tokens, and sound
        pipeline = Pipeline(predict)
        pipeline.unet = Sounding()
        expected = pipeline(4)
        handle = parallelize(pipeline, "full", 1)
        if further.ndim == 2:
            torch.testing.assert_close(pipeline(4), expected)
        else:
            with pytest.raises(UsageError, match="the denoiser returns 2 predictions, as of images and sound; allowed: one"):
                pipeline(4)
        handle.remove()


def test_three_branches_are_shared_by_the_ranks_of_a_pair() -> None:
    expected = Pipeline(three)(6)

    def run(pipeline: Any, handle: Handle) -> tuple[Tensor, list[int], int]:
        return pipeline(6), pipeline.unet.rows, handle.exchange.collectives

    ranks = on_threads(lambda: Pipeline(three), Scripted("FFSF"), 2, run)
    for latents, _, collectives in ranks:
        torch.testing.assert_close(latents, expected)
        assert collectives == 3 + 5, "one for each call of the first step, then one in a step"
    assert [rows for _, rows, _ in ranks] == [[1, 1, 1] + [1, 1] * 5] * 2, "two branches, and one (twice)"


def test_four_branches_in_one_batch_are_refused() -> None:
    def four(unet: Any, latents: Tensor, time: Tensor, prompts: Tensor, step: int) -> Tensor:
        branches = torch.tensor([NEGATIVE, OTHER, PROMPT, 1.0])
        prediction: Tensor = unet(torch.cat([latents] * 4), time, encoder_hidden_states=branches)[0]
        return prediction.chunk(4)[2]

    pipeline = Pipeline(four)
    handle = parallelize(pipeline, Scripted("FSF"), 1)
    with pytest.raises(UsageError, match="Pipeline calls its denoiser neither on one batch twice nor once per"):
        pipeline(3)
    handle.remove()


def test_a_cache_of_diffusers_is_refused_before_and_between_runs() -> None:
    pipeline = Pipeline(doubled)
    with parallelize(pipeline, "full", 1):
        pipeline.unet.is_cache_enabled = True
        with pytest.raises(UsageError, match="a cache of Diffusers' is enabled on the Network"):
            pipeline(3)
    with pytest.raises(UsageError, match="after disable_cache"):
        parallelize(pipeline, "full", 1)


def test_one_call_more_than_the_only_step_of_a_group_of_four() -> None:
    """Two images with the same noise look doubled; the second call of the step shows that they are not, and all starts anew."""
    images: tuple[list[float], list[int]] = ([PROMPT, 4.0], [0, 0])

    def run(pipeline: Any, handle: Handle) -> list[Tensor]:
        return [pipeline(steps, *images) for steps in (1, 5)]

    for found in on_threads(lambda: Pipeline(branches), "full", 4, run):
        for steps, latents in zip((1, 5), found, strict=True):
            torch.testing.assert_close(latents, Pipeline(branches)(steps, *images))


class Crowded(Network):
    """Takes inputs of as many entries as rows: of each row, of each column of the latents, and of each layer."""

    def forward(self, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, more: Any = None, **_: Any) -> tuple[Tensor]:
        (prediction,) = super().forward(sample, timestep, encoder_hidden_states)
        for layer in more["layers"]:
            prediction = prediction * layer
        strengths, sizes = more["strengths"], torch.tensor(more["sizes"])
        return (prediction * more["columns"] * (strengths * sizes).view(-1, 1, 1, 1),)


def crowded(unet: Any, latents: Tensor, time: Tensor, prompts: Tensor, step: int) -> Tensor:
    rows = 2 * len(prompts)
    more = {"columns": torch.linspace(1, 2, 4), "layers": [torch.tensor(1.1)] * rows, "sizes": [1 + i % 3 for i in range(rows)]}
    more["strengths"] = torch.linspace(0.5, 1, rows)
    both = torch.cat([torch.full_like(prompts, NEGATIVE), prompts])
    halves = unet(torch.cat([latents, latents]), time, encoder_hidden_states=both, more=more)[0].chunk(2)
    return guided(*halves)


@pytest.mark.parametrize("size", [2, 4])
def test_inputs_of_as_many_entries_as_rows_are_told_apart(size: int) -> None:
    def make() -> Pipeline:
        pipeline = Pipeline(crowded)
        pipeline.unet = Crowded()
        return pipeline

    expected = make()(6, *BATCHES[1])

    def run(pipeline: Any, _: Handle) -> Tensor:
        found: Tensor = pipeline(6, *BATCHES[1])
        return found

    for latents in on_threads(make, "full", size, run):
        torch.testing.assert_close(latents, expected)
