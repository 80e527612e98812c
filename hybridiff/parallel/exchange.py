"""The group's collectives, counted."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from hybridiff.parallel.mesh import Group


@dataclass
class Exchange:
    """Runs and counts the collectives of one group.

    Args:
        group: Whose ranks take part.
        collectives: Run so far.
        bytes_sent: By this rank, to each peer.
    """

    group: Group
    collectives: int = 0
    bytes_sent: int = 0

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all ranks of the group, in rank order; all of one shape and dtype."""
        if self.group.size == 1:
            return [tensor]
        tensor = tensor.contiguous()
        parts = [torch.empty_like(tensor) for _ in range(self.group.size)]
        dist.all_gather(parts, tensor, group=self.group.process_group)
        self.collectives += 1
        self.bytes_sent += tensor.numel() * tensor.element_size()
        return parts

    def gather_rows(self, tensor: Tensor, rows: int) -> Tensor:
        """Puts together a batch of which each rank holds ``share(rows)``: (rows, ...) on every rank."""
        return torch.cat(self.all_gather(tensor))[:rows]

    def share(self, rows: int, device: torch.device) -> Tensor:
        """The rows of a batch that this rank computes: consecutive, equally many on each rank, the last repeated to fill up."""
        each = -(-rows // self.group.size)
        start = self.group.rank * each
        return torch.arange(start, start + each, device=device).clamp_(max=rows - 1)
