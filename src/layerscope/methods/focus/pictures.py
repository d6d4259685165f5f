"""Small pictures of images and of the positions that were not computed, as data URIs: text that any page can hold."""

from __future__ import annotations

import base64
import struct
import zlib

import torch
from torch import Tensor

from layerscope.methods.focus.model import FocusedModel
from layerscope.methods.focus.records import Picture


def pictures(model: FocusedModel, x: Tensor, names: list[str] | None = None) -> tuple[Picture, ...]:
    """Each image of ``x`` [N, C, H, W] and, over it, a veil where nothing is computed."""
    model(x)
    masks = model.last_aoi or [torch.ones(x.shape[2:], dtype=torch.bool)] * len(x)
    made = []
    for i, (image, mask) in enumerate(zip(x, masks, strict=True)):
        low, high = float(image.amin()), float(image.amax())
        grey = ((image - low) / max(high - low, 1e-12) * 255).round().to(torch.uint8)
        colours = grey[:3] if grey.shape[0] >= 3 else grey[:1].expand(3, -1, -1)
        opaque = torch.full((1, *mask.shape), 190, dtype=torch.uint8) * ~mask
        veil = torch.cat([torch.tensor([20, 24, 60], dtype=torch.uint8)[:, None, None].expand(3, *mask.shape), opaque])
        name = names[i] if names else f"image {i + 1}"
        made.append(Picture(name, png(colours), png(veil), float(mask.float().mean()), model.last_route[i]))
    return tuple(made)


def png(pixels: Tensor) -> str:
    """``data:image/png;base64,...`` of uint8 [3 or 4, H, W]."""
    channels, height, width = pixels.shape
    rows = pixels.permute(1, 2, 0).contiguous().reshape(height, -1)
    raw = b"".join(b"\0" + bytes(row.tolist()) for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 6, 0, 0, 0)
    parts = [_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(raw, 9)), _chunk(b"IEND", b"")]
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).decode()


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
