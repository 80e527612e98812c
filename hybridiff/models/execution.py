"""How a model is executed: compiled, with which attention, quantized, and what of it waits in main memory. All by Diffusers."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import diffusers
import torch
import transformers.quantizers.auto as transformers_quantizers
from diffusers import PipelineQuantizationConfig
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    _check_attention_backend_requirements,
    attention_backend,
    dispatch_attention_fn,
)
from diffusers.quantizers import auto as diffusers_quantizers
from diffusers.utils import (
    is_bitsandbytes_available,
    is_nvidia_modelopt_available,
    is_optimum_quanto_available,
    is_torchao_available,
)

from hybridiff.config import Dtype, ModelConfig
from hybridiff.errors import UsageError, require, require_choice
from hybridiff.models.inputs import denoiser_name
from hybridiff.secrets import one_line

NATIVE = AttentionBackendName.NATIVE.value
BACKENDS = tuple(name.value for name in AttentionBackendName)
# Backends that quantize weights while they are loaded, the package of each, and whether it is there; others need quantized files
QUANTIZERS: dict[str, tuple[str, Callable[[], bool]]] = {
    "bitsandbytes_4bit": ("bitsandbytes", is_bitsandbytes_available),
    "bitsandbytes_8bit": ("bitsandbytes", is_bitsandbytes_available),
    "torchao": ("torchao", is_torchao_available),
    "quanto": ("optimum-quanto", is_optimum_quanto_available),
    "modelopt": ("nvidia-modelopt", is_nvidia_modelopt_available),
}
OPTIONS = ("quant_backend", "quant_kwargs", "components_to_quantize", "quant_mapping")


def check_execution(model: ModelConfig, pipeline: Any, networks: Mapping[str, Any], denoiser: str) -> None:
    """Refuses options that a model cannot be executed with, on any machine.

    Args:
        model: options.
        pipeline: class of the model's pipeline.
        networks: networks of the model by name, without weights.
        denoiser: name of the unet or transformer among them.

    Raises:
        UsageError: naming the option, what was given and what is allowed.
    """
    _check_compile(model, networks[denoiser])
    _check_attention(model, networks[denoiser])
    for name in ("tiling", "slicing"):
        kind = type(networks["vae"]).__name__
        able = hasattr(networks["vae"], f"use_{name}") and hasattr(networks["vae"], f"enable_{name}")
        require(able or not getattr(model, f"vae_{name}"), f"model.vae_{name}", True, f"false; {kind} has no {name}")
    if model.offload == "model":
        named = f"none or group; Diffusers names no order in which the networks of {pipeline.__name__} run"
        require(pipeline.model_cpu_offload_seq is not None, "model.offload", model.offload, named)
    if model.offload == "group":
        unable = [type(one).__name__ for one in networks.values() if not getattr(one, "_supports_group_offloading", True)]
        require(
            not unable, "model.offload", model.offload, f"none or model; Diffusers can't offload {', '.join(unable)} by layers"
        )
    quantizers(model, {name: _library(network) for name, network in networks.items()})


def _library(network: Any) -> str:
    return "diffusers" if isinstance(network, diffusers.ModelMixin) else "transformers"


def _check_compile(model: ModelConfig, denoiser: Any) -> None:
    repeated = getattr(denoiser, "_repeated_blocks", None) or []
    found = any(type(module).__name__ in repeated for module in denoiser.modules())
    allowed = f"false; Diffusers names no blocks of {type(denoiser).__name__} that repeat"
    require(found or not model.compile, "model.compile", model.compile, allowed)


def _check_attention(model: ModelConfig, denoiser: Any) -> None:
    if model.attention is None:
        return
    own = [name for name in BACKENDS if not name.endswith("_hub")]
    hint = ", ".join(own)
    if model.attention in BACKENDS:
        hint = f"{hint}; the others run code that is downloaded from the hub"
    require(model.attention in own, "model.attention", model.attention, hint)
    try:
        _check_attention_backend_requirements(AttentionBackendName(model.attention))
    except RuntimeError as error:
        raise _unusable(model.attention, "backends whose packages are installed", error) from error
    chosen = any(hasattr(getattr(module, "processor", None), "_attention_backend") for module in denoiser.modules())
    allowed = f"{NATIVE}; Diffusers has no other attention for {type(denoiser).__name__}"
    require(chosen or model.attention == NATIVE, "model.attention", model.attention, allowed)


def _unusable(given: str, allowed: str, error: Exception) -> UsageError:
    return UsageError(f"model.attention is {given!r}; allowed: {allowed} ({one_line(error)})")


def check_execution_device(model: ModelConfig, device: str) -> None:
    """Refuses options that a model cannot be executed with on this machine.

    Args:
        model: options, with the dtype resolved.
        device: type of the device that generates, such as cpu or cuda.

    Raises:
        UsageError: naming the option, what was given and what is allowed.
    """
    main_memory = f"none on {device}, whose memory is main memory"
    require(model.offload == "none" or device != "cpu", "model.offload", model.offload, main_memory)
    if model.compile:
        missing = _missing_compiler(device)
        require(not missing, "model.compile", model.compile, f"false, as torch.compile needs {missing} here")
    if model.attention is not None:
        _check_attention_device(model.attention, model.dtype, device)


def _missing_compiler(device: str) -> str:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    if device == "cuda":
        return "" if has_triton() else "the package triton"
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "a C++ compiler, such as g++"
    return ""


def _check_attention_device(given: str, dtype: Dtype, device: str) -> None:
    """Asks the backend's own checks; on CPUs it is also run, on a small input."""
    backend, kind = AttentionBackendName(given), getattr(torch, dtype)
    shown = SimpleNamespace(shape=(1, 8, 2, 64), dtype=kind, device=torch.device(device))
    try:
        for check in _AttentionBackendRegistry._constraints.get(backend, ()):
            check(query=shown, key=shown, value=shown, attn_mask=None, is_causal=False)
        if device == "cpu":
            zeros = torch.zeros(shown.shape, dtype=kind)
            dispatch_attention_fn(zeros, zeros, zeros, backend=backend)
    except Exception as error:  # whatever a backend raises where it does not run
        raise _unusable(given, f"backends that run on {device} in {dtype}", error) from error


