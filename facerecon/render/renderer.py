"""A textured, lit head: vertices, texture, camera and light in; image out; gradients back to all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facerecon.errors import ConfigError, ShapeError, check_floats, check_number, check_shape, nearest_name
from facerecon.geometry import lighting
from facerecon.geometry.camera import clip_coordinates, project, scale_camera
from facerecon.geometry.mesh import cached, vertex_normals
from facerecon.render.interpolate import Covered, covered, list_pixels
from facerecon.render.rasterize import choose_backend, rasterize
from facerecon.render.silhouette import Outline, find_outline
from facerecon.render.uv import check_filter, sample_grid, sampling_grid
from facerecon.types import Camera, Fragments, MeshTopology, Rendering, SHLight

__all__ = ["FusedView", "PreparedView", "Renderer"]

SHADINGS = ("pixel", "vertex")


@dataclass(frozen=True)
class PreparedView:
    """A view without its texture: :meth:`shade` is one look-up and one product (stage 2 of a fit).

    Attributes:
        found: the covered pixels.
        grid: (P, 2) where each of them looks into the texture, in ``grid_sample`` units.
        light: (P, 3) shading, or None for an unlit view.
        footprint: (P,) side of a pixel on the UV square, as a fraction of the square's; None if not needed.
        rendering: masks, depth, landmarks, shading and fragments; its image is empty.
        outline: where to antialias, or None.
        filter, texture_level: as in :class:`Renderer`.
    """

    found: Covered
    grid: Tensor
    light: Tensor | None
    footprint: Tensor | None
    rendering: Rendering
    outline: Outline | None = None
    filter: str = "bilinear"
    texture_level: int | str = 0

    @property
    def look_ups(self) -> Tensor:
        """(P, 2): ``grid`` at the covered pixels."""
        return self.grid

    def detach(self) -> PreparedView:
        """Cut geometry and light from the graph: only the texture will receive gradients."""
        return replace(_detached(self), found=replace(self.found, barycentric=self.found.barycentric.detach()))

    def shade(self, texture: Tensor) -> Rendering:
        """Render the view with a texture; ``image`` is not clamped.

        Args:
            texture: (B, 3, S, S) albedo; batch 1 is shared by all views, and a single view may be shared by
                many textures. (Any number of channels where the view is unlit.)
        """
        check_shape("texture", texture, "B C S S")
        check_floats("texture", texture, self.grid, "the vertices")
        views, height, width = self.found.shape
        count = _shared_batch(views, texture)
        lists = [self.found.split(t) for t in (self.found.pixel, self.grid)]
        lights = [None] * views if self.light is None else self.found.split(self.light)
        levels = [
            (level.split(1), None if weight is None else self.found.split(weight))
            for level, weight in _levels(texture, self.texture_level, self.footprint)
        ]
        colors, pixels = [], []
        for i in range(count):
            view, source = min(i, views - 1), min(i, len(texture) - 1)
            color = 0
            for maps, weights in levels:
                sampled = sample_grid(maps[source], lists[1][view], self.filter)
                color = color + (sampled if weights is None else sampled * weights[view][:, None])
            colors.append(color if lights[view] is None else color * lights[view])
            pixels.append(lists[0][view] + (i - view) * height * width)
        color = torch.cat(colors)
        image = color.new_zeros(count * height * width, color.shape[-1])
        image = image.index_copy(0, torch.cat(pixels), color).view(count, height, width, -1)
        return _finish(self.rendering, image.permute(0, 3, 1, 2).contiguous(), self.outline)


@dataclass(frozen=True)
class FusedView:
    """What :class:`PreparedView` is, for the numba kernels: every pixel instead of a list of the covered ones.

    Attributes:
        grid: (B, H, W, 2) where each pixel looks into the texture, in ``grid_sample`` units.
        light: (B, H, W, 3) shading.
        footprint: (B, H, W), 0 on background; or None.
        rendering, outline, texture_level: as in :class:`PreparedView`.
    """

    grid: Tensor
    light: Tensor
    footprint: Tensor | None
    rendering: Rendering
    outline: Outline | None = None
    texture_level: int | str = 0

    @cached_property
    def found(self) -> Covered:
        """The covered pixels, listed."""
        fragments = self.rendering.fragments
        listed = list_pixels(fragments.face_index)
        return replace(listed, barycentric=fragments.barycentric.reshape(-1, 3).index_select(0, listed.pixel))

    @property
    def look_ups(self) -> Tensor:
        """(P, 2): ``grid`` at the covered pixels."""
        return self.grid.reshape(-1, 2).index_select(0, self.found.pixel)

    def detach(self) -> FusedView:
        """Cut geometry and light from the graph: only the texture will receive gradients."""
        return _detached(self)

    def shade(self, texture: Tensor) -> Rendering:
        """Render the view with a texture (B or 1, 3, S, S); see :meth:`PreparedView.shade`."""
        from facerecon.render.backends.numba_shading import textured_shading

        check_shape("texture", texture, "B 3 S S")
        check_floats("texture", texture)
        index = self.rendering.fragments.face_index
        _shared_batch(len(index), texture)
        image = None
        for level, weight in _levels(texture.to(self.grid), self.texture_level, self.footprint):
            if weight is None:
                part = textured_shading(level, self.grid, self.light, index)
            else:
                used = torch.where(weight > 0, index, -1)
                part = textured_shading(level, self.grid, self.light * weight[..., None], used)
            image = part if image is None else image + part
        return _finish(self.rendering, image, self.outline)


def _detached(view: Any) -> Any:
    """A view whose grid, light, rendering and outline are cut from the graph."""
    parts = {name: getattr(view, name) for name in ("grid", "light", "rendering", "outline")}
    return replace(view, **{name: part.detach() for name, part in parts.items() if part is not None})


def _shared_batch(views: int, texture: Tensor) -> int:
    """How many images ``views`` views and a (B, C, S, S) texture make."""
    count = max(views, texture.shape[0])
    if views not in (1, count) or texture.shape[0] not in (1, count):
        raise ShapeError(f"texture must have batch 1 or {views}; got {tuple(texture.shape)}.")
    return count


def _levels(texture: Tensor, level: int | str, footprint: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
    """The levels of a mip pyramid that a view needs, each with its weight (like ``footprint``; None is 1).

    "auto" is trilinear: a pixel of footprint f lies at level log2(f S). A side is halved only while it is even.
    """
    size = texture.shape[-1]
    halvings = (size & -size).bit_length() - 1
    if level != "auto":
        for _ in range(min(int(level), halvings)):
            texture = _halved(texture)
        return [(texture, None)]
    position = (footprint * size).clamp(min=1).log2().clamp(max=halvings)
    known = position[footprint > 0]  # 0 on background, and where a face has no area on the map
    if known.numel() == 0:
        return [(texture, None)]
    first, last = (int(end) for end in (known.amin().floor(), known.amax().ceil()))
    position = position.clamp(min=first)
    found = []
    for at in range(last + 1):
        texture = _halved(texture) if at else texture
        if at >= first:
            found.append((texture, (1 - (position - at).abs()).clamp(min=0)))
    return found


def _halved(texture: Tensor) -> Tensor:
    """Means of 2 x 2 texels; a bilinear look-up halfway between them is the same, and faster than pooling."""
    return F.interpolate(texture, scale_factor=0.5, mode="bilinear", align_corners=False)


def _finish(rendering: Rendering, image: Tensor, outline: Outline | None) -> Rendering:
    """The rendering with its image, antialiased where an outline is given."""
    if len(image) > len(rendering.mask):
        rendering = rendering.map(lambda t: t.expand(len(image), *t.shape[1:]))
    return rendering.replace(image=image if outline is None else outline.blend(image))


class Renderer(nn.Module):
    """Deferred shading of covered pixels with spherical-harmonic light (Sec. 4.2).

    Args:
        size: longer side of the rendered image in pixels; the camera's field of view is kept whatever its own
            size is. A pair is (H, W); None renders at the camera's size.
        backend: rasterizer, see :func:`~facerecon.render.rasterize.choose_backend`.
        filter: "bilinear" texture look-up, or the release's "nearest".
        shading: light evaluated per "pixel" on interpolated normals, or per "vertex" and interpolated, as in
            the release.
        texture_level: how often to halve the texture (box filter) before looking it up: 0 never, "auto" mip maps
            (trilinear), so that a texture much finer than the image does not alias.
        antialias: blend pixels along silhouettes by how much of them the nearer surface covers. Image and mask
            then move smoothly with the vertices, and gradients reach the outline's; see
            :mod:`facerecon.render.silhouette`. Without it only what is inside the outline has gradients.
        fused: use the numba kernels for interpolation, normals, light and texture; None where they apply (numba
            backend, CPU, float32, light per pixel, bilinear). The torch path computes the same and is their oracle.

    Raises:
        ConfigError: an unknown option, with the nearest known one.
    """

    def __init__(
        self,
        size: int | tuple[int, int] | None = 224,
        backend: str = "auto",
        filter: str = "bilinear",
        shading: str = "pixel",
        texture_level: int | str = 0,
        antialias: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__()
        if shading not in SHADINGS:
            raise ConfigError(nearest_name(shading, SHADINGS, "shading"))
        if texture_level != "auto" and not (isinstance(texture_level, int) and texture_level >= 0):
            raise ConfigError(f"texture_level must be 'auto' or an integer >= 0; got {texture_level!r}.")
        for side in size if isinstance(size, tuple | list) else () if size is None else (size,):
            check_number("size", side, 1, 16384, whole=True, unit="px")
        choose_backend(backend)
        self.size = size if size is None or isinstance(size, int) else tuple(size)
        self.backend = backend
        self.filter = check_filter(filter)
        self.shading = shading
        self.texture_level = texture_level
        self.antialias = antialias
        self.fused = fused

    def extra_repr(self) -> str:
        return f"size={self.size}, backend={self.backend!r}, filter={self.filter!r}, shading={self.shading!r}"

    def image_size(self, camera: Camera) -> tuple[int, int]:
        """(H, W) of what this renderer makes of a camera."""
        if self.size is None:
            return tuple(camera.size)
        if isinstance(self.size, tuple):
            return self.size
        longer = max(camera.size)
        return tuple(max(1, round(side * self.size / longer)) for side in camera.size)

    def forward(
        self,
        vertices: Tensor,
        texture: Tensor,
        topology: MeshTopology,
        camera: Camera,
        light: SHLight | None,
        face_region: str | None = None,
        landmarks3d: Tensor | None = None,
    ) -> Rendering:
        """Render; see :meth:`prepare` and :meth:`PreparedView.shade` for arguments and result."""
        return self.prepare(vertices, topology, camera, light, face_region, landmarks3d).shade(texture)

    def prepare(
        self,
        vertices: Tensor,
        topology: MeshTopology,
        camera: Camera,
        light: SHLight | None,
        face_region: str | None = None,
        landmarks3d: Tensor | None = None,
    ) -> PreparedView:
        """Do all that does not depend on the texture, differentiably; call ``.detach()`` to keep it fixed.

        Args:
            vertices: (B, V, 3) posed world vertices.
            topology: the mesh.
            camera, light: batch B or 1. ``light=None`` draws the plain albedo.
            face_region: draw only the faces of ``topology.regions[face_region]``.
            landmarks3d: (B, 68, 3) world points to project, e.g. with a slid jaw contour; None takes the
                first candidate of every landmark.

        Raises:
            ConfigError: unknown region.
            ShapeError: wrong shapes, or half precision.
        """
        check_shape("vertices", vertices, "B V 3")
        check_floats("vertices", vertices)
        if light is not None:
            check_floats("light", light.coefficients, vertices, "the vertices")
        batch = max(vertices.shape[0], camera.batch, 1 if light is None else light.batch)
        vertices = vertices.expand(batch, -1, -1)
        size = self.image_size(camera)
        faces = topology.faces
        clip = clip_coordinates(camera, vertices)
        index = self._face_index(clip, topology, size, face_region)
        corner_uv = cached("corners", lambda: topology.uvs[topology.uv_faces], topology.uv_faces, topology.uvs).to(
            clip.dtype
        )
        shaded = self._dense if self._fuses(vertices, light) else self._listed
        view = shaded(vertices, clip, light, faces, corner_uv, index)
        outline = None
        if self.antialias:
            drawn = None if face_region is None else topology.regions[face_region]
            outline = find_outline(clip, faces, index, view.rendering.depth[:, 0], drawn)
            mask = outline.blend(view.rendering.mask)
            view = replace(view, rendering=view.rendering.replace(mask=mask))
        if landmarks3d is None:
            chosen = faces[topology.landmark_faces[:, 0]]
            corners = vertices[:, chosen.reshape(-1)].view(len(vertices), -1, 3, 3)
            landmarks3d = (topology.landmark_barycentric[:, 0, :, None].to(corners) * corners).sum(2)
        landmarks = project(scale_camera(camera, size), landmarks3d)[..., :2]
        return replace(view, rendering=view.rendering.replace(landmarks=landmarks), outline=outline)

    def _fuses(self, vertices: Tensor, light: SHLight | None) -> bool:
        """Whether the fused kernels do this job: asked for, or applicable and not refused."""
        fits = (
            light is not None
            and self.shading == "pixel"
            and self.filter == "bilinear"
            and vertices.device.type == "cpu"
            and vertices.dtype == torch.float32
        )
        if self.fused is None:
            return fits and choose_backend(self.backend, vertices.device) == "numba"
        if self.fused and not fits:
            raise ConfigError(
                "fused=True needs float32 vertices on a CPU, a light, shading='pixel' and filter='bilinear'; "
                "use fused=None."
            )
        return self.fused

    def _listed(
        self, vertices: Tensor, clip: Tensor, light: SHLight | None, faces: Tensor, corner_uv: Tensor, index: Tensor
    ) -> PreparedView:
        """Barycentrics, depth, texture grid and shading of the covered pixels, in torch."""
        found, depth = covered(clip, faces, index)
        grid = sampling_grid(found.mix(corner_uv.index_select(0, found.face)))
        shading = None
        if light is not None:
            normals = vertex_normals(vertices, faces)
            if self.shading == "vertex":
                at_vertices = lighting.shade(normals, light).expand(len(vertices), -1, -1)
                shading = found.interpolate(at_vertices, faces)
            else:
                basis = lighting.sh_basis(F.normalize(found.interpolate(normals, faces), dim=-1))
                lights = light.coefficients.expand(len(vertices), -1, -1)
                shading = torch.cat([y @ lights[b] for b, y in enumerate(found.split(basis))])
                shading = lighting.encoded_shading(shading, light)
        footprint = None
        if self.texture_level == "auto":
            index_of = found.image * len(faces) + found.face
            footprint = _footprints(clip, faces, corner_uv, index.shape[1:]).view(-1).index_select(0, index_of)
        lit = shading if shading is not None else torch.ones_like(found.barycentric)
        packed = found.scatter(torch.cat([found.barycentric, depth[:, None], lit], dim=-1))
        weights, depth, lit = packed.split([3, 1, 3], -1)
        rendering = _rendering(index, weights, depth[..., 0], lit)
        return PreparedView(found, grid, shading, footprint, rendering, None, self.filter, self.texture_level)

    def _dense(
        self, vertices: Tensor, clip: Tensor, light: SHLight, faces: Tensor, corner_uv: Tensor, index: Tensor
    ) -> FusedView:
        """The same of every pixel by the numba kernels."""
        from facerecon.render.backends import numba_shading

        normals = numba_shading.vertex_normals(vertices, faces)
        lights = light.coefficients.expand(len(vertices), -1, -1)
        weights, depth, grid, shading = numba_shading.pixel_attributes(clip, normals, lights, faces, corner_uv, index)
        shading = lighting.encoded_shading(shading, light)
        footprint = None
        if self.texture_level == "auto":
            by_face = _footprints(clip, faces, corner_uv, index.shape[1:])
            footprint = by_face.gather(1, index.flatten(1).clamp(min=0)).view(index.shape)
            footprint = torch.where(index >= 0, footprint, footprint.new_zeros(()))
        return FusedView(grid, shading, footprint, _rendering(index, weights, depth, shading), None, self.texture_level)

    def _face_index(self, clip: Tensor, topology: MeshTopology, size: tuple[int, int], region: str | None) -> Tensor:
        """(B, H, W) face ids, of the faces of one region only if it is named."""
        if region is None:
            return rasterize(clip, topology.faces, size, self.backend)
        if region not in topology.regions:
            raise ConfigError(nearest_name(region, topology.regions, "face region"))

        def build() -> tuple[Tensor, Tensor]:
            ids = topology.regions[region].nonzero()[:, 0]
            return ids, topology.faces[ids]

        ids, faces = cached("faces", build, topology.regions[region], topology.faces)
        index = rasterize(clip, faces, size, self.backend)
        return torch.where(index >= 0, ids[index.clamp(min=0)], index)


@torch.no_grad()
def _footprints(clip: Tensor, faces: Tensor, corner_uv: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, F): side of the UV area that a pixel of each face covers, sqrt(UV area / screen area)."""
    half = clip.new_tensor([size[1] / 2, size[0] / 2])
    screen = clip[..., :2] / torch.where(clip[..., 3:] > 0, clip[..., 3:], torch.ones_like(clip[..., 3:])) * half

    def double_area(p: Tensor) -> Tensor:
        a, b = p[..., 1, :] - p[..., 0, :], p[..., 2, :] - p[..., 0, :]
        return (a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]).abs()

    corners = screen.index_select(1, faces.reshape(-1)).view(len(clip), -1, 3, 2)
    return (double_area(corner_uv) / double_area(corners).clamp(min=1e-12)).sqrt()


def _rendering(index: Tensor, weights: Tensor, depth: Tensor, shading: Tensor) -> Rendering:
    """The texture-free part of a rendering, without landmarks yet; weights (B, H, W, 3), shading (B, H, W, 3)."""
    return Rendering(
        image=weights.new_zeros(len(index), 3, 0, 0),
        mask=(index >= 0)[:, None].to(weights.dtype),
        depth=depth[:, None],
        landmarks=weights.new_zeros(len(index), 68, 2),
        shading=shading.permute(0, 3, 1, 2),
        fragments=Fragments(index, weights, depth),
    )
