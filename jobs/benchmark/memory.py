"""How much memory a rank holds at most while it draws."""

import ctypes
import ctypes.util
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def start_peak(device: torch.device) -> None:
    """Forgets earlier peaks; on CPU, gives memory that is free but held back to the system first."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _RESET.exists():
        libc = ctypes.CDLL(ctypes.util.find_library("c"))
        libc.malloc_trim(0)
        _RESET.write_text("5")


def peak_mib(device: torch.device) -> float | None:
    """The peak since ``start_peak`` in MiB, weights included: of the device's allocator, or of the process; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if not _STATUS.exists():
        return None
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
    return int(lines["VmHWM"].split()[0]) / 1024 if "VmHWM" in lines else None
