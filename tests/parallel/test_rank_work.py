"""Work of ranks, transfers between them, and rows of batches: pure functions."""

import pytest
import torch

from hybridiff.models.cuts import Block, Cut
from hybridiff.parallel.activations import TensorLayout, build_output, output_layout, output_tensors
from hybridiff.parallel.call import assemble_rows, select_rows
from hybridiff.parallel.rank_work import (
    RankWork,
    Transfer,
    VersionTracker,
    predicting_ranks,
    segment_count,
    transfers_after,
    work_of_ranks,
)
from hybridiff.schedule import StepKind

# a -> b -> c -> d, and a is read by d too, as through a skip connection
BLOCKS = (Block("a", ()), Block("b", ("a",)), Block("c", ("b",)), Block("d", ("c", "a")))
NESTED = Cut(BLOCKS, (1, 0, 0, 1), 2, (5, 5), (8, 2, 2, 8))  # segment 0 reads a, segment 1 reads c
CHAIN = Cut(BLOCKS[:3], (0, 1, 1), 2, (5, 5), (8, 2, 2))  # segment 1 reads a
FOUR = Cut(BLOCKS, (0, 1, 2, 3), 4, (5, 5, 5, 5), (8, 2, 2, 8))


@pytest.mark.parametrize(
    ("kind", "size", "images", "expected"),
    [
        ("full", 1, 2, [((0, 1, 2, 3), None)]),
        ("half", 1, 2, [((2, 3), None)]),
        ("pipelined", 1, 1, [((0, 1), None)]),
        ("full", 2, 2, [((0, 1), None), ((2, 3), None)]),
        ("half", 2, 2, [((2, 3), 0), ((2, 3), 1)]),
        ("pipelined", 2, 1, [((0, 1), 0), ((0, 1), 1)]),
        ("full", 4, 1, [((0,), None), ((0,), None), ((1,), None), ((1,), None)]),
        ("half", 4, 1, [((1,), 0), ((1,), 1), ((1,), 2), ((1,), 3)]),
        ("pipelined", 4, 1, [((0,), 0), ((1,), 0), ((0,), 1), ((1,), 1)]),
        ("full", 4, 3, [((0, 1), None), ((2, 2), None), ((3, 4), None), ((5, 5), None)]),
        ("half", 4, 3, [((3, 4), 0), ((5, 5), 0), ((3, 4), 1), ((5, 5), 1)]),
        ("pipelined", 4, 3, [((0, 1, 2), 0), ((3, 4, 5), 0), ((0, 1, 2), 1), ((3, 4, 5), 1)]),
    ],
)
def test_work_of_ranks(kind: str, size: int, images: int, expected: list[tuple[tuple[int, ...], int | None]]) -> None:
    assert work_of_ranks(StepKind(kind), size, images) == tuple(RankWork(rows, segment) for rows, segment in expected)


def test_every_row_is_computed_in_order_for_any_group() -> None:
    for size in (1, 2, 4):
        for images in range(1, 9):
            rows = [row for part in work_of_ranks(StepKind.FULL, size, images) for row in part.rows]
            assert list(dict.fromkeys(rows)) == list(range(2 * images))
            for kind in (StepKind.HALF, StepKind.PIPELINED):
                every = work_of_ranks(kind, size, images)
                for segment in range(segment_count(every)):
                    of_segment = [row for part in every if part.segment in (None, segment) for row in part.rows]
                    start = images if kind is StepKind.HALF else 0
                    assert list(dict.fromkeys(of_segment)) == list(range(start, 2 * images))


def test_transfers_after_a_step_go_from_owners_to_readers_of_the_lane() -> None:
    every = work_of_ranks(StepKind.HALF, 2, 2)
    assert transfers_after(every, NESTED) == (Transfer("a", 1, 0, (2, 3)), Transfer("c", 0, 1, (2, 3)))
    assert transfers_after(every, CHAIN) == (Transfer("a", 0, 1, (2, 3)),)
    every = work_of_ranks(StepKind.HALF, 4, 3)
    assert transfers_after(every, CHAIN) == (Transfer("a", 0, 2, (3, 4)), Transfer("a", 1, 3, (5,)))
    assert predicting_ranks(every, CHAIN) == (2, 3)


def test_in_four_segments_an_output_may_have_two_readers() -> None:
    sent = transfers_after(work_of_ranks(StepKind.HALF, 4, 1), FOUR)
    assert sent == tuple(Transfer(*t, (1,)) for t in (("a", 0, 1), ("a", 0, 3), ("b", 1, 2), ("c", 2, 3)))