def quantizers(model: ModelConfig, libraries: Mapping[str, str]) -> dict[str, Any]:
    """The quantization of each network that is quantized, by name.

    Args:
        model: the option ``quantization``.
        libraries: library of each network of the model by name, diffusers or transformers.

    Raises:
        UsageError: an option, backend, network or argument that there is not, or a package that is not installed.
    """
    given = model.quantization
    if not given:
        return {}
    unknown = sorted(given.keys() - set(OPTIONS))
    require(not unknown, "model.quantization", ", ".join(unknown), f"{', '.join(OPTIONS)} (of PipelineQuantizationConfig)")
    mapping = given.get("quant_mapping")
    alone = len(given) == 1 and isinstance(mapping, dict) and bool(mapping)
    require(mapping is None or alone, "model.quantization", given, "either a quant_mapping alone, or a quant_backend")
    if mapping is None:
        listed = given.get("components_to_quantize") or sorted(libraries.keys() - {"vae"})
        names = [listed] if isinstance(listed, str) else list(listed)
        mapping = {name: {key: given[key] for key in OPTIONS[:2] if key in given} for name in names}
    for name in mapping:
        require(name in libraries, "model.quantization", name, f"{', '.join(sorted(libraries))} (networks of {model.path})")
    return {name: _quantizer(model, name, library_options, libraries[name]) for name, library_options in mapping.items()}


