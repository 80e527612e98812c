"""Who computes what, who lacks what, and rows of batches: pure functions."""

import pytest
import torch

from hybridiff.models.cuts import Atom, Cut
from hybridiff.parallel.layout import Ledger, Part, Transfer, deliveries, parts, results, segments
from hybridiff.parallel.rows import Leaf, assemble, layouts, leaves, pick, rebuilt
from hybridiff.schedule import StepKind

# a -> b -> c -> d, and a is read by d too, as through a skip connection
ATOMS = (Atom("a", ()), Atom("b", ("a",)), Atom("c", ("b",)), Atom("d", ("c", "a")))
NESTED = Cut(ATOMS, (1, 0, 0, 1), 2, (5, 5), (8, 2, 2, 8))  # segment 0 reads a, segment 1 reads c
CHAIN = Cut(ATOMS[:3], (0, 1, 1), 2, (5, 5), (8, 2, 2))  # segment 1 reads a
FOUR = Cut(ATOMS, (0, 1, 2, 3), 4, (5, 5, 5, 5), (8, 2, 2, 8))


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
def test_parts(kind: str, size: int, images: int, expected: list[tuple[tuple[int, ...], int | None]]) -> None:
    assert parts(StepKind(kind), size, images) == tuple(Part(rows, segment) for rows, segment in expected)


def test_every_row_is_computed_in_order_whatever_the_group() -> None:
    for size in (1, 2, 4):
        for images in range(1, 9):
            rows = [row for part in parts(StepKind.FULL, size, images) for row in part.rows]
            assert list(dict.fromkeys(rows)) == list(range(2 * images))
            for kind in (StepKind.HALF, StepKind.PIPELINED):
                every = parts(kind, size, images)
                for segment in range(segments(every)):
                    of_segment = [row for part in every if part.segment in (None, segment) for row in part.rows]
                    start = images if kind is StepKind.HALF else 0
                    assert list(dict.fromkeys(of_segment)) == list(range(start, 2 * images))


def test_deliveries_go_from_owners_to_readers_of_the_lane() -> None:
    every = parts(StepKind.HALF, 2, 2)
    assert deliveries(every, NESTED) == (Transfer("a", 1, 0, (2, 3)), Transfer("c", 0, 1, (2, 3)))
    assert deliveries(every, CHAIN) == (Transfer("a", 0, 1, (2, 3)),)
    every = parts(StepKind.HALF, 4, 3)
    assert deliveries(every, CHAIN) == (Transfer("a", 0, 2, (3, 4)), Transfer("a", 1, 3, (5,)))
    assert results(every, CHAIN) == (2, 3)


def test_in_four_segments_an_output_may_have_two_readers() -> None:
    sent = deliveries(parts(StepKind.HALF, 4, 1), FOUR)
    assert sent == tuple(Transfer(*t, (1,)) for t in (("a", 0, 1), ("a", 0, 3), ("b", 1, 2), ("c", 2, 3)))


def after_full(size: int, images: int, rows_needed: int = 0) -> Ledger:
    """What is held after a full step at step 0, of the rows from ``rows_needed`` on."""
    ledger = Ledger(size)
    for rank, part in enumerate(parts(StepKind.FULL, size, images)):
        if min(part.rows) >= rows_needed:
            ledger.note(["a", "b", "c"], rank, part.rows, 0)
    return ledger


def test_after_a_full_step_the_unconditional_rank_fetches_what_it_reads() -> None:
    every = parts(StepKind.HALF, 2, 2)
    assert after_full(2, 2).missing(every, NESTED) == (Transfer("a", 1, 0, (2, 3)),)
    assert after_full(2, 2, rows_needed=2).missing(every, NESTED) == (Transfer("a", 1, 0, (2, 3)),)
    assert after_full(2, 2).missing(every, CHAIN) == ()


def test_before_a_pipelined_step_each_rank_fetches_the_other_branch() -> None:
    every = parts(StepKind.PIPELINED, 2, 1)
    assert after_full(2, 1).missing(every, NESTED) == (Transfer("a", 1, 0, (1,)), Transfer("c", 0, 1, (0,)))


def test_lanes_of_a_pipelined_step_fetch_from_lanes_of_images() -> None:
    every = parts(StepKind.PIPELINED, 4, 3)  # rank 2 runs segment 1 of the unconditional rows, rank 3 of the conditional ones
    assert after_full(4, 3).missing(every, CHAIN) == (
        Transfer("a", 0, 2, (0, 1)),
        Transfer("a", 1, 2, (2,)),
        Transfer("a", 2, 3, (3, 4)),
    )


def test_what_was_delivered_is_not_fetched_again_and_what_was_kept_back_is() -> None:
    every = parts(StepKind.HALF, 2, 1)
    ledger = after_full(2, 1)
    ledger.note(["a"], 1, (1,), 1)
    ledger.note(["c"], 0, (1,), 1)
    fetched = ledger.missing(every, NESTED)
    assert fetched == (Transfer("a", 1, 0, (1,)), Transfer("c", 0, 1, (1,)))
    for transfer in fetched:
        ledger.deliver(transfer)
    assert ledger.missing(every, NESTED) == ()


def test_reading_what_nobody_computed_is_an_error_of_ours() -> None:
    with pytest.raises(AssertionError, match="a segment reads a before any full step"):
        Ledger(2).missing(parts(StepKind.HALF, 2, 1), NESTED)


def test_rows_are_picked_and_assembled() -> None:
    batch = torch.arange(8.0).view(4, 2)
    assert pick(batch, (1, 2)).data_ptr() == batch[1:].data_ptr()  # no copy
    assert torch.equal(pick(batch, (3, 3)), batch[[3, 3]])
    held = [((0, 1), batch[:2]), ((2, 2), batch[[2, 2]]), ((2,), batch[2:3]), ((3,), batch[3:])]
    assert torch.equal(assemble((0, 1, 2, 3), held), batch)
    with pytest.raises(AssertionError, match=r"rows \[0, 1\] are held where \[0, 1, 2\] are wanted"):
        assemble((0, 1, 2), held[:1])


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_layout_goes_through_flat_memory_and_back(channels_last: bool) -> None:
    tensor = torch.arange(120.0).view(2, 3, 4, 5)
    if channels_last:
        tensor = tensor.to(memory_format=torch.channels_last)
    leaf = Leaf.of(tensor)
    flat = leaf.flat(tensor)
    assert flat.data_ptr() == tensor.data_ptr() and leaf.numel(2) == 120 == flat.numel()
    joined = leaf.join([tensor[:1], tensor[1:]])
    for restored in (leaf.shaped(flat), joined, leaf.dense(tensor.contiguous())):
        assert torch.equal(restored, tensor) and restored.stride() == tensor.stride()
    assert leaf.zeros(7).shape == (7, 3, 4, 5) and not leaf.zeros(7).any()


def test_outputs_of_any_structure_are_taken_apart_and_rebuilt() -> None:
    one, two = torch.zeros(2, 3), torch.ones(2, 4)
    for output in (one, (one, two), (None, one), ((two,), None, one)):
        layout = layouts(output)
        rebuilt_output = rebuilt(layout, leaves(output))
        assert str(rebuilt_output) == str(output) and layouts(rebuilt_output) == layout
