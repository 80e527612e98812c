"""One call of a denoiser: its batch split into rows, and predictions put together from rows."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from hybridiff.errors import UsageError
from hybridiff.models.inputs import (
    TIMESTEPS,
    count_rows,
    latents_name,
    model_input,
    raw_latents,
    tensors_in,
    with_model_input,
)
from hybridiff.models.row_axes import RowAxes

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class DenoiserCall:
    """The arguments of one denoiser call of a pipeline.

    Args:
        forward: the denoiser's own forward.
        args: positional arguments; the first, or a keyword of ``LATENTS``, is the model input, see ``model_input``.
        kwargs: keyword arguments.
        agreed: further values that must be equal on all ranks of a group, as text: schedule, sampler, guidance.
        axes: axes of the rows of its inputs.
    """

    forward: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    agreed: str = ""
    axes: RowAxes = field(default_factory=RowAxes)

    @property
    def model_input(self) -> Tensor:
        """The noisy latents as the denoiser gets them, (rows, channels, height, width) or (rows, tokens, channels)."""
        return model_input(self.args, self.kwargs)

    @property
    def rows(self) -> int:
        """Rows of the batch; with guidance, twice the images: first all unconditional, then all conditional."""
        return count_rows(self.args, self.kwargs)

    @property
    def padded(self) -> bool:
        """Whether the denoiser pads prompts to the longest of a call, so that its activations depend on the other rows."""
        return isinstance(raw_latents(self.args, self.kwargs), list)

    @property
    def can_be_pipelined(self) -> bool:
        """Whether both branches have activations of one shape, as segments of both exchange them."""
        return not self.padded

    def doubled(self) -> bool:
        """Whether the latents are one batch twice, as for classifier-free guidance. Synchronises with the device."""
        first, second = self.model_input[: self.rows // 2], self.model_input[self.rows // 2 :]
        return first.shape == second.shape and torch.equal(first, second)

    def multiplied(self, channels: int, times: Sequence[int] = (3, 4)) -> bool:
        """Whether the latents are one batch three or four times, as for guidance with more than two branches.

        Args:
            channels: number of channels of the prediction; further ones of the input are conditions.
            times: numbers of branches.
        """
        latents = self.model_input[:, :channels]
        return any(
            len(latents) % parts == 0 and all(torch.equal(part, latents[: len(part)]) for part in latents.chunk(parts))
            for parts in times
        )

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

    def beside(self, other: "DenoiserCall") -> "DenoiserCall":
        """The same call with the latents and timestep of another one."""
        args, kwargs = with_model_input(self.args, self.kwargs, raw_latents(other.args, other.kwargs))
        return replace(self, args=args, kwargs=kwargs, forward=other.forward).at(other.timestep)

    def prompts_equal(self, other: "DenoiserCall") -> bool:
        """Whether all inputs but latents and timestep are equal; synchronises with the device unless they are the same."""
        given = 1 if self._timestep_name is not None else 2  # latents, and the timestep if it has no name
        mine, others = (tree_leaves((call.args[given:], call._rest)) for call in (self, other))
        return len(mine) == len(others) and all(_same(one, two) for one, two in zip(mine, others, strict=True))

    @property
    def _rest(self) -> dict[str, Any]:
        known = (self._timestep_name, latents_name(self.args, self.kwargs))
        return {name: value for name, value in self.kwargs.items() if name not in known}

    def repeats(self, previous: "DenoiserCall") -> bool:
        """Whether this call has the latents and the timestep of the previous one; synchronises with the device unless they are
        the same tensors."""
        mine, theirs = (raw_latents(call.args, call.kwargs) for call in (self, previous))
        if mine is theirs and self.timestep is previous.timestep:
            return True
        times = [torch.as_tensor(call.timestep).flatten()[:1].to(self.model_input.device) for call in (self, previous)]
        return torch.equal(times[0], times[1]) and torch.equal(self.model_input, previous.model_input)

    @property
    def signature(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of all inputs."""
        return tuple(tuple(tensor.shape) for tensor in tensors_in((self.args, self.kwargs)))

    @property
    def last_row(self) -> "DenoiserCall":
        """The same call on its last row."""
        return self.part((self.rows - 1,))

    def swap_branches(self) -> "DenoiserCall":
        """The same call with the two halves of the batch swapped. Raises as ``part`` does."""
        return self._with_rows(swap_halves)

    def part(self, rows: Sequence[int]) -> "DenoiserCall":
        """The same call on some of its rows.

        Raises:
            UsageError: an argument is an object that holds tensors, whose rows are not known; or the axis of the rows of another
                one is not known, see ``RowAxes``.
        """
        selected = tuple(rows)
        if selected == tuple(range(self.rows)):
            return self
        if (holder := self.holds_tensors) is not None:
            raise UsageError(
                f"the denoiser is called with a {holder}, whose rows cannot be divided among the ranks of a group; allowed: a "
                "group of 1, or the pipeline without its cache"
            )
        return self._with_rows(lambda tensor: select_rows(tensor, selected))

    def _with_rows(self, function: Callable[[Any], Any]) -> "DenoiserCall":
        """The same call with each input that has rows replaced by the function's result."""
        if all(is_plain(leaf) for leaf in tree_leaves((self.args, self.kwargs))):  # else calls may depend on one another
            self.axes.learn(self.forward, self.args, self.kwargs)
        args, kwargs = self.axes.map_rows(function, self.args, self.kwargs)
        return replace(self, args=args, kwargs=kwargs)

    @property
    def holds_tensors(self) -> str | None:
        """The class of an argument that is an object with tensors in it, such as a cache of keys and values; None without."""
        objects = [leaf for leaf in tree_leaves((self.args, self.kwargs)) if not is_plain(leaf)]
        return next((type(leaf).__name__ for leaf in objects if _contains_tensor(leaf)), None)

    def run(self) -> tuple[Tensor, Any]:
        """Runs the denoiser.

        Returns:
            The prediction (rows, ...), and the denoiser's output, which contains it.

        Raises:
            UsageError: the prediction has another number of rows.
        """
        output = self.forward(*self.args, **self.kwargs)
        prediction = output[0]
        if len(prediction) != self.rows:
            raise UsageError(f"the denoiser predicts {len(prediction)} rows; allowed: {self.rows}, as its latents have")
        return torch.stack(prediction) if isinstance(prediction, list) else prediction, output

    def fingerprint(self) -> Tensor:
        """A checksum of ``agreed`` and of the bits of all inputs, (1,) int64; ranks called alike have the same."""
        agreed = int.from_bytes(hashlib.sha256(self.agreed.encode()).digest()[:7], "big")
        total = torch.tensor([agreed], dtype=torch.int64, device=self.model_input.device)
        for position, tensor in enumerate(tensors_in((self.args, self.kwargs))):
            bits = tensor.to(total.device).clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8)
            weights = torch.arange(min(CHUNK_BYTES, len(bits)), device=bits.device).remainder_(8191).add_(1 + position)
            for number, chunk in enumerate(bits.split(CHUNK_BYTES)):  # the products take 8 times the memory
                total += (number + 1) * (chunk * weights[: len(chunk)]).sum()
        return total


