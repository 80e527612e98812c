"""What must be known of a model before its weights are loaded, read from its configuration files alone."""

import hashlib
import inspect
import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
from huggingface_hub.constants import HF_HOME

from hybridiff.config import ModelConfig, SamplingConfig
from hybridiff.config.model import PATHS
from hybridiff.errors import UsageError, require
from hybridiff.models.execution import check_execution
from hybridiff.models.families import Family, family_of
from hybridiff.models.guidance import refused_negative_prompts
from hybridiff.models.hub_files import is_local, model_folder
from hybridiff.models.lora import Lora, check_lora, find_lora
from hybridiff.models.model_files import check_configurations, check_files, loaded_files
from hybridiff.models.model_parts import model_parts, read_json
from hybridiff.models.schedulers import check_schedulers
from hybridiff.models.weight_files import network_on_meta

KEPT_BYTES = 100_000_000
# In the names of pipelines that take an image beside the prompt; their signatures often have it as an option
TAKES_IMAGES = re.compile(
    "Img2Img|Inpaint|ControlNet|Upscale|SuperResolution|Refiner|Adapter|Edit(?!ing)|Fill|Pix2Pix(?!Zero)|Redux|Depth2Img"
    "|Kontext|Variation|Control|Layered"
)
# Arguments of a pipeline's call that the job gives by itself or that have options of their own
GIVEN = frozenset(
    {"prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "guidance_rescale", "height", "width", "generator"}
    | {"latents", "output_type", "return_dict", "max_sequence_length", "num_images_per_prompt", "callback_on_step_end"}
    | {"callback_on_step_end_tensor_inputs", "image", "prompt_embeds", "negative_prompt_embeds", "skip_guidance_layers"}
)


@dataclass(frozen=True)
class ModelFacts:
    """A model's shape.

    Args:
        source: local directory or hub id, as from_pretrained takes it.
        commit: commit of a hub model, resolved from its revision once, so that all parts and ranks have the same; None if local.
        pipeline: class name of its pipeline.
        absent: parts that the model comes without, such as SD3's T5.
        multiple: heights and widths are multiples of this, in pixels.
        default_size: height and width in pixels unless asked otherwise.
        largest_size: largest size in pixels that the position embeddings allow; None where there is no bound.
        denoiser: class name of its unet or transformer.
        scheduler: class name of its own scheduler.
        scheduler_config: configuration of that.
        files: paths of the files that loading opens, by their names in the model's directory; empty for a hub model.
        lora: weights to apply to it.
        distilled: whether guidance is distilled into its denoiser, which then has no unconditional branch.
        networks: library of each of its networks by name, diffusers or transformers.
    """

    source: str
    commit: str | None
    pipeline: str
    absent: tuple[str, ...]
    multiple: int
    default_size: int
    largest_size: int | None
    denoiser: str
    scheduler: str
    scheduler_config: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    lora: tuple[Lora, ...] = ()
    distilled: bool = False
    networks: dict[str, str] = field(default_factory=dict)

    @property
    def pipeline_class(self) -> Any:
        """The class of its pipeline in Diffusers."""
        return getattr(diffusers, self.pipeline)


def read_facts(model: ModelConfig) -> ModelFacts:
    """Finds a model and reads its shape.

    Raises:
        UsageError: it is neither bundled, nor a local directory in Diffusers' format, nor on the hub, or has weights that are not
            safetensors.
        StorageError: the hub did not answer.
    """
    folder = model_folder(model)
    try:
        return _facts(folder, None if is_local(model) else folder.name, model)
    except UsageError:
        raise
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, OverflowError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UsageError(
            f"model.path is {model.path!r}; allowed: a model in Diffusers' format, not one like this ({reason})"
        ) from error


def _facts(folder: Path, commit: str | None, model: ModelConfig) -> ModelFacts:
    def config(name: str) -> dict[str, Any]:
        path = folder / name
        if not path.is_file():
            raise UsageError(f"model.path is {model.path!r}; allowed: {PATHS} (no such file: {path})")
        parsed: dict[str, Any] = read_json(model.path, path, name)
        return parsed

    index = config("model_index.json")
    parts = model_parts(model.path, index)
    if commit is None:
        opened = loaded_files(model.path, folder, parts, model.variant)
        check_files(model.path, opened, parts)
    else:  # its weights are downloaded when they are loaded, and checked then
        opened = {}
        check_configurations(model.path, folder, parts)
    absent = tuple(k for k, v in index.items() if isinstance(v, list) and v == [None, None])
    denoiser_name = "unet" if index.get("unet") else "transformer"
    if denoiser_name in absent or "vae" in absent or not index.get(denoiser_name) or not index.get("vae"):
        allowed = "a model with a vae and a unet or transformer in its model_index.json"
        raise UsageError(f"model.path is {model.path!r}, a {index['_class_name']}; allowed: {allowed}")
    denoiser, vae = config(f"{denoiser_name}/config.json"), config("vae/config.json")
    for name, needed in (("scaling_factor", True), ("shift_factor", False)):
        given = vae.get(name)
        number = isinstance(given, (int, float)) and math.isfinite(given) and (given != 0 or not needed)
        if given is not None and not number:
            raise UsageError(
                f"model.path is {model.path!r}; allowed: a model whose vae/config.json has a number as {name}, not {given!r}"
            )
    family = family_of(getattr(diffusers, index["_class_name"], object))
    scale, patch = latent_sides(family, denoiser, vae)
    size = denoiser.get("sample_size") or family.area_side or (64 if family.pixels is None else family.pixels // scale)
    most = positions_of_side(index[denoiser_name][1], denoiser)
    lora = find_lora(model)
    networks = {part.name: part for part in parts if part.has_weights}
    executed = model.compile or model.attention or model.vae_tiling or model.vae_slicing or model.offload != "none"
    if lora or executed or model.quantization:
        on_meta = {name: network_on_meta(folder / name, part.kind) for name, part in networks.items()}
        check_execution(model, getattr(diffusers, index["_class_name"]), on_meta, denoiser_name)
        on_meta.pop("vae")
        for option, one in zip(model.loras, lora, strict=True):
            check_lora(option.path, one, getattr(diffusers, index["_class_name"]), on_meta, denoiser_name)
    return ModelFacts(
        source=str(folder) if commit is None else model.path,
        commit=commit,
        pipeline=index["_class_name"],
        absent=absent,
        multiple=math.lcm(8, scale * patch),
        default_size=int(size if isinstance(size, int) else size[0]) * scale,
        largest_size=most * patch * scale if most else None,
        denoiser=index[denoiser_name][1],
        scheduler=index["scheduler"][1],
        scheduler_config=config("scheduler/scheduler_config.json") | {"_class_name": index["scheduler"][1]},
        files=opened,
        lora=lora,
        distilled=denoiser.get("time_cond_proj_dim") is not None or _lacks_guider(index),
        networks={name: part.library for name, part in networks.items()},
    )


def latent_sides(family: Family, denoiser: dict[str, Any], vae: dict[str, Any]) -> tuple[int, int]:
    """Side of a latent in pixels, and of a token in latents: heights and widths of images are multiples of their product.

    Args:
        family: of the pipeline.
        denoiser: configuration of the denoiser.
        vae: configuration of the autoencoder.
    """
    halvings = vae.get("temperal_downsample")  # of Wan's and Qwen's, one for each halving of the sides
    if halvings is None:
        levels = vae.get("block_out_channels") or vae.get("encoder_block_out_channels") or [0] * 4  # the latter of Sana's
        halvings = levels[1:]
    sides = denoiser.get("patch_size") or 1
    return int(2 ** len(halvings)), family.packed or int(sides if isinstance(sides, int) else sides[-1])


def positions_of_side(kind: str, denoiser: dict[str, Any]) -> int | None:
    """The largest number of tokens along a side; None where there is no bound.

    Args:
        kind: class name of the denoiser.
        denoiser: its configuration.
    """
    most = denoiser.get("pos_embed_max_size")
    if not most:
        return None
    return math.isqrt(int(most)) if kind == "AuraFlowTransformer2DModel" else int(most)  # the former says it of all tokens


def _lacks_guider(index: dict[str, Any]) -> bool:
    """Whether a model of a pipeline that leaves guidance to a part of its own comes without that part."""
    optional = getattr(getattr(diffusers, index["_class_name"], object), "_optional_components", ())
    return "guider" in optional and not any(index.get("guider") or ())


def check_model(model: ModelConfig, sampling: SamplingConfig, facts: ModelFacts) -> None:
    """Refuses sizes, schedulers and options that the model can't take.

    Raises:
        UsageError: naming the option, what was given and what is allowed.
    """
    pipeline: Any = getattr(diffusers, facts.pipeline, None)
    require(
        pipeline is not None, "model.path", model.path, f"pipelines of diffusers {diffusers.__version__}, not {facts.pipeline}"
    )
    check_pipeline(model.path, pipeline)
    for name in ("height", "width"):
        size = getattr(sampling, name)
        if size is not None:
            require(size % facts.multiple == 0, f"sampling.{name}", size, f"multiples of {facts.multiple} for {model.path}")
            largest = facts.largest_size
            require(largest is None or size <= largest, f"sampling.{name}", size, f"at most {largest} for {model.path}")
    if family_of(pipeline).area_side:
        _check_area(sampling, facts)
    check_schedulers(model, sampling, facts.scheduler_config, pipeline)
    parameters = inspect.signature(pipeline.__call__).parameters
    for option, unset in (("guidance_rescale", 0.0), ("max_sequence_length", None)):
        given = getattr(sampling, option)
        require(
            given == unset or option in parameters, f"sampling.{option}", given, f"{unset}; {facts.pipeline} has no such option"
        )
    instead = refused_negative_prompts(pipeline, sampling, facts.distilled)
    negative = sampling.negative_prompt
    require(negative is None or instead is None, "sampling.negative_prompt", negative, instead or "")
    named = {name for name, option in parameters.items() if option.kind is not option.VAR_KEYWORD}
    allowed = sorted(named - GIVEN - {"self"})
    for option in sampling.options:
        hint = f"options of {facts.pipeline} that the job does not give: {', '.join(allowed)}"
        require(option in allowed, "sampling.options", option, hint)


def _check_area(sampling: SamplingConfig, facts: ModelFacts) -> None:
    """Refuses sizes in place of which a pipeline generates others, as it scales all to the same area.

    Raises:
        UsageError: with the size that the pipeline would generate.
    """
    area, multiple = facts.default_size**2, facts.multiple
    asked = sampling.height or facts.default_size, sampling.width or facts.default_size

    def scaled(height: int, width: int) -> tuple[int, int]:
        scale = math.sqrt(area / (width * height))
        return int(height * scale // multiple * multiple), int(width * scale // multiple * multiple)

    if scaled(*asked) == asked:
        return
    kept = scaled(*asked)
    for _ in range(10):  # rounding changes the area again
        kept = scaled(*kept)
    raise UsageError(
        f"sampling.height is {asked[0]} and sampling.width {asked[1]}; allowed: sizes of about {area / 1e6:.2g} million pixels, "
        f"to which {facts.pipeline} scales, such as {kept[0]} and {kept[1]}"
    )


def check_pipeline(path: str, pipeline: Any) -> None:
    """Refuses pipelines that need more than a prompt, and those that make no images.

    Raises:
        UsageError: with what the pipeline takes or makes.
    """
    name, taken = pipeline.__name__, inspect.signature(pipeline.__call__).parameters
    required = [key for key, value in taken.items() if value.default is value.empty and value.kind is value.POSITIONAL_OR_KEYWORD]
    needed = [key for key in required if key not in ("self", "prompt")]
    if "Modular" in name:
        why = "is made of blocks"
    elif "Video" in name or not taken.keys().isdisjoint(("num_frames", "video_length", "frames")):
        why = "generates video"
    elif "Audio" in name or any("audio" in key for key in taken):
        why = "generates audio"
    elif TAKES_IMAGES.search(name) or any("image" in key and "embed" not in key for key in needed):
        why = "takes an image"
    elif "prompt" not in taken or needed:
        why = f"takes {', '.join(needed) or 'no prompt'}"
    elif "output_type" not in taken:
        why = "returns no latents"
    else:
        return
    raise UsageError(f"model.path is {path!r}, a {name}, which {why}; allowed: pipelines that generate images from prompts alone")


def weights_revision(model: ModelConfig, facts: ModelFacts) -> str:
    """What pins the weights: the commit of a hub model, or ``sha256:`` and a digest of a local one; the same of LoRA weights."""
    parts = [facts.commit or f"sha256:{_digest(facts.files)}"]
    parts += [f"lora:{lora.pin}" if lora.pin else f"lora-sha256:{_digest({lora.path.name: lora.path})}" for lora in facts.lora]
    return " ".join(parts)


def _digest(opened: dict[str, Path]) -> str:
    """A digest of files by their names and content, wherever they lie."""
    digest = hashlib.sha256()
    for name, path in sorted(opened.items()):
        digest.update(f"{name}\0{_file_digest(str(path.resolve()), *_identity(path))}\0".encode())
    return digest.hexdigest()[:16]


def _identity(path: Path) -> tuple[int, str]:
    """A file's size, and what changes with its content, also where a copy keeps the time: two times and the inode."""
    found = path.stat()
    return found.st_size, f"{found.st_mtime_ns}|{found.st_ctime_ns}|{found.st_ino}"


def _file_digest(path: str, size: int, version: str) -> str:
    """A file's digest; that of a large one is kept in the cache of Hugging Face, by what changes with its content."""
    known = Path(HF_HOME, "hybridiff", hashlib.sha256(f"{path}|{size}|{version}".encode()).hexdigest())
    if size >= KEPT_BYTES:
        with suppress(OSError):
            return known.read_text()
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if size >= KEPT_BYTES:
        with suppress(OSError):
            known.parent.mkdir(parents=True, exist_ok=True)
            part = known.with_suffix(f".{os.getpid()}")
            part.write_text(digest)
            part.replace(known)
    return digest
