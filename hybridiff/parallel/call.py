"""One call of a denoiser: its batch split into rows, and predictions put together from rows."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hybridiff.errors import UsageError
from hybridiff.models.inputs import TIMESTEPS, batched_tensors, map_batched, model_input, tensors_in

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class DenoiserCall:
    """The arguments of one denoiser call of a pipeline.

    Args:
        forward: the denoiser's own forward.
        args: positional arguments; the first, or the keyword hidden_states or sample, is the model input
            (rows, channels, height, width).
        kwargs: keyword arguments; for those with a batch axis see ``map_batched``.
        agreed: further values that must be equal on all ranks of a group, as text: schedule, sampler, guidance.
    """

    forward: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    agreed: str = ""

    @property
    def model_input(self) -> Tensor:
        """The noisy latents as the denoiser gets them, (rows, channels, height, width)."""
        return model_input(self.args, self.kwargs)

    @property
    def rows(self) -> int:
        """Rows of the batch; with guidance, twice the images: first all unconditional, then all conditional."""
        return self.model_input.shape[0]

    def doubled(self) -> bool:
        """Whether the latents are one batch twice, as for classifier-free guidance. Synchronises with the device."""
        first, second = self.model_input[: self.rows // 2], self.model_input[self.rows // 2 :]
        return first.shape == second.shape and torch.equal(first, second)

    @property
    def timestep(self) -> Any:
        """The timestep: the keyword argument, or the second positional one.

        Raises:
            UsageError: there is none.
        """
        if (name := self._timestep_name) is not None:
            return self.kwargs[name]
        if len(self.args) < 2:
            raise UsageError(
                f"the denoiser is called without {' or '.join(TIMESTEPS)}; allowed: one of them, or a second argument"
            )
        return self.args[1]

    @property
    def _timestep_name(self) -> str | None:
        return next((name for name in TIMESTEPS if name in self.kwargs), None)

    def at(self, timestep: Any) -> "DenoiserCall":
        """The same call with another timestep."""
        if (name := self._timestep_name) is not None:
            return replace(self, kwargs=self.kwargs | {name: timestep})
        return replace(self, args=(self.args[0], timestep, *self.args[2:]))

    def repeats(self, previous: "DenoiserCall") -> bool:
        """Whether this call has the latents and the timestep of the previous one. Synchronises with the device."""
        times = [torch.as_tensor(call.timestep).flatten()[:1].to(self.model_input.device) for call in (self, previous)]
        return torch.equal(times[0], times[1]) and torch.equal(self.model_input, previous.model_input)

    @property
    def signature(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of all inputs; of batched ones, the shape of one row."""
        args, kwargs = map_batched(lambda tensor: tensor[0], self.args, self.kwargs)
        return tuple(tuple(tensor.shape) for tensor in tensors_in((args, kwargs)))

    def swap_branches(self) -> "DenoiserCall":
        """The same call with the two halves of the batch swapped."""
        args, kwargs = map_batched(swap_halves, self.args, self.kwargs)
        return replace(self, args=args, kwargs=kwargs)

    def run(self, rows: Sequence[int] | None = None) -> tuple[Tensor, Any]:
        """Runs the denoiser on some rows, on all if None.

        Returns:
            The prediction (rows, ...), and the denoiser's output, which contains it.
        """

        args, kwargs = self.args, self.kwargs
        if rows is not None and tuple(rows) != tuple(range(self.rows)):
            selected = tuple(rows)
            args, kwargs = map_batched(lambda tensor: select_rows(tensor, selected), args, kwargs)
        output = self.forward(*args, **kwargs)
        return output[0], output

    def fingerprint(self) -> Tensor:
        """A checksum of ``agreed`` and of the bits of all batched inputs, (1,) int64; ranks called alike have the same."""
        agreed = int.from_bytes(hashlib.sha256(self.agreed.encode()).digest()[:7], "big")
        total = torch.tensor([agreed], dtype=torch.int64, device=self.model_input.device)
        for position, tensor in enumerate(batched_tensors(self.args, self.kwargs)):
            bits = tensor.clone(memory_format=torch.contiguous_format).view(torch.uint8).flatten()
            weights = torch.arange(min(CHUNK_BYTES, len(bits)), device=bits.device).remainder_(8191).add_(1 + position)
            for number, chunk in enumerate(bits.split(CHUNK_BYTES)):  # the products take 8 times the memory
                total += (number + 1) * (chunk * weights[: len(chunk)]).sum()
        return total


def with_prediction(output: Any, prediction: Tensor) -> Any:
    """A denoiser's output, a tuple or a Diffusers output object, with its prediction replaced."""
    if not isinstance(output, tuple):
        assert len(output) == 1, "the denoiser returns more than its prediction"
        return type(output)(prediction)
    return (prediction, *output[1:])


def swap_halves(tensor: Tensor) -> Tensor:
    """[b, a] of a batch [a, b], (rows, ...)."""
    return torch.cat(tensor.chunk(2)[::-1])


def select_rows(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    """Some rows of a tensor: a view where they are consecutive, else a copy."""
    first = rows[0]
    if tuple(rows) == tuple(range(first, first + len(rows))):
        return tensor[first : first + len(rows)]
    return tensor[torch.tensor(rows, device=tensor.device)]


def assemble_rows(wanted: Sequence[int], pieces: Sequence[tuple[Sequence[int], Tensor]]) -> Tensor:
    """A contiguous batch from pieces.

    Args:
        wanted: rows of the batch.
        pieces: row numbers and rows of each piece; together they contain the wanted rows in order, possibly repeated.
    """
    tensors, seen = [], list[int]()
    for rows, tensor in pieces:
        new = [i for i, row in enumerate(rows) if row not in seen and row not in rows[:i]]
        seen += [rows[i] for i in new]
        if new:
            tensors.append(select_rows(tensor, new))
    assert seen == list(wanted), f"the pieces have rows {seen}, not {list(wanted)}"
    return torch.cat(tensors).contiguous()
