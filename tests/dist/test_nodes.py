"""A library user's groups lie inside a node unless asked otherwise."""

from pathlib import Path

from tests.dist.processes import finish, kill, start


def test_a_group_on_two_nodes_is_refused_on_both_unless_asked_for(tmp_path: Path) -> None:
    processes = [start(1, "tests/dist/nodes_worker.py", str(rank), str(tmp_path)) for rank in range(2)]
    try:
        output = "".join(finish(process) for process in processes)
    finally:
        for process in processes:
            kill(process)
    assert [process.returncode for process in processes] == [0, 0], output
    for rank in range(2):
        refusal = (
            "group_size is 2, and ranks 0 to 1 are on the nodes node0, node1; allowed: groups inside a node, across_nodes=True, "
            "or a group= of your own"
        )
        assert (tmp_path / f"{rank}.txt").read_text().splitlines() == [refusal] * 2
