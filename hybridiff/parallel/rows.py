"""Rows of batches: taken, put together, and made stand-ins for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def pick(tensor: Tensor, positions: Sequence[int]) -> Tensor:
    """Some rows of a tensor: a view where they are consecutive."""
    first = positions[0]
    if tuple(positions) == tuple(range(first, first + len(positions))):
        return tensor[first : first + len(positions)]
    return tensor[torch.tensor(positions, device=tensor.device)]


def assemble(wanted: Sequence[int], held: Sequence[tuple[Sequence[int], Tensor]]) -> Tensor:
    """A batch of the wanted rows, contiguous, from pieces that together hold them in this order; repetitions are left out."""
    pieces, seen = [], list[int]()
    for rows, tensor in held:
        new = [i for i, row in enumerate(rows) if row not in seen and row not in rows[:i]]
        seen += [rows[i] for i in new]
        if new:
            pieces.append(pick(tensor, new))
    assert seen == list(wanted), f"rows {seen} are held where {list(wanted)} are wanted"
    return torch.cat(pieces).contiguous()


@dataclass(frozen=True)
class Leaf:
    """How one tensor of an atom's output is laid out.

    Args:
        shape: Of one row.
        channels_last: Whether memory runs over channels fastest; else it is contiguous.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    channels_last: bool

    @classmethod
    def of(cls, tensor: Tensor) -> "Leaf":
        """The layout of a tensor (rows, ...)."""
        last = tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
        return cls(tuple(tensor.shape[1:]), tensor.dtype, tensor.device, last)

    def flat(self, tensor: Tensor) -> Tensor:
        """A tensor (rows, ...) in the order of memory: what is sent."""
        return (tensor.permute(0, 2, 3, 1) if self.channels_last else tensor).reshape(-1)

    def shaped(self, flat: Tensor) -> Tensor:
        """The inverse of ``flat``: a view (rows, ...)."""
        if not self.channels_last:
            return flat.view(-1, *self.shape)
        channels, height, width = self.shape
        return flat.view(-1, height, width, channels).permute(0, 3, 1, 2)

    def numel(self, rows: int) -> int:
        """Elements of a tensor of so many rows."""
        return rows * torch.Size(self.shape).numel()

    def join(self, pieces: Sequence[Tensor]) -> Tensor:
        """A tensor of this layout from single rows (1, ...)."""
        return self.shaped(torch.cat([self.flat(piece) for piece in pieces]))

    def dense(self, tensor: Tensor) -> Tensor:
        """The tensor itself if it has this layout, else a copy that has."""
        return tensor.contiguous(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)

    def zeros(self, rows: int) -> Tensor:
        """A tensor (rows, ...) of this layout."""
        return self.shaped(torch.zeros(self.numel(rows), dtype=self.dtype, device=self.device))


def leaves(output: Any) -> list[Tensor]:
    """The tensors of an atom's output: a tensor, or nested tuples of tensors and None."""
    if isinstance(output, (tuple, list)):
        return [leaf for item in output for leaf in leaves(item)]
    assert output is None or isinstance(output, Tensor), f"an atom returns {type(output).__name__}"
    return [] if output is None else [output]


def layouts(output: Any) -> Any:
    """An output with the layout of each tensor in its place: (rows, ...) to ``Leaf``."""
    if isinstance(output, (tuple, list)):
        return tuple(layouts(item) for item in output)
    return None if output is None else Leaf.of(output)


def layout_leaves(layout: Any) -> list[Leaf]:
    """The leaves of what ``layouts`` returned."""
    if isinstance(layout, tuple):
        return [leaf for item in layout for leaf in layout_leaves(item)]
    return [] if layout is None else [layout]


def rebuilt(layout: Any, tensors: Sequence[Tensor]) -> Any:
    """The output that has this layout and these tensors, in the order of ``leaves``."""
    given = iter(tensors)

    def build(item: Any) -> Any:
        if isinstance(item, tuple):
            return tuple(build(inner) for inner in item)
        return None if item is None else next(given)

    return build(layout)
