"""Activations that cross cuts: their layout, each rank's cache of them, and the block hooks that record and replace them."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks import HookRegistry
from torch import Tensor

from hybridiff.models.cuts import Cut
from hybridiff.parallel.call import select_rows
from hybridiff.parallel.exchange import Exchange
from hybridiff.parallel.hooks import ForwardHook, remove_hook
from hybridiff.parallel.rank_work import RankWork, Transfer, VersionTracker

BLOCK_HOOK_NAME = "hybridiff.block"


@dataclass(frozen=True)
class TensorLayout:
    """The layout of one tensor of a block's output.

    Args:
        shape: shape of one row.
        dtype: data type.
        device: device of the tensor.
        channels_last: whether channels are contiguous in memory; else the tensor is contiguous.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    channels_last: bool

    @classmethod
    def of(cls, tensor: Tensor) -> "TensorLayout":
        """The layout of a tensor (rows, ...)."""
        last = tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
        return cls(tuple(tensor.shape[1:]), tensor.dtype, tensor.device, last)

    def flatten(self, tensor: Tensor) -> Tensor:
        """A tensor (rows, ...) as it is sent: (elements,), in memory order."""
        return (tensor.permute(0, 2, 3, 1) if self.channels_last else tensor).reshape(-1)

    def unflatten(self, flat: Tensor) -> Tensor:
        """The inverse of ``flatten``: a view (rows, ...)."""
        if not self.channels_last:
            return flat.view(-1, *self.shape)
        channels, height, width = self.shape
        return flat.view(-1, height, width, channels).permute(0, 3, 1, 2)

    def numel(self, rows: int) -> int:
        """The number of elements of a tensor with so many rows."""
        return rows * torch.Size(self.shape).numel()

    def join(self, rows: Sequence[Tensor]) -> Tensor:
        """A tensor of this layout from single rows (1, ...)."""
        return self.unflatten(torch.cat([self.flatten(row) for row in rows]))

    def dense(self, tensor: Tensor) -> Tensor:
        """The tensor in this layout; copied only if it has another."""
        return tensor.contiguous(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)

    def zeros(self, rows: int) -> Tensor:
        """Zeros (rows, ...) in this layout."""
        return self.unflatten(torch.zeros(self.numel(rows), dtype=self.dtype, device=self.device))


def output_tensors(output: Any) -> list[Tensor]:
    """The tensors of a block's output: a tensor, or nested tuples of tensors and None."""
    if isinstance(output, (tuple, list)):
        return [tensor for item in output for tensor in output_tensors(item)]
    assert output is None or isinstance(output, Tensor), f"a block returns {type(output).__name__}"
    return [] if output is None else [output]


def output_layout(output: Any) -> Any:
    """A block's output with a ``TensorLayout`` in place of each tensor."""
    if isinstance(output, (tuple, list)):
        return tuple(output_layout(item) for item in output)
    return None if output is None else TensorLayout.of(output)


def tensor_layouts(layout: Any) -> list[TensorLayout]:
    """The tensor layouts in the result of ``output_layout``, in the order of ``output_tensors``."""
    if isinstance(layout, tuple):
        return [inner for item in layout for inner in tensor_layouts(item)]
    return [] if layout is None else [layout]


def build_output(layout: Any, tensors: Sequence[Tensor]) -> Any:
    """A block's output of a layout from its tensors, in the order of ``output_tensors``."""
    remaining = iter(tensors)

    def build(item: Any) -> Any:
        if isinstance(item, tuple):
            return tuple(build(inner) for inner in item)
        return None if item is None else next(remaining)

    return build(layout)


@dataclass(frozen=True)
class CachedRow:
    """One row of an output: its position in the tensors (rows, ...) that were computed or received."""

    tensors: list[Tensor]
    position: int


