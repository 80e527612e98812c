"""Which network is measured: a frozen dataclass that checks itself; no torch."""

from dataclasses import dataclass
from typing import Any

from hybridiff.config import DTYPES
from hybridiff.errors import require, require_choice

DEVICES = ("cpu", "cuda")
SHAPES: dict[str, dict[str, Any]] = {  # what makes up an untrained network, with defaults
    "unet": {"channels": [64, 128, 256], "transformer_layers": [1, 1, 2]},
    "mmdit": {"blocks": 8, "heads": 4},
}
TOKENS = 24


@dataclass(frozen=True)
class SubjectConfig:
    """The network that is measured: a trained ``model``, or an ``untrained`` one of a given shape.

    Args:
        model: A bundled model (shapes-xl, shapes-sd3), a local directory in Diffusers' format, or a hub id.
        untrained: unet or mmdit, in the sizes below, or a published configuration by name, such as sdxl.
        dtype: Arithmetic of the network: float32, bfloat16 or float16.
        device: cpu, or cuda: rank i takes device i, modulo their number.
        threads: CPU threads of each rank.
        height: Of an image in pixels; by default the network's own.
        width: Of an image in pixels; by default the network's own.
        max_sequence_length: Tokens of the T5 text encoder, for a model whose pipeline has the option.
        channels: Of each level of an untrained unet: 32 or multiples of 64; 64, 128, 256 by default.
        transformer_layers: At each level of an untrained unet; 1, 1, 2 by default.
        blocks: Joint blocks of an untrained mmdit; 8 by default.
        heads: Attention heads of 64 channels of an untrained mmdit; 4 by default.
        tokens: Of the random text embedding that an untrained network gets; 24 by default.
    """

    model: str | None = None
    untrained: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1
    height: int | None = None
    width: int | None = None
    max_sequence_length: int | None = None
    channels: list[int] | None = None
    transformer_layers: list[int] | None = None
    blocks: int | None = None
    heads: int | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        given = {"model": self.model, "untrained": self.untrained}
        require((self.model is None) != (self.untrained is None), "subject", given, "either model or untrained")
        require_choice("subject.dtype", self.dtype, DTYPES)
        require_choice("subject.device", self.device, DEVICES)
        require(self.threads >= 1, "subject.threads", self.threads, "1 or more")
        self._check_kind()
        for name, default in {**SHAPES.get(self.untrained or "", {}), **({"tokens": TOKENS} if self.untrained else {})}.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        self._check_shape()

    def _check_kind(self) -> None:
        """Refuses options of another kind of subject."""
        for kind, options in SHAPES.items():
            for name in options:
                fits = self.untrained == kind or getattr(self, name) is None
                require(fits, f"subject.{name}", getattr(self, name), f"nothing but for an untrained {kind}")
        require(self.tokens is None or self.model is None, "subject.tokens", self.tokens, "nothing but for untrained networks")
        length = self.max_sequence_length
        require(length is None or self.model is not None, "subject.max_sequence_length", length, "nothing but for a model")

    def _check_shape(self) -> None:
        if self.channels is not None and self.transformer_layers is not None:
            levels, layers = len(self.channels), self.transformer_layers
            fits = levels >= 2 and all(width == 32 or (width >= 64 and width % 64 == 0) for width in self.channels)
            require(fits, "subject.channels", self.channels, "2 or more numbers, each 32 or a multiple of 64")
            fits = len(layers) == levels and min(layers) >= 1
            require(fits, "subject.transformer_layers", layers, f"{levels} numbers of 1 or more, as many as channels")
        for name, least in (("blocks", 2), ("heads", 1), ("tokens", 1)):
            given = getattr(self, name)
            require(given is None or given >= least, f"subject.{name}", given, f"{least} or more")
