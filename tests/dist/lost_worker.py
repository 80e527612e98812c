"""One of two ranks of a pair in which rank 1 comes late, raises, is killed, or falls silent; each writes what it saw.

Or rank 1 catches what it raised and generates again, or both ranks do.

Arguments: the rank, what happens to rank 1, the directory that both share, and timeout_s.
"""

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hybridiff.parallel import PeerLost, parallelize
from tests.dist.tiny import latents_of, tiny_xl
from tests.parallel.scripted import Scripted


def main() -> None:
    torch.set_num_threads(1)
    rank, fate, directory, timeout_s = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), float(sys.argv[4])
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    pipeline = tiny_xl()
    if fate == "late" and rank == 1:
        time.sleep(2 * timeout_s)
    # An exchange of a full step that meets one of a first step, which is larger, would end the process.
    parallelize(pipeline, Scripted("FFFFFFFF" if fate == "again" else "FFHHHHFF"), timeout_s=timeout_s)
    when = {"step": 0.0}

    def at_step(_: Any, step: int, *__: Any) -> dict[str, Any]:
        if step == 3 and (rank == 1 or fate == "both again"):
            end(fate, directory)
        when["step"] = time.monotonic()
        return {}

    try:
        if fate.endswith("again") and (rank == 1 or fate == "both again"):
            with suppress(ValueError):
                latents_of(pipeline, 1, 8, callback_on_step_end=at_step)
            latents_of(pipeline, 1, 6)
        else:
            latents_of(pipeline, 1, 8, callback_on_step_end=at_step)
        (directory / f"{rank}.txt").write_text("finished")
    except PeerLost as error:
        (directory / f"{rank}.txt").write_text(f"{time.monotonic() - when['step']:.1f} {error}")


def end(fate: str, directory: Path) -> None:
    if fate == "raises" or fate.endswith("again"):
        raise ValueError("rank 1 met something unexpected")
    if fate == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    while fate == "silent" and not (directory / "0.txt").exists():
        time.sleep(0.1)


if __name__ == "__main__":
    main()