class ActivationCache:
    """The newest rows of each crossing output that this rank has computed or received, for one generation.

    Args:
        exchange: collectives of the group.
        cuts: cuts in use, by number of segments.

    Attributes:
        crossing: paths of the blocks whose outputs cross any of the cuts.
        layouts: layout of every block's output, by path.
        versions: version of each row on each rank.
    """

    def __init__(self, exchange: Exchange, cuts: Mapping[int, Cut]) -> None:
        self._exchange = exchange
        self.cuts = cuts
        self.crossing = tuple(dict.fromkeys(path for cut in cuts.values() for path, _ in cut.crossing))
        self.layouts: dict[str, Any] = {}
        self._rows: dict[tuple[str, int], CachedRow] = {}  # by path and row
        self._placeholders: dict[Any, Tensor] = {}
        self.versions = VersionTracker(exchange.group.size)

    def record_output(self, path: str, rows: Sequence[int], output: Any) -> None:
        """Records the layout of a block's output and, if it crosses a cut, references to its rows.

        Args:
            path: path of the block.
            rows: rows of the doubled batch that the output has; empty if no segment will read them.
            output: the block's output.
        """
        if path not in self.layouts:
            self.layouts[path] = output_layout(output)
        if rows and path in self.crossing:
            layouts = tensor_layouts(self.layouts[path])
            tensors = [layout.dense(tensor) for layout, tensor in zip(layouts, output_tensors(output), strict=True)]
            self._store(path, rows, tensors)

    def _store(self, path: str, rows: Sequence[int], tensors: list[Tensor]) -> None:
        for row in dict.fromkeys(rows):
            self._rows[path, row] = CachedRow(tensors, rows.index(row))

    def cached_inputs(self, work: RankWork, cut: Cut) -> dict[str, Any]:
        """Outputs of the blocks that a rank does not run: cached ones where its segment reads them, else placeholders."""
        assert work.segment is not None
        read = {path for path, segment in cut.crossing if segment == work.segment}
        others = [block.path for block in cut.blocks if cut.owner(block.path) != work.segment]
        return {
            path: self._cached(path, work.rows) if path in read else self._placeholder(path, len(work.rows)) for path in others
        }

    def _cached(self, path: str, rows: Sequence[int]) -> Any:
        return build_output(self.layouts[path], self._newest(path, rows))

    def _newest(self, path: str, rows: Sequence[int]) -> list[Tensor]:
        """The newest rows of an output's tensors; without a copy where they were computed or received together."""
        newest = [self._rows[path, row] for row in rows]
        tensors = newest[0].tensors
        if len(tensors[0]) == len(rows) and all(c.tensors is tensors and c.position == i for i, c in enumerate(newest)):
            return tensors
        layouts = tensor_layouts(self.layouts[path])
        return [layout.join([select_rows(c.tensors[i], [c.position]) for c in newest]) for i, layout in enumerate(layouts)]

    def _placeholder(self, path: str, rows: int) -> Any:
        layout = self.layouts[path]
        for inner in tensor_layouts(layout):
            if (inner, rows) not in self._placeholders:
                self._placeholders[inner, rows] = inner.zeros(rows)
        return build_output(layout, [self._placeholders[inner, rows] for inner in tensor_layouts(layout)])

    def fetch(self, transfers: Sequence[Transfer]) -> None:
        """Makes the transfers in one exchange of the whole group; without transfers there is none."""
        if transfers:
            device = tensor_layouts(self.layouts[transfers[0].path])[0].device
            self.transfer(transfers, (), torch.empty(0, device=device))

    def transfer(self, transfers: Sequence[Transfer], predictors: Sequence[int], prediction: Tensor) -> list[Tensor]:
        """Makes the transfers and sends predictions to all ranks, in one exchange of the whole group.

        Args:
            transfers: transfers of the whole group, equal on every rank.
            predictors: ranks whose prediction is sent to all others.
            prediction: this rank's prediction, (rows, channels, height, width); the shape is the same on every rank.

        Returns:
            The predictions of the predictors, in their order.
        """
        group, mine = self._exchange.group, prediction.contiguous()
        others = [rank for rank in range(group.size) if rank != group.rank]
        outgoing: dict[int, list[Tensor]] = defaultdict(list)
        incoming: dict[int, list[tuple[int, torch.dtype]]] = defaultdict(list)
        for transfer in transfers:
            layouts = tensor_layouts(self.layouts[transfer.path])
            if transfer.source == group.rank:
                newest = self._newest(transfer.path, transfer.rows)
                outgoing[transfer.target] += [layout.flatten(tensor) for layout, tensor in zip(layouts, newest, strict=True)]
            elif transfer.target == group.rank:
                incoming[transfer.source] += [(layout.numel(len(transfer.rows)), layout.dtype) for layout in layouts]
        for rank in others:
            if group.rank in predictors:
                outgoing[rank].append(mine.view(-1))
            if rank in predictors:
                incoming[rank].append((mine.numel(), mine.dtype))
        received = {peer: iter(flats) for peer, flats in self._exchange.send_receive(outgoing, incoming, mine.device).items()}
        self._store_received(transfers, received)
        return [mine if rank == group.rank else next(received[rank]).view(mine.shape) for rank in predictors]

    def _store_received(self, transfers: Sequence[Transfer], received: Mapping[int, Iterator[Tensor]]) -> None:
        for transfer in transfers:
            self.versions.record_transfer(transfer)
            if transfer.target == self._exchange.group.rank:
                layouts = tensor_layouts(self.layouts[transfer.path])
                tensors = [layout.unflatten(next(received[transfer.source])) for layout in layouts]
                self._store(transfer.path, transfer.rows, tensors)


