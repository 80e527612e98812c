"""What a cut is: which segment runs which submodule, and what has to travel between segments."""

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Atom:
    """A submodule that one rank runs and the others stand in for.

    Args:
        path: Of the module in the denoiser.
        inputs: Paths of the atoms whose output it reads: the one before it in the chain, and skip connections.
    """

    path: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Cut:
    """A denoiser cut into segments, one per rank.

    Segments are numbered by how many elements they read from others, the fewest first.

    Args:
        atoms: In order of execution.
        owners: Segment of each atom.
        segments: How many there are.
        flops: Of each segment, counted for one batch row.
        elements: In each atom's output, for one batch row.
    """

    atoms: tuple[Atom, ...]
    owners: tuple[int, ...]
    segments: int
    flops: tuple[int, ...]
    elements: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.atoms) == len(self.owners) == len(self.elements)
        assert set(self.owners) == set(range(self.segments)) and len(self.flops) == self.segments

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {atom.path: index for index, atom in enumerate(self.atoms)}

    def owner(self, path: str) -> int:
        """The segment that runs an atom; ``KeyError`` if there is none of that path."""
        return self.owners[self._indices[path]]

    @cached_property
    def crossing(self) -> tuple[tuple[str, int], ...]:
        """Outputs that a segment reads from another: (path of the producer, reading segment), in order of atoms."""
        reads = {(path, self.owner(atom.path)) for atom in self.atoms for path in atom.inputs}
        crossing = [(path, segment) for path, segment in reads if self.owner(path) != segment]
        return tuple(sorted(crossing, key=lambda pair: (self._indices[pair[0]], pair[1])))

    def reads(self, segment: int) -> int:
        """Elements that a segment reads from others in a half step, for one batch row."""
        return sum(self.elements[self._indices[path]] for path, reader in self.crossing if reader == segment)

    @property
    def largest_share(self) -> float:
        """The largest segment's share of the counted FLOPs: what a half step costs, in units of one network pass."""
        return max(self.flops) / sum(self.flops)

    @property
    def prediction(self) -> int:
        """The segment whose atom comes last, and which therefore has the denoiser's output."""
        return self.owners[-1]
