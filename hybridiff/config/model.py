"""The section ``model``."""

from dataclasses import dataclass, field
from importlib.resources import files
from math import isfinite
from typing import Any, Literal, cast, get_args

from hybridiff.errors import UsageError, require, require_choice
from hybridiff.secrets import refuse_credentials

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES = get_args(Dtype)
Offload = Literal["none", "model", "group"]
OFFLOADS = get_args(Offload)

_ASSETS = files("hybridiff") / "assets"
BUNDLED = tuple(
    name for name in ("shapes-xl", "shapes-sd3", "shapes-flux") if (_ASSETS / name).is_dir()
)  # the wheel lacks the last
PATHS = f"a bundled name ({', '.join(BUNDLED)}), a local directory in Diffusers' format, or a hub id"
LoraValue = str | float | bool | None  # those that are wrong too, so that messages have them as they are
LORA = "a path, {path: ..., scale: ...}, or a list of them"


@dataclass(frozen=True)
class LoraOption:
    """LoRA weights and how strongly they are applied.

    Args:
        path: safetensors file, directory that holds one, or owner/name/file.safetensors of the hub.
        scale: factor of what the weights add; not 0.
    """

    path: str
    scale: float = 1.0

    def __post_init__(self) -> None:
        refuse_credentials("model.lora", self.path)
        require(bool(self.path) and self.path[0] not in "[{", "model.lora", self.path, LORA)
        number = isinstance(self.scale, (int, float)) and not isinstance(self.scale, bool)
        require(number and isfinite(self.scale) and self.scale != 0, "model.lora scale", self.scale, "a number that is not 0")

    @staticmethod
    def of(given: object) -> "LoraOption":
        """What an entry of ``model.lora`` means.

        Raises:
            UsageError: it is neither a path nor has a path and a scale.
        """
        if isinstance(given, LoraOption):
            return given
        options = {"path": given} if isinstance(given, str) else given
        named = isinstance(options, dict) and isinstance(options.get("path"), str) and options.keys() <= {"path", "scale"}
        require(named, "model.lora", given, LORA)
        return LoraOption(**options)  # type: ignore[arg-type]


@dataclass(frozen=True)
class ModelConfig:
    """The model that generates.

    Args:
        path: name of a bundled model (shapes-xl, shapes-sd3), a local directory in Diffusers' format, or a hub id.
        revision: branch, tag or commit of a hub model.
        variant: variant of the weight files, such as fp16.
        dtype: floating-point type; auto: bfloat16 on GPUs that have it, else float16; float32 on CPUs.
        scheduler: class name of a Diffusers scheduler to use instead of the model's own, such as EulerDiscreteScheduler.
        scheduler_options: options of the scheduler that replace the model's own, such as use_karras_sigmas, shift, algorithm_type
            and timestep_spacing. One that changes nothing is refused.
        lora: LoRA weights to apply, as safetensors, one or a list, each a path or {path: ..., scale: 0.8} (scale 1 by default):
            local files or directories, or owner/name/file.safetensors of the hub (the file may be left out if it is
            pytorch_lora_weights.safetensors).
        compile: whether the blocks that repeat in the denoiser are compiled by torch.compile, in the first batch of each run.
        attention: attention backend of Diffusers for the denoiser, such as flash, sage, xformers or _native_cudnn; by default
            the model's own.
        vae_tiling: whether large images are decoded tile by tile, in less memory; the tiles may show.
        vae_slicing: whether the autoencoder takes one image at a time; the job decodes one at a time in any case.
        offload: what waits in main memory: nothing (none), each network while another one runs (model), or each layer while
            another one runs (group), which is slowest and takes the least GPU memory.
        quantization: arguments of Diffusers' PipelineQuantizationConfig: {quant_backend: bitsandbytes_4bit, quant_kwargs:
            {load_in_4bit: true}, components_to_quantize: [transformer]}, or a quant_mapping of such backends by component. The
            quant_type of torchao is the name of a class, such as Int8WeightOnlyConfig.
    """

    path: str = ""
    revision: str | None = None
    variant: str | None = None
    dtype: Dtype = "auto"
    scheduler: str | None = None
    scheduler_options: dict[str, bool | int | float | str | list[float] | None] = field(default_factory=dict)
    lora: str | dict[str, LoraValue] | list[str | dict[str, LoraValue]] = field(default_factory=list)
    compile: bool = False
    attention: str | None = None
    vae_tiling: bool = False
    vae_slicing: bool = False
    offload: Offload = "none"
    quantization: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.path:
            raise UsageError(f"model.path is not given; allowed: {PATHS}")
        refuse_credentials("model.path", self.path)
        for name in ("revision", "variant", "scheduler", "attention"):
            require(getattr(self, name) != "", f"model.{name}", "", "a name, or leave the option out")
        given = self.lora if isinstance(self.lora, list) else [self.lora]
        object.__setattr__(self, "lora", [LoraOption.of(one) for one in given])
        require_choice("model.dtype", self.dtype, DTYPES)
        require_choice("model.offload", self.offload, OFFLOADS)
        by_layer = self.offload == "group"
        hooked = "false with model.offload group, whose hooks on every layer leave nothing to compile"
        require(not (self.compile and by_layer), "model.compile", self.compile, hooked)

    @property
    def loras(self) -> list[LoraOption]:
        """LoRA weights with their scales."""
        return cast(list[LoraOption], self.lora)
