"""One call of a denoiser, taken apart by rows of its batch and put together again."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hybridiff.models.inputs import map_tensors, model_input, tensors_in
from hybridiff.parallel.rows import pick

CHUNK = 1 << 20  # bytes


@dataclass(frozen=True)
class DenoiserCall:
    """What a pipeline asked of its denoiser.

    Args:
        forward: The denoiser's own forward.
        args: Positional; the first, or the keyword hidden_states or sample, is the model input (rows, channels, height, width).
        kwargs: Keyword arguments; tensors in them with as many rows are part of the batch, at any depth.
        agreed: What else the ranks of a group must have been asked alike: schedule, sampler, guidance.
    """

    forward: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    agreed: str = ""

    @property
    def model_input(self) -> Tensor:
        """The noisy latents as the denoiser gets them."""
        return model_input(self.args, self.kwargs)

    @property
    def rows(self) -> int:
        """Rows of the batch; with guidance, twice the images: first all unconditional, then all conditional."""
        return self.model_input.shape[0]

    def doubled(self) -> bool:
        """Whether the model input is one batch twice, as for classifier-free guidance. Waits for the device."""
        first, second = self.model_input[: self.rows // 2], self.model_input[self.rows // 2 :]
        return first.shape == second.shape and torch.equal(first, second)

    @property
    def timestep(self) -> Any:
        """The timestep as the denoiser gets it: by name, or as its second argument."""
        return self.kwargs["timestep"] if "timestep" in self.kwargs else self.args[1]

    def at(self, timestep: Any) -> "DenoiserCall":
        """The same call with another timestep."""
        if "timestep" in self.kwargs:
            return replace(self, kwargs=self.kwargs | {"timestep": timestep})
        return replace(self, args=(self.args[0], timestep, *self.args[2:]))

    @property
    def signature(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of all inputs, of one row where they are batched."""
        tensors = tensors_in((self.args, self.kwargs))
        return tuple(tuple(t.shape[1:] if t.ndim and t.shape[0] == self.rows else t.shape) for t in tensors)

    def run(self, rows: Sequence[int] | None = None) -> tuple[Tensor, Any]:
        """Runs the denoiser on some rows (all if None): its prediction, and its output as the pipeline expects it."""

        def take(tensor: Tensor) -> Tensor:
            assert rows is not None
            return pick(tensor, rows) if tensor.ndim and tensor.shape[0] == self.rows else tensor

        whole = rows is None or tuple(rows) == tuple(range(self.rows))
        args, kwargs = (self.args, self.kwargs) if whole else map_tensors(take, (self.args, self.kwargs))
        output = self.forward(*args, **kwargs)
        return output[0], output

    def fingerprint(self) -> Tensor:
        """A checksum of the bits of all batched inputs: (1,) int64. Ranks that were asked the same have the same."""
        agreed = int.from_bytes(hashlib.sha256(self.agreed.encode()).digest()[:7], "big")
        total = torch.tensor([agreed], dtype=torch.int64, device=self.model_input.device)
        for position, tensor in enumerate(tensors_in((self.args, self.kwargs))):
            if tensor.ndim and tensor.shape[0] == self.rows:
                bits = tensor.clone(memory_format=torch.contiguous_format).view(torch.uint8).flatten()
                weights = torch.arange(min(CHUNK, len(bits)), device=bits.device).remainder_(8191).add_(1 + position)
                for number, chunk in enumerate(bits.split(CHUNK)):  # the products take 8 bytes for each of one
                    total += (number + 1) * (chunk * weights[: len(chunk)]).sum()
        return total


def with_prediction(output: Any, prediction: Tensor) -> Any:
    """The denoiser's output, a tuple or a Diffusers output object, with another prediction in it."""
    if not isinstance(output, tuple):
        assert len(output) == 1, "the denoiser returns more than its prediction"
        return type(output)(prediction)
    return (prediction, *output[1:])
