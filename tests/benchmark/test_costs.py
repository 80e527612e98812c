"""What is expected of a pair, from the costs of single steps."""

import pytest

from hybridiff.models.cuts import choose_cut
from hybridiff.schedule import StepKind
from jobs.benchmark.config import CostsConfig
from jobs.benchmark.costs import expect, measure_costs
from jobs.benchmark.ideal import read_pattern
from jobs.benchmark.untrained import random_embeddings, untrained_mmdit, untrained_pipeline


def test_expected_speedups() -> None:
    counts = {kind: read_pattern("F2 H2 S4").count(kind) for kind in StepKind}
    found = expect(both_ms=10.0, branch_ms=6.0, segment_ms=4.0, counts=counts)
    assert found.pair == pytest.approx(80 / (2 * 6 + 2 * 4))
    assert found.alone == pytest.approx(80 / (2 * 10 + 2 * 6))


def test_each_segment_runs_its_own_atoms_and_leaves_the_network_as_it_was() -> None:
    denoiser = untrained_mmdit(blocks=4, heads=1).eval()
    pipeline = untrained_pipeline(denoiser)
    calls: list[tuple[str, int]] = []
    for index, block in enumerate(denoiser.transformer_blocks):
        block.attn.to_q.register_forward_hook(lambda _module, _args, out, i=index: calls.append((f"{i}", len(out))))
    seen: list[tuple[tuple, dict]] = []
    watch = denoiser.register_forward_pre_hook(lambda _module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    pipeline(**random_embeddings(pipeline, [0], 4), num_inference_steps=1, height=64, width=64, output_type="latent")
    watch.remove()
    calls.clear()
    costs = measure_costs(denoiser, *seen[0], CostsConfig(patterns=["F1 H1"], repeats=1))
    assert len(costs.segments_ms) == 2 and costs.both_ms > 0 and costs.branch_ms > 0
    assert list(costs.expected) == ["F1 H1"]
    assert choose_cut(denoiser, *seen[0], 2).owners == (0, 0, 1, 1)
    one = [("0", 1), ("1", 1), ("2", 1), ("3", 1)]
    turn = [(name, 2) for name, _ in one] + one + one[:2] + one[2:]
    assert calls == one + 2 * turn
