"""Vertex normals and per-pixel attributes as fused numba kernels, forward and backward, float32 on a CPU.

They compute what :func:`facerecon.geometry.mesh.vertex_normals` and the torch path of the renderer compute, in one
pass over the faces and one over the covered pixels. The torch path is their oracle in the tests.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from facerecon.geometry.lighting import SH_CONSTANTS
from facerecon.render.backends.numba_bands import band_count
from facerecon.run.thread_pool import compiled, run_bands

__all__ = ["pixel_attributes", "textured_shading", "vertex_normals"]

_FAST = {"contract", "reassoc", "nsz"}

BAND0, BAND1, BAND2 = (np.float32(c) for c in SH_CONSTANTS)
BAND2_Z = np.float32(SH_CONSTANTS[2] / (2 * np.sqrt(3.0)))
ONE, TWO, THREE, SIX, HALF, TINY = (np.float32(c) for c in (1, 2, 3, 6, 0.5, 1e-24))


# -- vertex normals ----------------------------------------------------------------------------------------


@compiled(inline="always", fastmath=_FAST)
def _edge(vertices, start, end):
    """The vector from one vertex to another."""
    return (
        vertices[end, 0] - vertices[start, 0],
        vertices[end, 1] - vertices[start, 1],
        vertices[end, 2] - vertices[start, 2],
    )


@compiled(inline="always", fastmath=_FAST)
def _add(total, row, first, x, y, z):
    """Add to three columns of a row."""
    total[row, first] += x
    total[row, first + 1] += y
    total[row, first + 2] += z


@compiled(fastmath=_FAST)
def _normals_forward(vertices, faces, total, normals):
    """vertices (V, 3), faces (F, 3) -> total (V, 3) area-weighted sums, normals (V, 3) unit."""
    total[:] = 0
    for face in range(faces.shape[0]):
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        ux, uy, uz = _edge(vertices, a, b)
        vx, vy, vz = _edge(vertices, a, c)
        x, y, z = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for corner in range(3):
            _add(total, faces[face, corner], 0, x, y, z)
    for vertex in range(total.shape[0]):
        x, y, z = total[vertex, 0], total[vertex, 1], total[vertex, 2]
        inverse = ONE / np.sqrt(max(x * x + y * y + z * z, TINY))
        normals[vertex, 0], normals[vertex, 1], normals[vertex, 2] = x * inverse, y * inverse, z * inverse


@compiled(fastmath=_FAST)
def _normals_backward(vertices, faces, total, normals, grad, grad_total, grad_vertices):
    """grad (V, 3) of the unit normals -> grad_vertices (V, 3); grad_total (V, 3) is scratch."""
    grad_vertices[:] = 0
    for vertex in range(total.shape[0]):
        square = total[vertex, 0] ** 2 + total[vertex, 1] ** 2 + total[vertex, 2] ** 2
        inverse = ONE / np.sqrt(max(square, TINY))
        along = np.float32(0)
        if square > TINY:
            for k in range(3):
                along += grad[vertex, k] * normals[vertex, k]
        for k in range(3):
            grad_total[vertex, k] = (grad[vertex, k] - along * normals[vertex, k]) * inverse
    for face in range(faces.shape[0]):
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        gx = grad_total[a, 0] + grad_total[b, 0] + grad_total[c, 0]
        gy = grad_total[a, 1] + grad_total[b, 1] + grad_total[c, 1]
        gz = grad_total[a, 2] + grad_total[b, 2] + grad_total[c, 2]
        ux, uy, uz = _edge(vertices, a, b)
        vx, vy, vz = _edge(vertices, a, c)
        # n = u x v, so du = v x g and dv = g x u.
        bx, by, bz = vy * gz - vz * gy, vz * gx - vx * gz, vx * gy - vy * gx
        cx, cy, cz = gy * uz - gz * uy, gz * ux - gx * uz, gx * uy - gy * ux
        _add(grad_vertices, b, 0, bx, by, bz)
        _add(grad_vertices, c, 0, cx, cy, cz)
        grad_vertices[a, 0] -= bx + cx
        grad_vertices[a, 1] -= by + cy
        grad_vertices[a, 2] -= bz + cz


class _VertexNormals(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vertices: Tensor, faces: Tensor) -> Tensor:
        total, normals = torch.empty_like(vertices), torch.empty_like(vertices)
        run_bands(
            _normals_forward,
            [(vertices[b].numpy(), faces.numpy(), total[b].numpy(), normals[b].numpy()) for b in range(len(vertices))],
        )
        ctx.save_for_backward(vertices, faces, total, normals)
        return normals

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        vertices, faces, total, normals = ctx.saved_tensors
        grad = grad.contiguous()
        scratch, out = torch.empty_like(vertices), torch.empty_like(vertices)
        run_bands(
            _normals_backward,
            [
                (vertices[b].numpy(), faces.numpy()) + tuple(t[b].numpy() for t in (total, normals, grad, scratch, out))
                for b in range(len(vertices))
            ],
        )
        return out, None


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit area-weighted vertex normals (B, V, 3) of float32 CPU vertices (B, V, 3), differentiable once."""
    return _VertexNormals.apply(vertices.contiguous(), faces.contiguous())


