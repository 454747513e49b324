"""Where and how exactly to compute, settled once before any work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch

from tessera_xr.errors import DeviceError

Precision: TypeAlias = Literal["auto", "float32", "bfloat16"]


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device to compute on; "auto" takes CUDA, then Apple's MPS, then Intel's XPU, then the CPU.

    Raises
    ------
    DeviceError
        If the device is unknown or not to be had on this machine.
    """
    available = _available()
    if device == "auto":
        return torch.device(available[0])
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise DeviceError(f"{device!r} is no device; choose 'auto' or one of {available}") from error
    count = torch.cuda.device_count() if found.type == "cuda" else 1
    if found.type not in available or (found.index or 0) >= count:
        raise DeviceError(
            f"device {str(device)!r} is not to be had here; this machine has {available}. "
            "Use device='auto', or install a PyTorch build for your GPU (pytorch.org/get-started)"
        )
    return found


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the number format of the matrix products; "auto" is bfloat16 on GPUs that have it, else float32.

    Raises
    ------
    DeviceError
        If the precision is unknown, or the device doesn't have it.
    """
    if precision not in ("auto", "float32", "bfloat16"):
        raise DeviceError(f"precision {precision!r} is unknown; choose 'auto', 'float32' or 'bfloat16'")
    capable = _has_bfloat16(device)
    if precision == "bfloat16" and not capable:
        raise DeviceError(f"device {str(device)!r} has no bfloat16; use precision='float32'")
    wanted = precision == "bfloat16" or (precision == "auto" and capable and device.type != "cpu")
    return torch.bfloat16 if wanted else torch.float32


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type in ("cpu", "xpu")


def _available() -> list[str]:
    gpus: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
        "xpu": torch.xpu.is_available,
    }
    return [name for name, here in gpus.items() if here()] + ["cpu"]