def after_full(size: int, images: int, rows_needed: int = 0) -> VersionTracker:
    """What is held after a full step at step 0, of the rows from ``rows_needed`` on."""
    versions = VersionTracker(size)
    for rank, part in enumerate(work_of_ranks(StepKind.FULL, size, images)):
        if min(part.rows) >= rows_needed:
            versions.record_computed(["a", "b", "c"], rank, part.rows, 0)
    return versions


def test_after_a_full_step_the_unconditional_rank_fetches_what_it_reads() -> None:
    every = work_of_ranks(StepKind.HALF, 2, 2)
    assert after_full(2, 2).transfers_before(every, NESTED) == (Transfer("a", 1, 0, (2, 3)),)
    assert after_full(2, 2, rows_needed=2).transfers_before(every, NESTED) == (Transfer("a", 1, 0, (2, 3)),)
    assert after_full(2, 2).transfers_before(every, CHAIN) == ()


def test_before_a_pipelined_step_each_rank_fetches_the_other_branch() -> None:
    every = work_of_ranks(StepKind.PIPELINED, 2, 1)
    assert after_full(2, 1).transfers_before(every, NESTED) == (Transfer("a", 1, 0, (1,)), Transfer("c", 0, 1, (0,)))


def test_lanes_of_a_pipelined_step_fetch_from_lanes_of_images() -> None:
    every = work_of_ranks(
        StepKind.PIPELINED, 4, 3
    )  # rank 2 runs segment 1 of the unconditional rows, rank 3 of the conditional ones
    assert after_full(4, 3).transfers_before(every, CHAIN) == (
        Transfer("a", 0, 2, (0, 1)),
        Transfer("a", 1, 2, (2,)),
        Transfer("a", 2, 3, (3, 4)),
    )


def test_transferred_rows_are_not_fetched_again_and_others_are() -> None:
    every = work_of_ranks(StepKind.HALF, 2, 1)
    versions = after_full(2, 1)
    versions.record_computed(["a"], 1, (1,), 1)
    versions.record_computed(["c"], 0, (1,), 1)
    fetched = versions.transfers_before(every, NESTED)
    assert fetched == (Transfer("a", 1, 0, (1,)), Transfer("c", 0, 1, (1,)))
    for transfer in fetched:
        versions.record_transfer(transfer)
    assert versions.transfers_before(every, NESTED) == ()


def test_reading_an_output_that_no_rank_computed_is_an_assertion() -> None:
    with pytest.raises(AssertionError, match="a segment reads a before any full step"):
        VersionTracker(2).transfers_before(work_of_ranks(StepKind.HALF, 2, 1), NESTED)


def test_rows_are_selected_and_assembled() -> None:
    batch = torch.arange(8.0).view(4, 2)
    assert select_rows(batch, (1, 2)).data_ptr() == batch[1:].data_ptr()  # no copy
    assert torch.equal(select_rows(batch, (3, 3)), batch[[3, 3]])
    held = [((0, 1), batch[:2]), ((2, 2), batch[[2, 2]]), ((2,), batch[2:3]), ((3,), batch[3:])]
    assert torch.equal(assemble_rows((0, 1, 2, 3), held), batch)
    with pytest.raises(AssertionError, match=r"the pieces have rows \[0, 1\], not \[0, 1, 2\]"):
        assemble_rows((0, 1, 2), held[:1])


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_layout_is_flattened_and_restored(channels_last: bool) -> None:
    tensor = torch.arange(120.0).view(2, 3, 4, 5)
    if channels_last:
        tensor = tensor.to(memory_format=torch.channels_last)
    leaf = TensorLayout.of(tensor)
    flat = leaf.flatten(tensor)
    assert flat.data_ptr() == tensor.data_ptr() and leaf.numel(2) == 120 == flat.numel()
    joined = leaf.join([tensor[:1], tensor[1:]])
    for restored in (leaf.unflatten(flat), joined, leaf.dense(tensor.contiguous())):
        assert torch.equal(restored, tensor) and restored.stride() == tensor.stride()
    assert leaf.zeros(7).shape == (7, 3, 4, 5) and not leaf.zeros(7).any()


def test_outputs_of_any_structure_are_rebuilt_from_their_tensors() -> None:
    one, two = torch.zeros(2, 3), torch.ones(2, 4)
    for output in (one, (one, two), (None, one), ((two,), None, one)):
        layout = output_layout(output)
        rebuilt_output = build_output(layout, output_tensors(output))
        assert str(rebuilt_output) == str(output) and output_layout(rebuilt_output) == layout
