"""The section ``parallel``."""

from dataclasses import dataclass, field, is_dataclass
from typing import Literal, get_args

from hybridiff.errors import require, require_choice
from hybridiff.schedule import Adaptive, Schedule

GroupSize = Literal[1, 2, 4]
GROUP_SIZES = get_args(GroupSize)
MAX_TIMEOUT_S = 86_400


@dataclass(frozen=True)
class ParallelConfig:
    """How ranks generate images together.

    Args:
        group_size: ranks that generate one image together; of 2, each computes one guidance branch.
        schedule: rule for the steps that are computed in full: adaptive (chosen by the extrapolation error), full (all of them),
            paper (one window of half steps), refresh (half steps, renewed by full ones), async (AsyncDiff), or the class path of
            your own. Its options are given as --parallel.schedule.tolerance 0.2, in YAML as class_path and init_args.
        timeout_s: seconds after which a rank gives up waiting for another of its group.
        across_nodes: whether a group may have ranks on several nodes, whose network then takes part in every step.
        leave_idle: under SLURM, whether GPUs of a node may stay idle, as where their number is odd and a group has 2 ranks.
    """

    group_size: GroupSize = 1
    schedule: Schedule = field(default_factory=Adaptive)
    timeout_s: float = 120.0
    across_nodes: bool = False
    leave_idle: bool = False

    def __post_init__(self) -> None:
        require_choice("parallel.group_size", self.group_size, GROUP_SIZES)
        require(
            0 < self.timeout_s <= MAX_TIMEOUT_S, "parallel.timeout_s", self.timeout_s, f"more than 0, to {MAX_TIMEOUT_S} seconds"
        )
        kind = type(self.schedule)
        allowed = "a schedule that is a frozen dataclass, whose fields are its options"
        require(isinstance(self.schedule, Schedule) and is_dataclass(kind), "parallel.schedule", kind.__name__, allowed)
