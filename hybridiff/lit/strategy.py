"""Lightning's distributed strategy, with groups."""

from datetime import timedelta

from lightning.pytorch.strategies import DDPStrategy

from hybridiff.parallel import Group, join_group

WORLD_TIMEOUT = timedelta(days=30)  # groups wait for one another at the end only, for however long the slowest draws


class GroupStrategy(DDPStrategy):
    """Consecutive ranks form groups; Lightning's own sharding by rank is not used.

    Args:
        group_size: Ranks that make one image together.
        timeout_s: Seconds after which a rank gives up waiting for another of its group.
    """

    def __init__(self, group_size: int, timeout_s: float) -> None:
        super().__init__(timeout=WORLD_TIMEOUT)
        self._group_size = group_size
        self._timeout_s = timeout_s
        self.group = Group()

    def setup_environment(self) -> None:
        """Joins the world's process group, then makes the groups: once, on all ranks alike."""
        super().setup_environment()
        self.group = join_group(self._group_size, self._timeout_s)
