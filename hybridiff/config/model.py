"""The section ``model``."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from hybridiff.errors import UsageError, require_choice
from hybridiff.secrets import refuse_credentials

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES = get_args(Dtype)

BUNDLED = ("shapes-xl", "shapes-sd3")
PATHS = f"a bundled name ({', '.join(BUNDLED)}), a local directory in Diffusers' format, or a hub id"


@dataclass(frozen=True)
class ModelConfig:
    """The model that generates.

    Args:
        path: name of a bundled model (shapes-xl, shapes-sd3), a local directory in Diffusers' format, or a hub id.
        revision: branch, tag or commit of a hub model.
        variant: variant of the weight files, such as fp16.
        dtype: floating-point type; auto: bfloat16 on GPUs that have it, else float16; float32 on CPUs.
        scheduler: class name of a Diffusers scheduler to use instead of the model's own, such as EulerDiscreteScheduler.
        lora: LoRA weights to apply, as safetensors, one or a list: local files or directories, or owner/name/file.safetensors of
            the hub (the file may be left out if it is pytorch_lora_weights.safetensors); all at scale 1.
    """

    path: str = ""
    revision: str | None = None
    variant: str | None = None
    dtype: Dtype = "auto"
    scheduler: str | None = None
    lora: str | list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.path:
            raise UsageError(f"model.path is not given; allowed: {PATHS}")
        refuse_credentials("model.path", self.path)
        if isinstance(self.lora, str):
            object.__setattr__(self, "lora", [self.lora])
        require_choice("model.dtype", self.dtype, DTYPES)
