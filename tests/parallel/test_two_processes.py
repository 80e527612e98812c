"""Two ranks over gloo with tiny networks, forked and so in a second: what tests/dist checks of whole jobs, in many more cases."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from hybridiff.parallel import PeerLost, parallelize
from hybridiff.parallel.reference import emulate
from tests.dist.tiny import latents_of, tiny_sd3, tiny_xl
from tests.parallel.scripted import Scripted

END_S = 100.0
SCRIPT = "FFHHSHFPF"
PIPELINES = {"xl": tiny_xl, "sd3": tiny_sd3}


def fork_ranks(work: Callable[[int], None], folder: Path) -> list[int]:
    """Does the work in one process for each of two ranks of a group; their exit codes, or negative signals."""
    ranks = [os.fork() or run_rank(work, rank, folder) for rank in range(2)]
    ended: dict[int, int] = {}
    deadline = time.monotonic() + END_S
    while len(ended) < len(ranks):
        for rank in set(ranks) - set(ended):
            if time.monotonic() > deadline:
                os.kill(rank, signal.SIGKILL)
            pid, status = os.waitpid(rank, os.WNOHANG)
            if pid:
                ended[rank] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return [ended[rank] for rank in ranks]


def run_rank(work: Callable[[int], None], rank: int, folder: Path) -> int:
    """Ends the process; what it raised is in ``rank.error``."""
    code = 1
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
        work(rank)
        code = 0
    except BaseException as error:
        (folder / f"{rank}.error").write_text(f"{type(error).__name__}: {error}")
    finally:
        os._exit(code)


def errors(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.glob("*.error"))}


@pytest.mark.parametrize("kind", PIPELINES)
def test_both_ranks_have_the_latents_of_the_reference(kind: str, tmp_path: Path) -> None:
    def work(rank: int) -> None:
        pipeline = PIPELINES[kind]()
        parallelize(pipeline, Scripted(SCRIPT), timeout_s=END_S)
        torch.save([latents_of(pipeline, 3, len(SCRIPT)) for _ in range(2)], tmp_path / f"{rank}.pt")

    assert fork_ranks(work, tmp_path) == [0, 0], errors(tmp_path)
    pipeline = PIPELINES[kind]()
    emulate(pipeline, Scripted(SCRIPT), 2)
    expected = latents_of(pipeline, 3, len(SCRIPT))
    for rank in range(2):
        for latents in torch.load(tmp_path / f"{rank}.pt"):
            assert torch.equal(latents, expected)


def test_a_killed_rank_ends_its_peer_before_the_timeout(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        pipeline = tiny_xl()
        parallelize(pipeline, Scripted(SCRIPT), timeout_s=2 * END_S)

        def at_step(_: object, step: int, *__: object) -> dict[str, object]:
            if step == 3 and rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return {}

        with pytest.raises(PeerLost, match=r"^rank 1 of the group did not answer, after "):
            latents_of(pipeline, 1, len(SCRIPT), callback_on_step_end=at_step)

    assert fork_ranks(work, tmp_path) == [0, -signal.SIGKILL], errors(tmp_path)