# -- per-pixel attributes ----------------------------------------------------------------------------------


@compiled(inline="always", fastmath=_FAST)
def _sh_basis(x, y, z, basis):
    """The nine functions of :func:`facerecon.geometry.lighting.sh_basis`, written into ``basis``."""
    basis[0] = BAND0
    basis[1] = -BAND1 * y
    basis[2] = BAND1 * z
    basis[3] = -BAND1 * x
    basis[4] = BAND2 * x * y
    basis[5] = -BAND2 * y * z
    basis[6] = BAND2_Z * (THREE * z * z - ONE)
    basis[7] = -BAND2 * x * z
    basis[8] = HALF * BAND2 * (x * x - y * y)


@compiled(fastmath=_FAST)
def _pixels_forward(clip, normals, light, faces, uvs, ids, first, last, weights, depth, grid, shading):
    """Rows [first, last) of one image: barycentrics, depth, texture grid and shading; 0 on background."""
    height, width = ids.shape
    step_x, step_y = TWO / np.float32(width), TWO / np.float32(height)
    basis = np.empty(9, np.float32)
    for row in range(first, last):
        py = ONE - (np.float32(row) + HALF) * step_y
        for column in range(width):
            face = ids[row, column]
            if face < 0:
                depth[row, column] = 0
                grid[row, column, 0], grid[row, column, 1] = 0, 0
                for k in range(3):
                    weights[row, column, k], shading[row, column, k] = 0, 0
                continue
            px = (np.float32(column) + HALF) * step_x - ONE
            a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
            wa, wb, wc = clip[a, 3], clip[b, 3], clip[c, 3]
            xa, ya = clip[a, 0] - px * wa, clip[a, 1] - py * wa
            xb, yb = clip[b, 0] - px * wb, clip[b, 1] - py * wb
            xc, yc = clip[c, 0] - px * wc, clip[c, 1] - py * wc
            ea, eb, ec = xb * yc - xc * yb, xc * ya - xa * yc, xa * yb - xb * ya
            total = ea + eb + ec
            inverse = ONE / total if total != 0 else np.float32(0)
            la, lb, lc = ea * inverse, eb * inverse, ec * inverse
            weights[row, column, 0], weights[row, column, 1], weights[row, column, 2] = la, lb, lc
            depth[row, column] = la * wa + lb * wb + lc * wc
            u = la * uvs[face, 0, 0] + lb * uvs[face, 1, 0] + lc * uvs[face, 2, 0]
            v = la * uvs[face, 0, 1] + lb * uvs[face, 1, 1] + lc * uvs[face, 2, 1]
            grid[row, column, 0], grid[row, column, 1] = TWO * u - ONE, ONE - TWO * v
            nx = la * normals[a, 0] + lb * normals[b, 0] + lc * normals[c, 0]
            ny = la * normals[a, 1] + lb * normals[b, 1] + lc * normals[c, 1]
            nz = la * normals[a, 2] + lb * normals[b, 2] + lc * normals[c, 2]
            length = ONE / np.sqrt(max(nx * nx + ny * ny + nz * nz, TINY))
            _sh_basis(nx * length, ny * length, nz * length, basis)
            for k in range(3):
                value = np.float32(0)
                for j in range(9):
                    value += basis[j] * light[j, k]
                shading[row, column, k] = value


