"""A textured, lit head: vertices, texture, camera and light in; image out; gradients back to all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facerecon.errors import ConfigError, ShapeError, check_shape, nearest_name
from facerecon.geometry import lighting
from facerecon.geometry.camera import clip_coordinates, project, scale_camera
from facerecon.geometry.mesh import cached, vertex_normals
from facerecon.render.interpolate import Covered, covered, list_pixels
from facerecon.render.rasterize import choose_backend, rasterize
from facerecon.render.uv import check_filter, sample_grid, sampling_grid
from facerecon.types import Camera, Fragments, MeshTopology, Rendering, SHLight

__all__ = ["PreparedView", "Renderer"]

SHADINGS = ("pixel", "vertex")


@dataclass(frozen=True)
class PreparedView:
    """A view without its texture: :meth:`shade` is one look-up and one product (stage 2 of a fit).

    Attributes:
        found: the covered pixels.
        grid: (P, 2) where each of them looks into the texture, in ``grid_sample`` units.
        light: (P, 3) shading, or None for an unlit view.
        texels_per_pixel: (B,) median size of a pixel on the UV square, as a fraction of its side.
        rendering: masks, depth, landmarks, shading and fragments; its image is empty.
        filter, texture_level: as in :class:`Renderer`.
    """

    found: Covered
    grid: Tensor
    light: Tensor | None
    texels_per_pixel: Tensor | None
    rendering: Rendering
    filter: str = "bilinear"
    texture_level: int | str = 0

    def detach(self) -> PreparedView:
        """Cut geometry and light from the graph: only the texture will receive gradients."""
        return replace(
            self,
            found=replace(self.found, barycentric=self.found.barycentric.detach()),
            grid=self.grid.detach(),
            light=None if self.light is None else self.light.detach(),
            rendering=self.rendering.detach(),
        )

    def _level(self, image: int, size: int) -> int:
        """How many times to halve a texture of ``size`` texels before image ``image`` looks it up."""
        level = self.texture_level
        if level == "auto":
            ratio = float(self.texels_per_pixel[image]) * size
            level = max(0, int(torch.tensor(max(ratio, 1.0)).log2().round()))
        while level > 0 and size % (1 << level):
            level -= 1
        return int(level)

    def shade(self, texture: Tensor) -> Rendering:
        """Render the view with a texture.

        Args:
            texture: (B, 3, S, S) albedo; batch 1 is shared by all views, and a single view may be shared by
                many textures. (Any number of channels where the view is unlit.)

        Returns:
            Rendering of batch B, ``image`` not clamped.
        """
        check_shape("texture", texture, "B C S S")
        views, height, width = self.found.shape
        count = max(views, texture.shape[0])
        if views not in (1, count) or texture.shape[0] not in (1, count):
            raise ShapeError(f"texture must have batch 1 or {views}; got {tuple(texture.shape)}.")
        lists = [self.found.split(t) for t in (self.found.pixel, self.grid)]
        lights = [None] * views if self.light is None else self.found.split(self.light)
        maps = [texture] if texture.shape[0] == 1 else texture.split(1)
        halved: dict[tuple[int, int], Tensor] = {}
        colors, pixels = [], []
        for i in range(count):
            view, source = min(i, views - 1), min(i, len(maps) - 1)
            level = self._level(view, texture.shape[-1])
            if (source, level) not in halved:
                halved[source, level] = F.avg_pool2d(maps[source], 1 << level) if level else maps[source]
            color = sample_grid(halved[source, level], lists[1][view], self.filter)
            colors.append(color if lights[view] is None else color * lights[view])
            pixels.append(lists[0][view] + (i - view) * height * width)
        color = torch.cat(colors)
        image = color.new_zeros(count * height * width, color.shape[-1])
        image = image.index_copy(0, torch.cat(pixels), color).view(count, height, width, -1)
        image = image.permute(0, 3, 1, 2).contiguous()
        rest = self.rendering
        if count > views:
            rest = rest.map(lambda t: t.expand(count, *t.shape[1:]))
        return rest.replace(image=image)


class Renderer(nn.Module):
    """Deferred shading of covered pixels with spherical-harmonic light (Sec. 4.2).

    Args:
        size: longer side of the rendered image in pixels; the camera's field of view is kept whatever its own
            size is. A pair is (H, W); None renders at the camera's size.
        backend: rasteriser, see :func:`~facerecon.render.rasterize.choose_backend`.
        filter: "bilinear" texture look-up, or the release's "nearest".
        shading: light evaluated per "pixel" on interpolated normals, or per "vertex" and interpolated, as in
            the release.
        texture_level: how often to halve the texture (box filter) before looking it up: 0 never, "auto" until
            its texels are about as large as pixels, which keeps a fine texture from aliasing.
        fused: use the numba kernels for interpolation, normals and light; None where they apply (numba
            backend, CPU, float32, light per pixel). The torch path computes the same and is their oracle.

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
        fused: bool | None = None,
    ) -> None:
        super().__init__()
        if shading not in SHADINGS:
            raise ConfigError(nearest_name(shading, SHADINGS, "shading"))
        if texture_level != "auto" and not (isinstance(texture_level, int) and texture_level >= 0):
            raise ConfigError(f"texture_level must be 'auto' or an integer >= 0; got {texture_level!r}.")
        choose_backend(backend)
        self.size = size if size is None or isinstance(size, int) else tuple(size)
        self.backend = backend
        self.filter = check_filter(filter)
        self.shading = shading
        self.texture_level = texture_level
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
            ConfigError: unknown region. ShapeError: wrong shapes.
        """
        check_shape("vertices", vertices, "B V 3")
        batch = max(vertices.shape[0], camera.batch, 1 if light is None else light.batch)
        vertices = vertices.expand(batch, -1, -1)
        size = self.image_size(camera)
        faces = topology.faces
        clip = clip_coordinates(camera, vertices)
        index = self._face_index(clip, topology, size, face_region)
        corner_uv = cached("corners", lambda: topology.uvs[topology.uv_faces], topology.uv_faces, topology.uvs).to(
            clip.dtype
        )
        attributes = self._fused_attributes if self._fuses(vertices, light) else self._attributes
        found, depth, grid, shading = attributes(vertices, clip, light, faces, corner_uv, index)

        density = None
        if self.texture_level == "auto":
            density = self._density(clip, found, topology, corner_uv, size)
        return PreparedView(
            found=found,
            grid=grid,
            light=shading,
            texels_per_pixel=density,
            rendering=self._dense(found, index, depth, shading, vertices, topology, camera, size, landmarks3d),
            filter=self.filter,
            texture_level=self.texture_level,
        )

    def _fuses(self, vertices: Tensor, light: SHLight | None) -> bool:
        """Whether the fused kernels do this job: asked for, or applicable and not refused."""
        fits = (
            light is not None
            and self.shading == "pixel"
            and vertices.device.type == "cpu"
            and vertices.dtype == torch.float32
        )
        if self.fused is None:
            return fits and choose_backend(self.backend, vertices.device) == "numba"
        if self.fused and not fits:
            raise ConfigError(
                "fused=True needs float32 vertices on a CPU, a light, and shading='pixel'; use fused=None."
            )
        return self.fused

    def _attributes(
        self,
        vertices: Tensor,
        clip: Tensor,
        light: SHLight | None,
        faces: Tensor,
        corner_uv: Tensor,
        index: Tensor,
    ) -> tuple[Covered, Tensor, Tensor, Tensor | None]:
        """Covered pixels with barycentrics, their depth, texture grid and shading, in torch."""
        found, depth = covered(clip, faces, index)
        grid = sampling_grid(found.mix(corner_uv.index_select(0, found.face)))
        if light is None:
            return found, depth, grid, None
        normals = vertex_normals(vertices, faces)
        if self.shading == "vertex":
            at_vertices = lighting.shade(normals, light).expand(len(vertices), -1, -1)
            return found, depth, grid, found.interpolate(at_vertices, faces)
        basis = lighting.sh_basis(F.normalize(found.interpolate(normals, faces), dim=-1))
        lights = light.coefficients.expand(len(vertices), -1, -1)
        shading = torch.cat([y @ lights[b] for b, y in enumerate(found.split(basis))])
        return found, depth, grid, shading

    def _fused_attributes(
        self,
        vertices: Tensor,
        clip: Tensor,
        light: SHLight,
        faces: Tensor,
        corner_uv: Tensor,
        index: Tensor,
    ) -> tuple[Covered, Tensor, Tensor, Tensor]:
        """The same by the numba kernels."""
        from facerecon.render.backends import numba_shading

        listed = list_pixels(index)
        normals = numba_shading.vertex_normals(vertices, faces)
        lights = light.coefficients.expand(len(vertices), -1, -1)
        weights, depth, grid, shading = numba_shading.pixel_attributes(clip, normals, lights, faces, corner_uv, listed)
        return replace(listed, barycentric=weights), depth, grid, shading

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

    @staticmethod
    @torch.no_grad()
    def _density(
        clip: Tensor, found: Covered, topology: MeshTopology, corner_uv: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """(B,) median over covered pixels of sqrt(UV area / screen area) of their faces, per pixel."""

        def double_area(p: Tensor) -> Tensor:
            a, b = p[:, 1] - p[:, 0], p[:, 2] - p[:, 0]
            return (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).abs()

        corners = found.at_corners(clip, topology.faces)
        screen = corners[..., :2] / corners[..., 3:] * torch.tensor([size[1] / 2, size[0] / 2]).to(clip)
        uv = corner_uv.index_select(0, found.face)
        ratio = (double_area(uv) / double_area(screen).clamp(min=1e-12)).sqrt()
        return torch.stack([r.median() if len(r) else r.new_zeros(()) for r in found.split(ratio)])

    def _dense(
        self,
        found: Covered,
        index: Tensor,
        depth: Tensor,
        shading: Tensor | None,
        vertices: Tensor,
        topology: MeshTopology,
        camera: Camera,
        size: tuple[int, int],
        landmarks3d: Tensor | None,
    ) -> Rendering:
        """The texture-free part of the result, scattered into images."""
        lit = shading if shading is not None else torch.ones_like(found.barycentric)
        packed = found.scatter(torch.cat([found.barycentric, depth[:, None], lit], dim=-1))
        if landmarks3d is None:
            chosen = topology.faces[topology.landmark_faces[:, 0]]
            corners = vertices[:, chosen.reshape(-1)].view(len(vertices), -1, 3, 3)
            landmarks3d = (topology.landmark_barycentric[:, 0, :, None].to(corners) * corners).sum(2)
        landmarks = project(scale_camera(camera, size), landmarks3d)[..., :2]
        return Rendering(
            image=packed.new_zeros(found.shape[0], 3, 0, 0),
            mask=(index >= 0)[:, None].to(packed.dtype),
            depth=packed[..., 3][:, None],
            landmarks=landmarks,
            shading=packed[..., 4:].permute(0, 3, 1, 2),
            fragments=Fragments(index, packed[..., :3], packed[..., 3]),
        )
