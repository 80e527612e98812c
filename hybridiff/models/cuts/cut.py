"""A cut of a denoiser: which segment runs which block, and which outputs travel between segments."""

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Block:
    """A submodule that one rank runs in a half or pipelined step; the others return its cached output.

    Args:
        path: path of the module in the denoiser.
        inputs: paths of the blocks whose outputs it reads: the one before it in the chain, and skip connections.
    """

    path: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Cut:
    """A denoiser cut into segments, one per rank, numbered by how many elements they read from others, fewest first.

    Args:
        blocks: blocks in order of execution.
        owners: segment of each block.
        segments: number of segments.
        flops: FLOPs of each segment for one batch row.
        elements: elements of each block's output for one batch row.
    """

    blocks: tuple[Block, ...]
    owners: tuple[int, ...]
    segments: int
    flops: tuple[int, ...]
    elements: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.blocks) == len(self.owners) == len(self.elements)
        assert set(self.owners) == set(range(self.segments)) and len(self.flops) == self.segments

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {block.path: index for index, block in enumerate(self.blocks)}

    def owner(self, path: str) -> int:
        """The segment that runs the block of a path; ``KeyError`` if there is none."""
        return self.owners[self._indices[path]]

    @cached_property
    def crossing(self) -> tuple[tuple[str, int], ...]:
        """Outputs that a segment reads from another: (path of the producing block, reading segment), in order of execution."""
        reads = {(path, self.owner(block.path)) for block in self.blocks for path in block.inputs}
        crossing = [(path, segment) for path, segment in reads if self.owner(path) != segment]
        return tuple(sorted(crossing, key=lambda pair: (self._indices[pair[0]], pair[1])))

    def reads(self, segment: int) -> int:
        """Elements that a segment reads from others in a half step, for one batch row."""
        return sum(self.elements[self._indices[path]] for path, reader in self.crossing if reader == segment)

    @property
    def largest_share(self) -> float:
        """The largest segment's fraction of the FLOPs, 0 to 1: the cost of a half step in units of one network pass."""
        return max(self.flops) / sum(self.flops)

    @property
    def prediction(self) -> int:
        """The segment of the last block, which has the denoiser's output."""
        return self.owners[-1]
