"""Groups of two and four whose ranks are threads: all styles as the reference, bit for bit, and one collective in a step."""

from typing import Any

import pytest
import torch

from hybridiff.parallel import Handle
from hybridiff.parallel.reference import emulate
from hybridiff.schedule import Adaptive
from tests.dist.tiny import SIZE, latents_of, tiny_sd3, tiny_xl
from tests.dist.tiny_families import BRANCHES, CASES
from tests.parallel.scripted import Scripted
from tests.parallel.threads import on_threads

ADAPTIVE = Adaptive(tolerance=3.0, min_full_steps=3)
STEPS = 8


def compare(name: str, schedule: Any, size: int, images: int, steps: int = STEPS, **options: Any) -> Handle:
    """A group's latents against those of the reference, on every rank and in two runs; returns a handle of the group."""
    case = CASES[name]
    reference = case.make()
    with emulate(reference, schedule, size):
        expected = case.generate(reference, images, steps, **options)

    def run(pipeline: Any, handle: Handle) -> tuple[Handle, torch.Tensor, torch.Tensor, int]:
        first = case.generate(pipeline, images, steps, **options)
        collectives = handle.exchange.collectives
        return handle, first, case.generate(pipeline, images, steps, **options), collectives

    ranks = on_threads(case.make, schedule, size, run)
    for handle, first, second, collectives in ranks:
        assert torch.equal(first, expected) and torch.equal(second, expected), f"rank {handle.group.rank}"
        assert collectives == ranks[0][-1]
    ranks[0][0].exchange.collectives = ranks[0][-1]
    return ranks[0][0]


FEW = [("flux", 1), ("flux-dev", 3)]
MORE = [(name, images) for name in ("flux", "chroma", "flux-dev", "hunyuan-image") for images in (1, 2, 3)]


@pytest.mark.parametrize(
    ("name", "images"), [*FEW, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE if case not in FEW)]
)
def test_four_ranks_run_full_and_adaptive_schedules_as_the_reference(name: str, images: int) -> None:
    handle = compare(name, "full", 4, images, 3)
    assert handle.exchange.collectives == (4 if name in BRANCHES else 3), "one in a step, and one more in that which is learned"
    assert "S" in compare(name, ADAPTIVE, 4, images).trace.compact()


@pytest.mark.parametrize(("size", "images"), [(2, 2), pytest.param(4, 1, marks=pytest.mark.slow), (4, 2)])
def test_half_steps_of_calls_per_branch(size: int, images: int) -> None:
    assert compare("flux", Scripted("FFHHSFHF"), size, images).trace.compact() == "F2 H2 S1 F1 H1 F1"


@pytest.mark.parametrize(("size", "images"), [(2, 1), (4, 1), (4, 2)])
def test_without_guidance_ranks_share_the_network_where_there_are_fewer_images(size: int, images: int) -> None:
    handle = compare("flux-dev", Scripted("FFHHSFPPhFHF"), size, images, 12)
    assert handle.trace.compact() == "F2 H2 S1 F1 P2 H1 F1 H1 F1"
    full = compare("flux-dev", Scripted("FFFFSFFFFFFF"), size, images, 12)
    assert handle.exchange.collectives - full.exchange.collectives <= 1, "one more after the step that kept all back"


@pytest.mark.parametrize(("size", "images"), [(2, 2), (4, 3), (4, 4)])
def test_without_guidance_ranks_share_the_images_else(size: int, images: int) -> None:
    assert compare("flux-dev", Scripted("FFHHSFPF"), size, images).trace.compact() == "F4 S1 F3"


@pytest.mark.parametrize("name", ["flux", "flux-dev"])
def test_a_half_step_before_any_recorded_full_one_is_full(name: str) -> None:
    assert compare(name, Scripted("FSHSHF"), 2, 1, 6).trace.compact() == "F1 S1 F1 S1 H1 F1"


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_prompts_padded_to_the_longest_of_a_call_have_half_steps(size: int) -> None:
    for images in (1, 3):
        assert compare("z-image", Scripted("FFHHSHFPHF"), size, images, 10).trace.compact() == "F2 H2 S1 H1 F2 H1 F1"
    assert compare("z-image-turbo", Scripted("FFHHSHFPHF"), size, 1, 10).trace.compact() == "F2 H2 S1 H1 F1 P1 H1 F1"


@pytest.mark.parametrize("make", [tiny_sd3, tiny_xl])
def test_known_doubled_pipelines_pay_nothing_for_the_other_styles(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybridiff.parallel.hook.network_state", None)  # nothing is compared
    monkeypatch.setattr("hybridiff.parallel.hook.object_states", None)
    ranks = on_threads(make, "full", 2, lambda pipeline, handle: (latents_of(pipeline, 3, 4), handle.exchange))
    prediction = 4 * 3 * 4 * SIZE * SIZE  # of three images in float32
    for latents, exchange in ranks:
        assert torch.equal(latents, ranks[0][0])
        assert (exchange.collectives, exchange.bytes_sent) == (4, 4 * prediction + 8), "8: the fingerprint of the first step"
