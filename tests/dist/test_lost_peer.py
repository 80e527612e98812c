"""A rank that raises, is killed or hangs ends its peer with a clear error; a rank that is slow to load does not."""

from pathlib import Path

import pytest

from tests.dist.processes import finish, kill, start

TIMEOUT_S = 5.0
END_S = 100.0  # by which both ranks have ended


def outcome(fate: str, directory: Path, timeout_s: float = TIMEOUT_S, ranks: tuple[int, ...] = (0,)) -> str:
    """What ranks saw, a line each, when this happened to rank 1."""
    processes = [start(1, "tests/dist/lost_worker.py", str(rank), fate, str(directory), str(timeout_s)) for rank in range(2)]
    try:
        output = "".join(finish(processes[rank], END_S) for rank in ranks)
    finally:
        for process in processes:
            kill(process)
    assert all((directory / f"{rank}.txt").exists() for rank in ranks), output + processes[1].communicate()[0]
    return "\n".join((directory / f"{rank}.txt").read_text() for rank in ranks)


@pytest.mark.parametrize("fate", ["raises", "killed"])
def test_a_rank_that_ends_ends_its_peer_before_the_timeout(fate: str, tmp_path: Path) -> None:
    _, _, message = outcome(fate, tmp_path, timeout_s=2 * END_S).partition(" ")
    assert message.startswith("rank 1 of the group did not answer, after ") and "\n" not in message


def test_a_silent_rank_is_given_up_after_the_timeout(tmp_path: Path) -> None:
    waited, _, message = outcome("silent", tmp_path).partition(" ")
    assert message.startswith("rank 1 of the group did not answer, after ")
    assert float(waited) >= TIMEOUT_S


def test_a_rank_may_load_for_longer_than_the_timeout(tmp_path: Path) -> None:
    assert outcome("late", tmp_path) == "finished"


def test_a_rank_that_alone_leaves_a_run_and_generates_again_gets_an_error_as_does_its_peer(tmp_path: Path) -> None:
    said = [line.partition(" ") for line in outcome("again", tmp_path, ranks=(0, 1)).splitlines()]
    assert said[0][2].startswith("rank 1 of the group did not answer, after ")
    assert said[1][2].startswith("this rank left a run before its end, and rank 0 of the group did not, within ")


def test_ranks_that_leave_a_run_together_may_generate_again(tmp_path: Path) -> None:
    assert outcome("both again", tmp_path, ranks=(0, 1)) == "finished\nfinished"
