"""The section ``model``."""

from dataclasses import dataclass, field

from hybridiff.errors import require, require_choice
from hybridiff.secrets import refuse_credentials

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ModelConfig:
    """Which model draws.

    Args:
        path: A bundled model (shapes-xl, shapes-sd3), a local directory in Diffusers' format, or a hub id.
        revision: Branch, tag or commit of a hub model.
        variant: Weight files' variant, such as fp16.
        dtype: Arithmetic of the model: float32, bfloat16 or float16.
        scheduler: Class name of a Diffusers scheduler to use instead of the model's own, such as EulerDiscreteScheduler.
        lora: LoRA weights to apply, as safetensors: local files or directories, or owner/name/file.safetensors of the hub (the
            file may be left out if it is pytorch_lora_weights.safetensors); all at scale 1.
    """

    path: str = "shapes-xl"
    revision: str | None = None
    variant: str | None = None
    dtype: str = "float32"
    scheduler: str | None = None
    lora: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        require(bool(self.path), "model.path", self.path, "a bundled name, a local directory or a hub id")
        refuse_credentials("model.path", self.path)
        require_choice("model.dtype", self.dtype, DTYPES)
