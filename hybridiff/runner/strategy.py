"""Lightning's distributed strategy, with groups."""

from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from hybridiff.cluster.signals import StopSignals
from hybridiff.parallel import Group, join_group

WORLD_TIMEOUT = timedelta(days=30)  # groups wait for one another at the start and the end only, however long the slowest draws


class GroupStrategy(DDPStrategy):
    """Consecutive ranks form groups; Lightning's own sharding by rank is not used.

    Args:
        group_size: Ranks that make one image together.
        timeout_s: Seconds after which a rank gives up waiting for another of its group.
        across_nodes: Whether a group may have ranks on several nodes.
    """

    def __init__(self, group_size: int, timeout_s: float, across_nodes: bool) -> None:
        super().__init__(timeout=WORLD_TIMEOUT)
        self._group_size = group_size
        self._timeout_s = timeout_s
        self._across_nodes = across_nodes
        self.group = Group()
        self._world: dist.ProcessGroup | None = None

    def setup_environment(self) -> None:
        """Joins the world's process group, then makes the groups: once, on all ranks alike."""
        super().setup_environment()
        self.group = join_group(self._group_size, self._timeout_s, self._across_nodes)
        if self.world_size > 1:  # gloo, as waiting for days must not keep a GPU busy
            self._world = dist.new_group(backend="gloo", timeout=WORLD_TIMEOUT)

    def end_together(self, signals: StopSignals, counts: Tensor) -> Tensor:
        """Waits until all ranks have come here, one has ended, or a signal came.

        Returns:
            The sum of all ranks' ``counts``; this rank's own if not all have come.

        A launcher of many nodes gives up some minutes after the first of them has ended: none may end before the slowest group.
        """
        if self._world is None:
            return counts
        summed = counts.clone()
        arrival = dist.all_reduce(summed, group=self._world, async_op=True)
        while not arrival.is_completed() and not signals.asked():
            signals.sleep(0.05)
        if not arrival.is_completed():
            return counts
        with suppress(RuntimeError):  # another rank has gone
            arrival.wait()
            return summed
        return counts
