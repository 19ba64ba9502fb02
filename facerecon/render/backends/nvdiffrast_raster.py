"""Face ids by nvdiffrast, for those who have installed it: UNTESTED on a GPU by us.

An adapter to its documented interface; the tests run it against a stand-in that follows that interface, never
against the package itself. nvdiffrast snaps vertices to a sixteenth of a pixel, so ids differ from the other
backends' along face borders. Its license allows non-commercial use only; it is no dependency of this package and
never chosen by ``backend="auto"``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from facerecon.errors import ConfigError

__all__ = ["face_ids"]

_contexts: dict[torch.device, Any] = {}


def face_ids(screen: Tensor, faces: Tensor, size: tuple[int, int], cull: bool) -> Tensor:
    """Face ids by ``nvdiffrast.torch.rasterize``; see the package's docstring for the contract.

    Raises:
        ConfigError: nvdiffrast cannot be imported or has no context for this device.
    """
    try:
        import nvdiffrast.torch as nvdiffrast
    except ImportError:
        raise ConfigError("backend 'nvdiffrast' is not installed; see its own page, or use backend='auto'.") from None
    device = screen.device
    if device not in _contexts:
        try:
            _contexts[device] = nvdiffrast.RasterizeCudaContext(device=device)
        except Exception as error:
            message = " ".join(str(error).split())
            raise ConfigError(f"nvdiffrast has no context for {device} ({message}); use backend='auto'.") from None
    height, width = size
    x, y, near, w = screen.unbind(-1)
    # Depth is linear on the screen already, so w may be 1; z / w runs from -1 (near) to 1.
    points = torch.stack([x * (2 / width) - 1, 1 - y * (2 / height), 1 - 2 * near, torch.ones_like(w)], -1).float()
    images = []
    for b in range(len(screen)):
        a, e, c = (screen[b, faces[:, i]] for i in range(3))
        area = (e[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (c[:, 0] - a[:, 0]) * (e[:, 1] - a[:, 1])
        drawn = (area < 0 if cull else area != 0) & (torch.stack([a, e, c])[..., 3] > 0).all(0)
        kept = drawn.nonzero()[:, 0]
        if len(kept) == 0:
            images.append(torch.full((height, width), -1, dtype=torch.int64, device=device))
            continue
        triangles = faces[kept].to(torch.int32).contiguous()
        found, _ = nvdiffrast.rasterize(
            _contexts[device], points[b : b + 1].contiguous(), triangles, [height, width], grad_db=False
        )
        ids = found[0, ..., 3].long().flip(0) - 1  # counted from 1, rows from the bottom
        images.append(torch.where(ids >= 0, kept[ids.clamp(min=0)], ids))
    return torch.stack(images)
