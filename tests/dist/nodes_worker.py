"""One of two ranks, each of which takes itself to be on a node of its own; writes its errors. Arguments: rank, directory."""

import platform
import sys
from pathlib import Path

import torch.distributed as dist

from hybridiff import UsageError, parallelize
from hybridiff.parallel import join_group
from tests.dist.tiny import tiny_xl


def main() -> None:
    rank, directory = int(sys.argv[1]), Path(sys.argv[2])
    platform.node = lambda: f"node{rank}"
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    pipeline = tiny_xl()
    errors = []
    for make in (lambda: parallelize(pipeline), lambda: join_group(2, 60.0)):
        try:
            make()
        except UsageError as error:
            errors.append(str(error))
    (directory / f"{rank}.txt").write_text("\n".join(errors))
    parallelize(pipeline, across_nodes=True).remove()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