class BlockHooks:
    """The hooks on a denoiser's blocks, and the execution context of the call in progress.

    Args:
        denoiser: network whose blocks are hooked.
    """

    def __init__(self, denoiser: torch.nn.Module) -> None:
        self._denoiser = denoiser
        self._hooked: dict[str, torch.nn.Module] = {}
        self.cached_inputs: Mapping[str, Any] = {}
        self.record_output: Callable[[str, Any], None] | None = None

    def install(self, paths: Iterable[str]) -> None:
        """Hooks the blocks of these paths; again where a module was replaced since, as by an adapter."""
        for path in paths:
            module = self._denoiser.get_submodule(path)
            if self._hooked.get(path) is not module:
                self._remove(path)
                HookRegistry.check_if_exists_or_initialize(module).register_hook(BlockHook(path, self), BLOCK_HOOK_NAME)
                self._hooked[path] = module

    def remove(self) -> None:
        """Removes all hooks."""
        for path in list(self._hooked):
            self._remove(path)

    def _remove(self, path: str) -> None:
        module = self._hooked.pop(path, None)
        if module is not None:
            remove_hook(module, BLOCK_HOOK_NAME)

    @contextmanager
    def execution(self, cached_inputs: Mapping[str, Any], record_output: Callable[[str, Any], None] | None) -> Iterator[None]:
        """The context of one denoiser call.

        Args:
            cached_inputs: outputs by path of the blocks that are not run.
            record_output: called with path and output of each block that is run.
        """
        self.cached_inputs, self.record_output = cached_inputs, record_output
        try:
            yield
        finally:
            self.cached_inputs, self.record_output = {}, None


class BlockHook(ForwardHook):
    """Runs a block, or returns its cached output.

    Args:
        path: path of the block in the denoiser.
        hooks: execution context.
    """

    def __init__(self, path: str, hooks: BlockHooks) -> None:
        super().__init__()
        self.path = path
        self.hooks = hooks

    @torch.compiler.disable(recursive=False)  # each change of the cached inputs would recompile the block
    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Replaces the block's forward."""
        if self.path in self.hooks.cached_inputs:
            return self.hooks.cached_inputs[self.path]
        output = self.fn_ref.original_forward(*args, **kwargs)
        if self.hooks.record_output is not None:
            self._record(output)
        return output

    @torch.compiler.disable  # it would be compiled anew for each path
    def _record(self, output: Any) -> None:
        assert self.hooks.record_output is not None
        self.hooks.record_output(self.path, output)