@dataclass(frozen=True)
class BranchCalls:
    """The calls of a step of a pipeline that calls its denoiser once per branch, as one call on a batch with all branches.

    With two branches, rows are those of a doubled batch. Each branch is computed by itself, as prompts may differ in length.

    Args:
        branches: call of each branch of B images; of two, [unconditional, conditional].
        agreed: as in ``DenoiserCall``.
    """

    branches: tuple[DenoiserCall, ...]
    agreed: str = ""
    padded: ClassVar[bool] = False
    can_be_pipelined: ClassVar[bool] = False  # the branches differ in shape, and a full step costs as much

    @property
    def args(self) -> tuple[Any, ...]:
        """Positional arguments of the last branch."""
        return self.branches[-1].args

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the last branch."""
        return self.branches[-1].kwargs

    @property
    def model_input(self) -> Tensor:
        """The noisy latents, which all branches share, (B, ...)."""
        return self.branches[-1].model_input

    @property
    def rows(self) -> int:
        """B for each branch."""
        return len(self.branches) * self.branches[-1].rows

    @property
    def last_row(self) -> DenoiserCall:
        """The last branch's call on its last row."""
        return self.branches[-1].last_row

    def at(self, timestep: Any) -> "BranchCalls":
        """The same calls with another timestep."""
        return replace(self, branches=tuple(call.at(timestep) for call in self.branches))

    def part(self, rows: Sequence[int]) -> "BranchCalls":
        """The same calls on some rows of the batch. Raises as ``DenoiserCall.part`` does."""
        images = self.branches[-1].rows
        parts = [(call, [row % images for row in rows if row // images == i]) for i, call in enumerate(self.branches)]
        return replace(self, branches=tuple(call.part(chosen) for call, chosen in parts if chosen))

    def run(self) -> tuple[Tensor, Any]:
        """Runs the denoiser once per branch. Returns as ``DenoiserCall.run`` does."""
        ran = [call.run() for call in self.branches]
        predictions = [prediction for prediction, _ in ran]
        return predictions[0] if len(ran) == 1 else torch.cat(predictions), ran[-1][1]

    def fingerprint(self) -> Tensor:
        """As ``DenoiserCall.fingerprint``, of all branches."""
        agreed = replace(self.branches[-1], agreed=self.agreed)
        return sum((3**i * call.fingerprint() for i, call in enumerate(self.branches[:-1], 1)), agreed.fingerprint())


AnyCall = DenoiserCall | BranchCalls


def with_prediction(output: Any, prediction: Tensor) -> Any:
    """A denoiser's output, a tuple or a Diffusers output object, with its prediction replaced."""
    replaced = list(prediction.unbind()) if isinstance(output[0], list) else prediction
    if not isinstance(output, tuple):
        return type(output)(**{**output, next(iter(output)): replaced})
    return (replaced, *output[1:])


def check_one_prediction(output: Any) -> None:
    """Checks that a denoiser returns one prediction, as a second one would be left as it was in the steps that are not computed.

    Raises:
        UsageError: it returns further tensors of more than two dimensions; masks, (rows, tokens), are none.
    """
    further = sum(isinstance(leaf, Tensor) and leaf.ndim > 2 for leaf in tree_leaves(tuple(output[1:])))
    if further:
        raise UsageError(f"the denoiser returns {1 + further} predictions, as of images and sound; allowed: one")


def is_plain(value: Any) -> bool:
    """Whether a value has no state that may change, but for that of a tensor."""
    return value is None or isinstance(value, (Tensor, bool, int, float, complex, str, bytes, torch.dtype, torch.device, Enum))


def _contains_tensor(value: Any, depth: int = 6) -> bool:
    if isinstance(value, Tensor) or is_plain(value) or isinstance(value, torch.nn.Module) or not depth:
        return isinstance(value, Tensor)
    inner = (
        value
        if isinstance(value, (list, tuple))
        else (value if isinstance(value, dict) else getattr(value, "__dict__", {})).values()
    )
    return any(_contains_tensor(item, depth - 1) for item in inner)


def swap_halves(rows: Any) -> Any:
    """[b, a] of a batch [a, b], a tensor (rows, ...) or a list of rows."""
    if isinstance(rows, list):
        return rows[len(rows) // 2 :] + rows[: len(rows) // 2]
    return torch.cat(rows.chunk(2)[::-1])


def select_rows(tensor: Any, rows: Sequence[int]) -> Any:
    """Some rows of a tensor, or of a list of rows: a view where they are consecutive, else a copy."""
    first = rows[0]
    if tuple(rows) == tuple(range(first, first + len(rows))):
        return tensor[first : first + len(rows)]
    if isinstance(tensor, list):
        return [tensor[row] for row in rows]
    return tensor[torch.tensor(rows, device=tensor.device)]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or (one.shape == other.shape and torch.equal(one, other))
    return one is other or (type(one) is type(other) and bool(one == other))


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
