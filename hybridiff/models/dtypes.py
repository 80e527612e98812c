"""Floating-point types of a model by name."""

from typing import Final

import torch

from hybridiff.config import Dtype

AUTO: Final = "auto"


def resolve_dtype(dtype: Dtype, device: str) -> Dtype:
    """The dtype that ``auto`` stands for: bfloat16 on GPUs that have it, else float16; float32 on CPUs.

    Args:
        dtype: a dtype or auto.
        device: device type or Lightning's accelerator: cpu, cuda, gpu, mps or auto.
    """
    if dtype != AUTO:
        return dtype
    if device in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "float32" if device in ("auto", "cpu") else "float16"