@compiled(fastmath=_FAST)
def _pixels_backward(
    clip, normals, light, faces, uvs, ids, first, last,
    grad_weights, grad_depth, grad_grid, grad_shading, grad_vertex, grad_light,
):  # fmt: skip
    """Adjoint of :func:`_pixels_forward`: adds to grad_vertex (V, 6), of clip x, y, w and the normal, and to
    grad_light (9, 3). An output that no gradient reaches has an empty array."""
    height, width = ids.shape
    step_x, step_y = TWO / np.float32(width), TWO / np.float32(height)
    basis, grad_basis = np.empty(9, np.float32), np.empty(9, np.float32)
    has_weights, has_depth = grad_weights.size > 0, grad_depth.size > 0
    has_grid, has_shading = grad_grid.size > 0, grad_shading.size > 0
    for row in range(first, last):
        py = ONE - (np.float32(row) + HALF) * step_y
        for column in range(width):
            face = ids[row, column]
            if face < 0:
                continue
            px = (np.float32(column) + HALF) * step_x - ONE
            a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
            wa, wb, wc = clip[a, 3], clip[b, 3], clip[c, 3]
            xa, ya = clip[a, 0] - px * wa, clip[a, 1] - py * wa
            xb, yb = clip[b, 0] - px * wb, clip[b, 1] - py * wb
            xc, yc = clip[c, 0] - px * wc, clip[c, 1] - py * wc
            ea, eb, ec = xb * yc - xc * yb, xc * ya - xa * yc, xa * yb - xb * ya
            total = ea + eb + ec
            if total == 0:
                continue
            inverse = ONE / total
            la, lb, lc = ea * inverse, eb * inverse, ec * inverse
            gd, ga, gb, gc = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
            if has_weights:
                ga, gb, gc = grad_weights[row, column, 0], grad_weights[row, column, 1], grad_weights[row, column, 2]
            if has_depth:
                gd = grad_depth[row, column]
                ga, gb, gc = ga + gd * wa, gb + gd * wb, gc + gd * wc
            if has_grid:
                gu, gv = TWO * grad_grid[row, column, 0], -TWO * grad_grid[row, column, 1]
                ga += gu * uvs[face, 0, 0] + gv * uvs[face, 0, 1]
                gb += gu * uvs[face, 1, 0] + gv * uvs[face, 1, 1]
                gc += gu * uvs[face, 2, 0] + gv * uvs[face, 2, 1]
            if has_shading:
                nx = la * normals[a, 0] + lb * normals[b, 0] + lc * normals[c, 0]
                ny = la * normals[a, 1] + lb * normals[b, 1] + lc * normals[c, 1]
                nz = la * normals[a, 2] + lb * normals[b, 2] + lc * normals[c, 2]
                length = ONE / np.sqrt(max(nx * nx + ny * ny + nz * nz, TINY))
                x, y, z = nx * length, ny * length, nz * length
                _sh_basis(x, y, z, basis)
                g0, g1, g2 = grad_shading[row, column, 0], grad_shading[row, column, 1], grad_shading[row, column, 2]
                for j in range(9):
                    grad_light[j, 0] += basis[j] * g0
                    grad_light[j, 1] += basis[j] * g1
                    grad_light[j, 2] += basis[j] * g2
                    grad_basis[j] = light[j, 0] * g0 + light[j, 1] * g1 + light[j, 2] * g2
                gx = -BAND1 * grad_basis[3] + BAND2 * (y * grad_basis[4] - z * grad_basis[7] + x * grad_basis[8])
                gy = -BAND1 * grad_basis[1] + BAND2 * (x * grad_basis[4] - z * grad_basis[5] - y * grad_basis[8])
                gz = BAND1 * grad_basis[2] - BAND2 * (y * grad_basis[5] + x * grad_basis[7])
                gz += SIX * BAND2_Z * z * grad_basis[6]
                along = gx * x + gy * y + gz * z
                gx, gy, gz = (gx - along * x) * length, (gy - along * y) * length, (gz - along * z) * length
                ga += gx * normals[a, 0] + gy * normals[a, 1] + gz * normals[a, 2]
                gb += gx * normals[b, 0] + gy * normals[b, 1] + gz * normals[b, 2]
                gc += gx * normals[c, 0] + gy * normals[c, 1] + gz * normals[c, 2]
                _add(grad_vertex, a, 3, la * gx, la * gy, la * gz)
                _add(grad_vertex, b, 3, lb * gx, lb * gy, lb * gz)
                _add(grad_vertex, c, 3, lc * gx, lc * gy, lc * gz)
            # Through l_i = e_i / total; e_a = x_b y_c - x_c y_b and so on; x_i and y_i also hold -p w_i.
            mean = ga * la + gb * lb + gc * lc
            ga, gb, gc = (ga - mean) * inverse, (gb - mean) * inverse, (gc - mean) * inverse
            dxa, dya = gc * yb - gb * yc, gb * xc - gc * xb
            dxb, dyb = ga * yc - gc * ya, gc * xa - ga * xc
            dxc, dyc = gb * ya - ga * yb, ga * xb - gb * xa
            _add(grad_vertex, a, 0, dxa, dya, gd * la - px * dxa - py * dya)
            _add(grad_vertex, b, 0, dxb, dyb, gd * lb - px * dxb - py * dyb)
            _add(grad_vertex, c, 0, dxc, dyc, gd * lc - px * dxc - py * dyc)