def _quantizer(model: ModelConfig, name: str, given: Any, library: str) -> Any:
    """The quantization of one network, as its library has it."""
    known = isinstance(given, dict) and given.keys() <= set(OPTIONS[:2]) and isinstance(given.get("quant_kwargs", {}), dict)
    require(known, "model.quantization", given, f"{{{OPTIONS[0]}: ..., {OPTIONS[1]}: {{...}}}} for {name}")
    backend = given.get("quant_backend")
    require_choice("model.quantization.quant_backend", backend, tuple(QUANTIZERS))
    package, available = QUANTIZERS[backend]
    hint = f"backends whose packages are installed; this one needs {package}"
    require(available(), "model.quantization.quant_backend", backend, hint)
    moved = f"torchao with model.offload {model.offload}, which moves layers of no other backend"
    require(model.offload != "group" or backend == "torchao", "model.quantization.quant_backend", backend, moved)
    home: Any = diffusers_quantizers if library == "diffusers" else transformers_quantizers
    kind = home.AUTO_QUANTIZATION_CONFIG_MAPPING.get(backend)
    require(kind is not None, "model.quantization.quant_backend", backend, f"what {library} has for {name}")
    arguments = dict(given.get("quant_kwargs", {}))
    taken = sorted(set(inspect.signature(kind.__init__).parameters) - {"self", "kwargs"})
    for key in arguments:
        require(key in taken, "model.quantization.quant_kwargs", key, f"{', '.join(taken)} (arguments of {kind.__name__})")
    try:
        if backend == "torchao" and isinstance(arguments.get("quant_type"), str):
            import torchao.quantization

            arguments["quant_type"] = getattr(torchao.quantization, arguments["quant_type"])()
        return kind(**arguments)
    except Exception as error:  # whatever a library raises on its arguments
        allowed = f"what {kind.__name__} takes ({one_line(error)})"
        raise UsageError(f"model.quantization.quant_kwargs is {given.get('quant_kwargs', {})!r}; allowed: {allowed}") from error


def quantized(model: ModelConfig, libraries: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of ``from_pretrained`` that quantize a model while it is loaded."""
    found = quantizers(model, libraries)
    return {"quantization_config": PipelineQuantizationConfig(quant_mapping=found)} if found else {}


def place(pipeline: Any, model: ModelConfig, device: torch.device | str) -> Any:
    """A loaded pipeline as the options have it executed on a device."""
    denoiser = getattr(pipeline, denoiser_name(pipeline))
    if model.attention is not None:
        with attention_backend():  # else it would be that of all networks of this process
            denoiser.set_attention_backend(model.attention)
    if model.vae_tiling:
        pipeline.vae.enable_tiling()
    if model.vae_slicing:
        pipeline.vae.enable_slicing()
    if model.offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif model.offload == "group":  # without streams, whose hooks change in the first call, so that it is unlike all others
        pipeline.enable_group_offload(torch.device(device), offload_type="leaf_level")
    else:
        pipeline.to(device)
    if model.compile:
        denoiser.compile_repeated_blocks()
    return pipeline


@contextmanager
def model_offload_suspended(pipeline: Any) -> Iterator[None]:
    """The context in which hooks are installed or removed.

    A pipeline removes its hooks of model offloading after each run and installs them again, so they are to stay outermost.
    """
    modules = [one for one in getattr(pipeline, "components", {}).values() if isinstance(one, torch.nn.Module)]
    if not getattr(pipeline, "_all_hooks", None) or not any(hasattr(one, "_hf_hook") for one in modules):
        yield
        return
    pipeline.remove_all_hooks()
    try:
        yield
    finally:
        pipeline.enable_model_cpu_offload(device=pipeline._offload_device)


def execution_device(pipeline: Any, denoiser: torch.nn.Module) -> torch.device:
    """The device on which a pipeline runs, also where its weights wait in main memory."""
    device = getattr(pipeline, "_execution_device", None)
    return cast(torch.device, next(denoiser.parameters(), torch.empty(0)).device if device is None else device)
