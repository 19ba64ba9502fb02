"""Projection of world points by a :class:`~facerecon.types.Camera`, to pixels and to clip space."""

from __future__ import annotations

import torch
from torch import Tensor

from facerecon.errors import check_shape
from facerecon.types import Camera

__all__ = ["camera_in_photo", "clip_coordinates", "project", "scale_camera"]


def _homogeneous_pixels(camera: Camera, points: Tensor) -> Tensor:
    """(B, N, 3) rows (x_px * z, y_px * z, z): pixels before the division by depth, warp applied."""
    check_shape("points", points, "B N 3")
    in_camera = points @ camera.rotation.mT + camera.translation[:, None]
    focal = camera.focal if camera.focal.ndim == 2 else camera.focal[:, None]
    depth = in_camera[..., 2:]
    pixels = in_camera[..., :2] * focal[:, None] + depth * camera.center[:, None]
    warped = pixels @ camera.warp[:, :, :2].mT + depth * camera.warp[:, None, :, 2]
    return torch.cat([warped, depth], dim=-1)


def project(camera: Camera, points: Tensor) -> Tensor:
    """Pixels and depth of world points: ``p = warp(focal * (x, y) / z + center)``.

    The batch of either argument may be 1.

    Args:
        camera: pinhole camera of batch B.
        points: (B, N, 3) world coordinates (0.1 m; y up). Points behind the camera give meaningless pixels.

    Returns:
        (B, N, 3): x and y in pixels (origin top-left, y down), depth along the camera's z in world units.
    """
    homogeneous = _homogeneous_pixels(camera, points)
    depth = homogeneous[..., 2:]
    return torch.cat([homogeneous[..., :2] / depth, depth], dim=-1)


def clip_coordinates(camera: Camera, points: Tensor) -> Tensor:
    """Clip-space coordinates (x, y, z, w) of world points; they do not depend on the resolution rendered: (B, N, 4).

    x / w runs from -1 (left edge of the image) to 1, y / w from -1 (bottom edge) to 1 (top), z / w from -1
    (near) to 1 (far), and w is the depth along the camera's z.

    Args:
        camera: pinhole camera of batch B; ``camera.size``, ``near`` and ``far`` set the frame.
        points: (B, N, 3) world coordinates.
    """
    x, y, depth = _homogeneous_pixels(camera, points).unbind(-1)
    height, width = camera.size
    near, far = camera.near, camera.far
    return torch.stack(
        [
            x * (2.0 / width) - depth,
            depth - y * (2.0 / height),
            depth * ((far + near) / (far - near)) - 2.0 * far * near / (far - near),
            depth,
        ],
        dim=-1,
    )


def _compose(outer: Tensor, inner: Tensor) -> Tensor:
    """(B, 2, 3) affine map p -> outer(inner(p))."""
    linear = outer[:, :, :2] @ inner[:, :, :2]
    offset = (outer[:, :, :2] @ inner[:, :, 2:]) + outer[:, :, 2:]
    return torch.cat([linear, offset], dim=-1)


def camera_in_photo(camera: Camera, to_photo: Tensor, photo_size: tuple[int, int]) -> Camera:
    """The camera of a crop, expressed in pixels of the photo that it was cut from: its warp goes on to the photo.

    Args:
        camera: camera whose pixels are those of the crop.
        to_photo: (B, 2, 3) affine map from crop pixels to photo pixels.
        photo_size: (H, W) of the photo.
    """
    check_shape("to_photo", to_photo, "B 2 3")
    to_photo = to_photo.to(camera.warp)
    return camera.replace(warp=_compose(to_photo, camera.warp), size=tuple(int(n) for n in photo_size))


def scale_camera(camera: Camera, size: tuple[int, int]) -> Camera:
    """The same view at another resolution.

    Args:
        camera: any camera.
        size: (H, W) wanted; the field of view is kept, so another aspect ratio makes oblong pixels.
    """
    height, width = (int(n) for n in size)
    scale = camera.warp.new_tensor([[width / camera.size[1], 0.0, 0.0], [0.0, height / camera.size[0], 0.0]])
    return camera.replace(warp=_compose(scale.expand(camera.warp.shape[0], 2, 3), camera.warp), size=(height, width))
