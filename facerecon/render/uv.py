"""The UV map: sampling it, rasterizing it, and baking a photo into it (Sec. 3.1.2)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from facerecon.errors import ConfigError, ShapeError, check_shape, nearest_name
from facerecon.geometry.camera import clip_coordinates, project
from facerecon.geometry.mesh import cached, vertex_normals
from facerecon.render.interpolate import Covered, covered
from facerecon.render.rasterize import rasterize
from facerecon.types import Camera, Fragments, MeshTopology

__all__ = ["FILTERS", "bake", "mirrored", "pad_islands", "region_texels", "sample_texture", "uv_clip", "uv_raster"]

FILTERS = ("bilinear", "nearest")

# Visibility of a texel, in world units (0.1 m) and cosines.
DEPTH_BIAS = 0.01  # 1 mm, plus what a slanted surface gains in depth over 1.5 pixels
DEPTH_SOFTNESS = 0.02
FACING_NONE, FACING_FULL = 0.1, 0.4  # the release cuts at normal.z > 0.1; here it is a ramp
SHADOW_SIZE = (512, 1024)  # the longer side of the z-buffer lies between these


def check_filter(filter: str) -> str:
    """``filter`` itself, or a ConfigError that names the nearest known one."""
    if filter not in FILTERS:
        raise ConfigError(nearest_name(filter, FILTERS, "texture filter"))
    return filter


def sampling_grid(uv: Tensor) -> Tensor:
    """UV (origin bottom-left) in ``grid_sample`` units (origin top-left, -1 to 1)."""
    return torch.stack([uv[..., 0] * 2 - 1, 1 - uv[..., 1] * 2], dim=-1)


def sample_grid(texture: Tensor, grid: Tensor, filter: str = "bilinear") -> Tensor:
    """(P, C) of one texture (1, C, S, S) at P points of :func:`sampling_grid`; the border is extended."""
    sampled = F.grid_sample(texture, grid[None, None], mode=filter, padding_mode="border", align_corners=False)
    return sampled[0, :, 0].t()


def sample_texture(texture: Tensor, uv: Tensor, filter: str = "bilinear") -> Tensor:
    """Texture values at UV coordinates: (B, ..., C).

    Texel (row r, column c) of an S x S map has its center at u = (c + 0.5) / S, v = 1 - (r + 0.5) / S;
    outside the outermost centers the border is extended.

    Args:
        texture: (B, C, S, S).
        uv: (B, ..., 2), or (1, ..., 2) for all maps; finite.
        filter: "bilinear", or "nearest" (the release's look-up).
    """
    check_shape("texture", texture, "B C H W")
    if uv.shape[-1] != 2 or uv.shape[0] not in (1, texture.shape[0]):
        raise ShapeError(f"uv must be ({texture.shape[0]} or 1, ..., 2); got {tuple(uv.shape)}.")
    grid = sampling_grid(uv).reshape(uv.shape[0], 1, -1, 2).expand(texture.shape[0], -1, -1, -1)
    sampled = F.grid_sample(texture, grid, mode=check_filter(filter), padding_mode="border", align_corners=False)
    return sampled[:, :, 0].mT.reshape(texture.shape[0], *uv.shape[1:-1], texture.shape[1])


def uv_clip(uvs: Tensor) -> Tensor:
    """(1, T, 4): UV coordinates as clip coordinates (2u - 1, 2v - 1, 0, 1), so that v = 1 is the top row."""
    u, v = uvs.unbind(-1)
    return torch.stack([2 * u - 1, 2 * v - 1, torch.zeros_like(u), torch.ones_like(u)], dim=-1)[None]


def uv_texels(topology: MeshTopology, size: int) -> Covered:
    """The texels that some face covers, with their faces and weights; cached per topology and size."""

    def build() -> Covered:
        clip = uv_clip(topology.uvs)
        index = rasterize(clip, topology.uv_faces, (size, size), cull=False)
        return covered(clip, topology.uv_faces, index)[0]

    return cached(f"texels {size}", build, topology.uv_faces, topology.uvs)


def uv_raster(topology: MeshTopology, size: int) -> Fragments:
    """Which face lies under each texel of a ``size`` x ``size`` map, and where in it; cached.

    This replaces precomputed unwrap tables, at any resolution: interpolate any per-vertex quantity with
    ``interpolate(uv_raster(topology, 1024), values, topology.faces)``.

    Args:
        topology: its ``uvs`` and ``uv_faces`` are drawn, both windings.
        size: S.

    Returns:
        Fragments of batch 1; depth is 1 inside the islands and 0 outside.
    """

    def build() -> Fragments:
        found = uv_texels(topology, size)
        index = torch.full((size * size,), -1, dtype=torch.int64, device=topology.uvs.device)
        index = index.index_copy(0, found.pixel, found.face).view(1, size, size)
        return Fragments(index, found.scatter(found.barycentric), (index >= 0).to(found.barycentric.dtype))

    return cached(f"raster {size}", build, topology.uv_faces, topology.uvs)


def region_texels(topology: MeshTopology, regions: str | tuple[str, ...], size: int) -> Tensor:
    """The texels of the faces of some regions; those that the mesh does not have are skipped: (1, 1, S, S) in {0, 1}.

    Args:
        topology: mesh.
        regions: one name or several.
        size: S.
    """
    index = uv_raster(topology, size).face_index[:, None]
    found = torch.zeros(topology.faces.shape[0] + 1, dtype=torch.bool, device=index.device)  # the last: no face
    for region in (regions,) if isinstance(regions, str) else regions:
        if region in topology.regions:
            found[:-1] |= topology.regions[region]
    return found[index].float()


def pad_islands(texture: Tensor, topology: MeshTopology, margin: int | None = 8) -> Tensor:
    """Continue a texture over the borders of its UV islands, so that bilinear sampling shows no seams.

    Args:
        texture: (B, C, S, S); values between islands are replaced.
        topology: which texels belong to an island.
        margin: how many texels to fill, each from the nearest island texel; None fills everything.

    Returns:
        (B, C, S, S); texels beyond the margin keep their value.
    """
    size = check_shape("texture", texture, "B C S S")["S"]

    def build() -> tuple[Tensor, Tensor]:
        inside = uv_raster(topology, size).face_index[0].cpu().numpy() >= 0
        distance, nearest = distance_transform_edt(~inside, return_indices=True)
        fill = (distance > 0) & (distance <= (np.inf if margin is None else margin))
        source = nearest[0][fill] * size + nearest[1][fill]
        target = np.flatnonzero(fill)
        device = topology.uvs.device
        return torch.from_numpy(target).to(device), torch.from_numpy(source.astype(np.int64)).to(device)

    target, source = cached(f"padding {size} {margin}", build, topology.uv_faces, topology.uvs)
    flat = texture.reshape(*texture.shape[:2], -1)
    return flat.index_copy(2, target, flat.index_select(2, source)).view_as(texture)


def mirrored(texture: Tensor, topology: MeshTopology) -> tuple[Tensor, Tensor]:
    """What lies on the other side of the head: each texel takes the value of its mirror image.

    In an atlas that is mirror symmetric this is a horizontal flip; elsewhere each texel's face is followed to the
    mirrored vertices (``topology.mirror``) and their UVs. Texels whose mirror image is cut by a seam have none.

    Args:
        texture: (B, C, S, S).
        topology: faces, UVs and mirror.

    Returns:
        (B, C, S, S), and (1, 1, S, S) in {0, 1}, where there is a mirror image.
    """
    size = check_shape("texture", texture, "B C S S")["S"]

    def build() -> tuple[Tensor | None, Tensor]:
        found = uv_texels(topology, size)
        own = topology.uvs[topology.uv_faces[found.face]]  # (P, 3, 2)
        of_vertex = topology.uvs.new_zeros(len(topology.mirror), 2)
        of_vertex[topology.faces.flatten()] = topology.uvs[topology.uv_faces.flatten()]
        other = of_vertex[topology.mirror[topology.faces[found.face]]]
        spread, expected = ((uv - uv.roll(1, 1)).norm(dim=2).amax(1) for uv in (other, own))
        whole = spread <= 2 * expected + 4 / size
        flipped = own * own.new_tensor([-1.0, 1.0]) + own.new_tensor([1.0, 0.0])
        off = (found.mix(other) - found.mix(flipped)).abs().amax(1)
        valid = whole.new_zeros(size * size).index_copy(0, found.pixel, whole).view(1, 1, size, size)
        if bool((off[whole] < 1 / 256).float().mean() > 0.98):
            return None, torch.ones_like(valid)
        grid = own.new_zeros(size * size, 2).index_copy(0, found.pixel, sampling_grid(found.mix(other)))
        return grid.view(1, size, size, 2), valid

    grid, valid = cached(f"mirror {size}", build, topology.uv_faces, topology.uvs, topology.mirror)
    valid = valid.to(texture)
    if grid is None:
        return texture.flip(-1), valid
    taken = F.grid_sample(texture, grid.expand(len(texture), -1, -1, -1), padding_mode="border", align_corners=False)
    return taken * valid, valid


def _ramp(value: Tensor, low: float, high: float) -> Tensor:
    """Smooth step from 0 at ``low`` to 1 at ``high``."""
    t = ((value - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def _selected(found: Covered, keep: Tensor) -> Covered:
    """Some of the texels of one map."""
    parts = {name: getattr(found, name)[keep] for name in ("pixel", "image", "face", "barycentric")}
    return replace(found, counts=(len(parts["pixel"]),), **parts)


def _shadow_size(size: tuple[int, int], wanted: int | None = None) -> tuple[int, int]:
    longer = max(size)
    scale = (wanted or min(max(longer, SHADOW_SIZE[0]), SHADOW_SIZE[1])) / longer
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


@torch.no_grad()
def _visibility(
    texels: Tensor, cosine: Tensor, depth_map: Tensor, camera_size: tuple[int, int], focal: Tensor
) -> Tensor:
    """How much of each texel (T, 3) the camera sees past everything else, by a z-buffer of any resolution: (T,) in
    [0, 1], 0 where any of the four pixels around the texel shows a nearer surface or none."""
    height, width = depth_map.shape
    x = texels[:, 0] * (width / camera_size[1]) - 0.5
    y = texels[:, 1] * (height / camera_size[0]) - 0.5
    column, row = x.floor().clamp(-1, width).long(), y.floor().clamp(-1, height).long()
    slope = (1 / cosine.clamp(FACING_NONE, 1).square() - 1).sqrt()
    pixel = texels[:, 2] / (focal * (height / camera_size[0]))  # world units that a z-buffer pixel spans
    limit = texels[:, 2] - DEPTH_BIAS - 1.5 * pixel * slope
    visible = torch.ones_like(limit)
    flat = depth_map.reshape(-1)
    for down in (0, 1):
        for across in (0, 1):
            index = (row + down).clamp(0, height - 1) * width + (column + across).clamp(0, width - 1)
            nearest = flat.index_select(0, index)
            free = 1 - ((limit - nearest) / DEPTH_SOFTNESS).clamp(0, 1)
            visible = torch.minimum(visible, torch.where(nearest > 0, free, torch.zeros_like(free)))
    inside = (texels[:, 2] > 0) & (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
    return visible * inside


@torch.no_grad()
def _view_from(
    camera: Camera, vertices: Tensor, topology: MeshTopology, size: tuple[int, int], backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Depth maps (B, H, W) of the head, the camera's places in the world (B, 1, 3) and focal lengths (B,) in px."""
    clip = clip_coordinates(camera, vertices)
    nearest, depth = covered(clip, topology.faces, rasterize(clip, topology.faces, size, backend, cull=False))
    stretch = torch.linalg.det(camera.warp[:, :, :2].double()).abs().sqrt().to(camera.warp)
    focal = camera.focal.reshape(camera.focal.shape[0], -1).mean(-1) * stretch
    return nearest.scatter(depth[:, None])[..., 0], -(camera.translation[:, None] @ camera.rotation), focal


def bake(
    image: Tensor,
    vertices: Tensor,
    topology: MeshTopology,
    camera: Camera,
    size: int = 1024,
    mask: Tensor | None = None,
    padding: int = 8,
    backend: str = "auto",
    offset: Tensor | None = None,
    texels: Tensor | None = None,
    shadow: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Unwrap an image into UV: each texel takes the color of the pixel it projects to (Sec. 3.1.2).

    Unlike FFHQ-UV: visibility is the z-buffer's as well as the normal's, so the nose hides the cheek behind
    it; and it is soft. Colors are filled in for every texel, visible or not: weigh them by ``visibility``.

    Args:
        image: (B, C, H, W) at ``camera.size``; differentiable.
        vertices: (B, V, 3) posed world vertices.
        topology: faces and UVs.
        camera: the camera of that image, e.g. ``face.camera`` for a whole photo.
        size: S.
        mask: (B, 1, H, W) in [0, 1]; what may be used (a face mask); multiplies ``visibility``.
        padding: texels to continue beyond the islands, see :func:`pad_islands`.
        backend: rasterizer of the z-buffer.
        offset: (B, V, 2), pixels by which the image shows each vertex beside its projection (where a fit leaves a
            residual); what hides what is decided without it.
        texels: (S, S) bool, which texels are wanted; the rest stays 0. None: all.
        shadow: pixels of the z-buffer's longer side; None: the image's, within limits.

    Returns:
        texture: (B, C, S, S), 0 outside islands and padding.
        visibility: (B, 1, S, S) in [0, 1]: facing the camera (cosine above 0.1, fully from 0.4), not hidden, inside
            image and mask. Detached.

    Raises:
        ShapeError: the image is not of the camera's size.
    """
    batch = check_shape("image", image, "B C H W")["B"]
    check_shape("vertices", vertices, f"{batch} V 3")
    if tuple(image.shape[2:]) != tuple(camera.size):
        raise ShapeError(
            f"image must be (B, C, {camera.size[0]}, {camera.size[1]}), the camera's size; "
            f"got {tuple(image.shape)}. Use scale_camera(camera, image.shape[2:])."
        )
    if mask is not None:
        check_shape("mask", mask, f"{batch} 1 {image.shape[2]} {image.shape[3]}")
    height, width = camera.size
    found = uv_texels(topology, size)
    if texels is not None:
        check_shape("texels", texels, f"{size} {size}")
        found = _selected(found, texels.reshape(-1)[found.pixel])
    normals = vertex_normals(vertices, topology.faces)
    depth_maps, eyes, focal = _view_from(camera, vertices, topology, _shadow_size((height, width), shadow), backend)
    textures, weights = [], []
    for b in range(batch):
        one = slice(b, b + 1) if camera.batch > 1 else slice(0, 1)
        packed = found.interpolate(torch.cat([vertices[b : b + 1], normals[b : b + 1]], dim=-1), topology.faces)
        points, normal = packed.split(3, 1)
        texels = project(camera[one], points[None])[0]
        place = texels[:, :2]
        if offset is not None:
            place = place + found.interpolate(offset[b : b + 1], topology.faces)
        grid = torch.stack([place[:, 0] * (2 / width) - 1, place[:, 1] * (2 / height) - 1], dim=-1)
        grid = grid.nan_to_num(0.0, 2.0, -2.0).clamp(-2, 2)
        color = sample_grid(image[b : b + 1], grid)
        with torch.no_grad():
            view = F.normalize(eyes[one][0] - points, dim=-1)
            cosine = (F.normalize(normal, dim=-1) * view).sum(-1)
            weight = _ramp(cosine, FACING_NONE, FACING_FULL)
            weight = weight * _visibility(texels, cosine, depth_maps[b], (height, width), focal[one][0])
            if mask is not None:
                weight = weight * sample_grid(mask[b : b + 1].to(weight.dtype), grid)[:, 0]
        blank = color.new_zeros(size * size, color.shape[-1])
        textures.append(blank.index_copy(0, found.pixel, color).t().view(-1, size, size))
        weights.append(weight.new_zeros(size * size).index_copy(0, found.pixel, weight).view(1, size, size))
    maps = torch.stack(textures), torch.stack(weights)
    return (pad_islands(maps[0], topology, padding), pad_islands(maps[1], topology, padding)) if padding else maps
