"""Is the device that was asked for there?"""

from __future__ import annotations

import torch

from layerscope.errors import ProbeError


def check_device(wanted: str | torch.device) -> torch.device:
    """The device, if it is one and is there.

    Raises:
        ProbeError: not a device, or one that this machine does not have.
    """
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise ProbeError(f"{wanted!r} is not a device: use cpu, cuda, cuda:0 or mps") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ProbeError(f"device {str(device)!r} was asked for, but CUDA is not available here: use cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ProbeError(
            f"device {str(device)!r} was asked for, but there are {torch.cuda.device_count()} CUDA devices"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ProbeError("device 'mps' was asked for, but Metal is not available here: use cpu")
    return device