def _row_bands(batch: int, height: int, bands: int | None = None) -> list[tuple[int, int, int, int]]:
    """(image, band, first row, last row) of every job; as many bands an image as keep the threads busy."""
    bands = bands or band_count(batch)
    return [(b, k, k * height // bands, (k + 1) * height // bands) for b in range(batch) for k in range(bands)]


def _by_image(gradient: Tensor | None, image: int, empty: np.ndarray) -> np.ndarray:
    """The gradient of one image, or an empty array where none arrives."""
    return empty if gradient is None else gradient[image].numpy()


class _PixelAttributes(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, clip: Tensor, normals: Tensor, light: Tensor, faces: Tensor, uvs: Tensor, index: Tensor
    ) -> tuple[Tensor, ...]:
        batch, height, width = index.shape
        out = [clip.new_empty(batch, height, width, *rest) for rest in ((3,), (), (2,), (3,))]
        mesh, ids = [t.numpy() for t in (faces, uvs)], index.numpy()
        run_bands(
            _pixels_forward,
            [
                (clip[b].numpy(), normals[b].numpy(), light[b].numpy(), *mesh, ids[b], first, last)
                + tuple(t[b].numpy() for t in out)
                for b, _, first, last in _row_bands(batch, height)
            ],
        )
        ctx.save_for_backward(clip, normals, light, faces, uvs, index)
        ctx.set_materialize_grads(False)
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        clip, normals, light, faces, uvs, index = ctx.saved_tensors
        batch, height, _ = index.shape
        mesh, ids = [t.numpy() for t in (faces, uvs)], index.numpy()
        grads = [g if g is None else g.contiguous() for g in grads]
        empty = [np.empty((0,) * dimensions, np.float32) for dimensions in (3, 2, 3, 3)]
        bands = band_count(batch)
        grad_vertex = torch.zeros(bands, *clip.shape[:2], 6)
        grad_light = torch.zeros(bands, *light.shape)
        run_bands(
            _pixels_backward,
            [
                (clip[b].numpy(), normals[b].numpy(), light[b].numpy(), *mesh, ids[b], first, last)
                + (
                    *(_by_image(g, b, e) for g, e in zip(grads, empty, strict=True)),
                    grad_vertex[k, b].numpy(),
                    grad_light[k, b].numpy(),
                )
                for b, k, first, last in _row_bands(batch, height)
            ],
        )
        grad_vertex = grad_vertex.sum(0) if bands > 1 else grad_vertex[0]
        grad_clip = torch.zeros_like(clip)
        grad_clip[..., :2] = grad_vertex[..., :2]
        grad_clip[..., 3] = grad_vertex[..., 2]
        return grad_clip, grad_vertex[..., 3:], grad_light.sum(0), None, None, None


def pixel_attributes(
    clip: Tensor, normals: Tensor, light: Tensor, faces: Tensor, corner_uv: Tensor, index: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Barycentrics, depth, texture grid and shading of every pixel, differentiable once; 0 on background.

    Args:
        clip: (B, V, 4).
        normals: (B, V, 3) unit.
        light: (B, 9, 3). All float32 on the CPU.
        faces: (F, 3).
        corner_uv: (F, 3, 2).
        index: (B, H, W) face ids, -1 on background.

    Returns:
        barycentric (B, H, W, 3), depth (B, H, W), grid (B, H, W, 2) in ``grid_sample`` units, shading (B, H, W, 3).
    """
    return _PixelAttributes.apply(*(t.contiguous() for t in (clip, normals, light, faces, corner_uv, index)))


# -- texture times shading -----------------------------------------------------------------------------------


@compiled(inline="always", fastmath=_FAST)
def _taps(coordinate, size):
    """First texel, second texel, weight of the second, and whether the border holds the look-up fast."""
    position = ((coordinate + ONE) * np.float32(size) - ONE) * HALF
    held = not (position > 0 and position < size - 1)
    position = min(max(position, np.float32(0)), np.float32(size - 1))
    first = int(position)
    return first, min(first + 1, size - 1), position - np.float32(first), held


@compiled(fastmath=_FAST)
def _texture_forward(texture, ids, grid, shading, first, last, image):
    """Rows [first, last) of image (3, H, W) = bilinear look-up in texture (3, S, S) times shading."""
    width, size = ids.shape[1], texture.shape[1]
    for row in range(first, last):
        for column in range(width):
            if ids[row, column] < 0:
                for k in range(3):
                    image[k, row, column] = 0
                continue
            x0, x1, fx, _ = _taps(grid[row, column, 0], size)
            y0, y1, fy, _ = _taps(grid[row, column, 1], size)
            for k in range(3):
                top = texture[k, y0, x0] + fx * (texture[k, y0, x1] - texture[k, y0, x0])
                bottom = texture[k, y1, x0] + fx * (texture[k, y1, x1] - texture[k, y1, x0])
                image[k, row, column] = (top + fy * (bottom - top)) * shading[row, column, k]


@compiled(fastmath=_FAST)
def _texture_backward(texture, ids, grid, shading, first, last, grad_image, grad_texture, grad_grid, grad_shading):
    """Adjoint of :func:`_texture_forward`; adds to grad_texture, writes the others; empty arrays are left out."""
    width, size = ids.shape[1], texture.shape[1]
    has_texture, has_view = grad_texture.size > 0, grad_grid.size > 0
    half = HALF * np.float32(size)
    for row in range(first, last):
        for column in range(width):
            if ids[row, column] < 0:
                if has_view:
                    grad_grid[row, column, 0], grad_grid[row, column, 1] = 0, 0
                    for k in range(3):
                        grad_shading[row, column, k] = 0
                continue
            x0, x1, fx, held_x = _taps(grid[row, column, 0], size)
            y0, y1, fy, held_y = _taps(grid[row, column, 1], size)
            gx, gy = np.float32(0), np.float32(0)
            for k in range(3):
                grad = grad_image[k, row, column]
                albedo_grad = grad * shading[row, column, k]
                if has_view:
                    t00, t01 = texture[k, y0, x0], texture[k, y0, x1]
                    t10, t11 = texture[k, y1, x0], texture[k, y1, x1]
                    top, bottom = t00 + fx * (t01 - t00), t10 + fx * (t11 - t10)
                    grad_shading[row, column, k] = grad * (top + fy * (bottom - top))
                    gx += albedo_grad * ((ONE - fy) * (t01 - t00) + fy * (t11 - t10))
                    gy += albedo_grad * (bottom - top)
                if has_texture:
                    grad_texture[k, y0, x0] += albedo_grad * (ONE - fx) * (ONE - fy)
                    grad_texture[k, y0, x1] += albedo_grad * fx * (ONE - fy)
                    grad_texture[k, y1, x0] += albedo_grad * (ONE - fx) * fy
                    grad_texture[k, y1, x1] += albedo_grad * fx * fy
            if has_view:
                grad_grid[row, column, 0] = np.float32(0) if held_x else gx * half
                grad_grid[row, column, 1] = np.float32(0) if held_y else gy * half


@compiled(fastmath=_FAST)
def _add_rows(parts, first, last, total):
    """total[first:last] = sum of parts[:, first:last]; parts (K, N)."""
    for i in range(first, last):
        value = parts[0, i]
        for k in range(1, parts.shape[0]):
            value += parts[k, i]
        total[i] = value


class _TexturedShading(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, texture: Tensor, grid: Tensor, shading: Tensor, index: Tensor) -> Tensor:
        count, (views, height, width) = max(len(texture), len(index)), index.shape
        image = texture.new_empty(count, 3, height, width)
        run_bands(
            _texture_forward,
            [
                (texture[min(b, len(texture) - 1)].numpy(), *(t[min(b, views - 1)].numpy() for t in (index, grid)))
                + (shading[min(b, views - 1)].numpy(), first, last, image[b].numpy())
                for b, _, first, last in _row_bands(count, height)
            ],
        )
        ctx.save_for_backward(texture, grid, shading, index)
        return image

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_image: Tensor) -> tuple[Tensor | None, ...]:
        texture, grid, shading, index = ctx.saved_tensors
        count, (views, height, width) = len(grad_image), index.shape
        grad_image = grad_image.contiguous()
        needs_texture, needs_view = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:3])
        # Texels are written by scatter: a buffer for each band that may write them at the same time. Where there are
        # fewer pixels than texels a second buffer costs more than a second thread gains.
        bands = band_count(count)
        if needs_texture and height * width < texture.shape[-1] ** 2:
            bands = 1
        own = len(texture) == count
        parts = torch.zeros(bands if own else bands * count, *texture.shape) if needs_texture else None
        empty = np.empty((0, 0, 0), np.float32)
        grad_grid = torch.empty(count, height, width, 2) if needs_view else None
        grad_shading = torch.empty(count, height, width, 3) if needs_view else None
        jobs = []
        for b, k, first, last in _row_bands(count, height, bands):
            source, view = min(b, len(texture) - 1), min(b, views - 1)
            into = empty if parts is None else parts[k if own else b * bands + k, source].numpy()
            jobs.append(
                (texture[source].numpy(), index[view].numpy(), grid[view].numpy(), shading[view].numpy(), first, last)
                + (grad_image[b].numpy(), into)
                + ((grad_grid[b].numpy(), grad_shading[b].numpy()) if needs_view else (empty, empty))
            )
        run_bands(_texture_backward, jobs)
        grad_texture = None
        if parts is not None:
            grad_texture = parts[0]
            if len(parts) > 1:
                flat, total = parts.view(len(parts), -1).numpy(), grad_texture.reshape(-1).numpy()
                run_bands(_add_rows, [(flat, len(total) * k // 8, len(total) * (k + 1) // 8, total) for k in range(8)])
        if needs_view and views < count:
            grad_grid, grad_shading = grad_grid.sum(0, keepdim=True), grad_shading.sum(0, keepdim=True)
        return grad_texture, grad_grid, grad_shading, None


def textured_shading(texture: Tensor, grid: Tensor, shading: Tensor, index: Tensor) -> Tensor:
    """Bilinear texture look-up times shading, differentiable once in all three.

    Args:
        texture: (B or 1, 3, S, S).
        grid: (B or 1, H, W, 2) in ``grid_sample`` units (border extended, corners not
        aligned).
        shading: (B or 1, H, W, 3).
        index: (B or 1, H, W), -1 on background. float32 on the CPU.

    Returns:
        (B, 3, H, W), 0 on background.
    """
    return _TexturedShading.apply(*(t.contiguous() for t in (texture, grid, shading, index)))
