"""Vertex normals and per-pixel attributes as fused numba kernels, forward and backward, float32 on a CPU.

They compute what :func:`facerecon.geometry.mesh.vertex_normals` and the torch path of the renderer compute, in one
pass over the faces and one over the covered pixels. The torch path is their oracle in the tests.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from facerecon.geometry.lighting import SH_CONSTANTS
from facerecon.render.backends.numba_bands import band_count, run_bands
from facerecon.render.interpolate import Covered

__all__ = ["pixel_attributes", "vertex_normals"]

_OPTIONS = dict(nogil=True, cache=True, boundscheck=False, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})

BAND0, BAND1, BAND2 = (np.float32(c) for c in SH_CONSTANTS)
BAND2_Z = np.float32(SH_CONSTANTS[2] / (2 * np.sqrt(3.0)))
ONE, TWO, THREE, SIX, HALF, TINY = (np.float32(c) for c in (1, 2, 3, 6, 0.5, 1e-24))


# -- vertex normals ----------------------------------------------------------------------------------------


@numba.njit(**_OPTIONS)
def _normals_forward(vertices, faces, total, normals):
    """vertices (V, 3), faces (F, 3) -> total (V, 3) area-weighted sums, normals (V, 3) unit."""
    total[:] = 0
    for face in range(faces.shape[0]):
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        ux, uy, uz = (
            vertices[b, 0] - vertices[a, 0],
            vertices[b, 1] - vertices[a, 1],
            vertices[b, 2] - vertices[a, 2],
        )
        vx, vy, vz = (
            vertices[c, 0] - vertices[a, 0],
            vertices[c, 1] - vertices[a, 1],
            vertices[c, 2] - vertices[a, 2],
        )
        x, y, z = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for corner in range(3):
            vertex = faces[face, corner]
            total[vertex, 0] += x
            total[vertex, 1] += y
            total[vertex, 2] += z
    for vertex in range(total.shape[0]):
        x, y, z = total[vertex, 0], total[vertex, 1], total[vertex, 2]
        inverse = ONE / np.sqrt(max(x * x + y * y + z * z, TINY))
        normals[vertex, 0], normals[vertex, 1], normals[vertex, 2] = x * inverse, y * inverse, z * inverse


@numba.njit(**_OPTIONS)
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
        ux, uy, uz = (
            vertices[b, 0] - vertices[a, 0],
            vertices[b, 1] - vertices[a, 1],
            vertices[b, 2] - vertices[a, 2],
        )
        vx, vy, vz = (
            vertices[c, 0] - vertices[a, 0],
            vertices[c, 1] - vertices[a, 1],
            vertices[c, 2] - vertices[a, 2],
        )
        # n = u x v, so du = v x g and dv = g x u.
        bx, by, bz = vy * gz - vz * gy, vz * gx - vx * gz, vx * gy - vy * gx
        cx, cy, cz = gy * uz - gz * uy, gz * ux - gx * uz, gx * uy - gy * ux
        grad_vertices[b, 0] += bx
        grad_vertices[b, 1] += by
        grad_vertices[b, 2] += bz
        grad_vertices[c, 0] += cx
        grad_vertices[c, 1] += cy
        grad_vertices[c, 2] += cz
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


@numba.njit(inline="always", **_OPTIONS)
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


@numba.njit(**_OPTIONS)
def _pixels_forward(
    clip, normals, light, faces, uvs, pixel, face_of, first, last, shape, weights, depth, grid, shading
):
    """Pixels [first, last), all of one image: barycentrics, depth, texture grid and shading."""
    height, width = shape
    step_x, step_y = TWO / np.float32(width), TWO / np.float32(height)
    basis = np.empty(9, np.float32)
    for p in range(first, last):
        row = pixel[p] // width
        px = (np.float32(pixel[p] - row * width) + HALF) * step_x - ONE
        py = ONE - (np.float32(row % height) + HALF) * step_y
        face = face_of[p]
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        wa, wb, wc = clip[a, 3], clip[b, 3], clip[c, 3]
        xa, ya = clip[a, 0] - px * wa, clip[a, 1] - py * wa
        xb, yb = clip[b, 0] - px * wb, clip[b, 1] - py * wb
        xc, yc = clip[c, 0] - px * wc, clip[c, 1] - py * wc
        ea, eb, ec = xb * yc - xc * yb, xc * ya - xa * yc, xa * yb - xb * ya
        total = ea + eb + ec
        inverse = ONE / total if total != 0 else np.float32(0)
        la, lb, lc = ea * inverse, eb * inverse, ec * inverse
        weights[p, 0], weights[p, 1], weights[p, 2] = la, lb, lc
        depth[p] = la * wa + lb * wb + lc * wc
        grid[p, 0] = TWO * (la * uvs[face, 0, 0] + lb * uvs[face, 1, 0] + lc * uvs[face, 2, 0]) - ONE
        grid[p, 1] = ONE - TWO * (la * uvs[face, 0, 1] + lb * uvs[face, 1, 1] + lc * uvs[face, 2, 1])
        nx = la * normals[a, 0] + lb * normals[b, 0] + lc * normals[c, 0]
        ny = la * normals[a, 1] + lb * normals[b, 1] + lc * normals[c, 1]
        nz = la * normals[a, 2] + lb * normals[b, 2] + lc * normals[c, 2]
        length = ONE / np.sqrt(max(nx * nx + ny * ny + nz * nz, TINY))
        _sh_basis(nx * length, ny * length, nz * length, basis)
        for k in range(3):
            value = np.float32(0)
            for j in range(9):
                value += basis[j] * light[j, k]
            shading[p, k] = value


@numba.njit(**_OPTIONS)
def _pixels_backward(
    clip,
    normals,
    light,
    faces,
    uvs,
    pixel,
    face_of,
    first,
    last,
    shape,
    grad_weights,
    grad_depth,
    grad_grid,
    grad_shading,
    grad_vertex,
    grad_light,
):
    """Adjoint of :func:`_pixels_forward`: adds to grad_vertex (V, 6), of clip x, y, w and the normal, and to
    grad_light (9, 3)."""
    height, width = shape
    step_x, step_y = TWO / np.float32(width), TWO / np.float32(height)
    basis, grad_basis = np.empty(9, np.float32), np.empty(9, np.float32)
    for p in range(first, last):
        row = pixel[p] // width
        px = (np.float32(pixel[p] - row * width) + HALF) * step_x - ONE
        py = ONE - (np.float32(row % height) + HALF) * step_y
        face = face_of[p]
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
        nx = la * normals[a, 0] + lb * normals[b, 0] + lc * normals[c, 0]
        ny = la * normals[a, 1] + lb * normals[b, 1] + lc * normals[c, 1]
        nz = la * normals[a, 2] + lb * normals[b, 2] + lc * normals[c, 2]
        length = ONE / np.sqrt(max(nx * nx + ny * ny + nz * nz, TINY))
        x, y, z = nx * length, ny * length, nz * length
        _sh_basis(x, y, z, basis)
        for j in range(9):
            value = np.float32(0)
            for k in range(3):
                value += light[j, k] * grad_shading[p, k]
                grad_light[j, k] += basis[j] * grad_shading[p, k]
            grad_basis[j] = value
        gx = -BAND1 * grad_basis[3] + BAND2 * (y * grad_basis[4] - z * grad_basis[7] + x * grad_basis[8])
        gy = -BAND1 * grad_basis[1] + BAND2 * (x * grad_basis[4] - z * grad_basis[5] - y * grad_basis[8])
        gz = BAND1 * grad_basis[2] - BAND2 * (y * grad_basis[5] + x * grad_basis[7])
        gz += SIX * BAND2_Z * z * grad_basis[6]
        along = gx * x + gy * y + gz * z
        gx, gy, gz = (gx - along * x) * length, (gy - along * y) * length, (gz - along * z) * length
        # Through the barycentric means, then through l_i = e_i / total.
        gu, gv, gd = TWO * grad_grid[p, 0], -TWO * grad_grid[p, 1], grad_depth[p]
        ga = grad_weights[p, 0] + gd * wa + gu * uvs[face, 0, 0] + gv * uvs[face, 0, 1]
        gb = grad_weights[p, 1] + gd * wb + gu * uvs[face, 1, 0] + gv * uvs[face, 1, 1]
        gc = grad_weights[p, 2] + gd * wc + gu * uvs[face, 2, 0] + gv * uvs[face, 2, 1]
        ga += gx * normals[a, 0] + gy * normals[a, 1] + gz * normals[a, 2]
        gb += gx * normals[b, 0] + gy * normals[b, 1] + gz * normals[b, 2]
        gc += gx * normals[c, 0] + gy * normals[c, 1] + gz * normals[c, 2]
        mean = ga * la + gb * lb + gc * lc
        ga, gb, gc = (ga - mean) * inverse, (gb - mean) * inverse, (gc - mean) * inverse
        # e_a = x_b y_c - x_c y_b and so on; x_i and y_i also hold -p w_i.
        dxa, dya = gc * yb - gb * yc, gb * xc - gc * xb
        dxb, dyb = ga * yc - gc * ya, gc * xa - ga * xc
        dxc, dyc = gb * ya - ga * yb, ga * xb - gb * xa
        grad_vertex[a, 0] += dxa
        grad_vertex[a, 1] += dya
        grad_vertex[a, 2] += gd * la - px * dxa - py * dya
        grad_vertex[a, 3] += la * gx
        grad_vertex[a, 4] += la * gy
        grad_vertex[a, 5] += la * gz
        grad_vertex[b, 0] += dxb
        grad_vertex[b, 1] += dyb
        grad_vertex[b, 2] += gd * lb - px * dxb - py * dyb
        grad_vertex[b, 3] += lb * gx
        grad_vertex[b, 4] += lb * gy
        grad_vertex[b, 5] += lb * gz
        grad_vertex[c, 0] += dxc
        grad_vertex[c, 1] += dyc
        grad_vertex[c, 2] += gd * lc - px * dxc - py * dyc
        grad_vertex[c, 3] += lc * gx
        grad_vertex[c, 4] += lc * gy
        grad_vertex[c, 5] += lc * gz


def _chunks(counts: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    """(image, chunk, first, last): each image's pixels in as many equal parts as there are bands."""
    bands = band_count(len(counts))
    jobs, start = [], 0
    for image, count in enumerate(counts):
        cuts = [start + count * k // bands for k in range(bands + 1)]
        jobs += [(image, k, cuts[k], cuts[k + 1]) for k in range(bands) if cuts[k] < cuts[k + 1]]
        start += count
    return jobs


class _PixelAttributes(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        clip: Tensor,
        normals: Tensor,
        light: Tensor,
        faces: Tensor,
        uvs: Tensor,
        pixel: Tensor,
        face: Tensor,
        counts: tuple[int, ...],
        size: tuple[int, int],
    ) -> tuple[Tensor, ...]:
        count = len(pixel)
        out = [torch.empty(count, *rest) for rest in ((3,), (), (2,), (3,))]
        shared = [t.numpy() for t in (faces, uvs, pixel, face)]
        arrays = [t.numpy() for t in out]
        run_bands(
            _pixels_forward,
            [
                (clip[b].numpy(), normals[b].numpy(), light[b].numpy(), *shared, first, last, size, *arrays)
                for b, _, first, last in _chunks(counts)
            ],
        )
        ctx.save_for_backward(clip, normals, light, faces, uvs, pixel, face)
        ctx.counts, ctx.size = counts, size
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        clip, normals, light, faces, uvs, pixel, face = ctx.saved_tensors
        shared = [t.numpy() for t in (faces, uvs, pixel, face)]
        given = [g.contiguous().numpy() for g in grads]
        bands = band_count(len(clip))
        grad_vertex = torch.zeros(bands, *clip.shape[:2], 6)
        grad_light = torch.zeros(bands, *light.shape)
        run_bands(
            _pixels_backward,
            [
                (clip[b].numpy(), normals[b].numpy(), light[b].numpy(), *shared, first, last, ctx.size)
                + (*given, grad_vertex[k, b].numpy(), grad_light[k, b].numpy())
                for b, k, first, last in _chunks(ctx.counts)
            ],
        )
        grad_vertex = grad_vertex.sum(0)
        grad_clip = torch.zeros_like(clip)
        grad_clip[..., :2] = grad_vertex[..., :2]
        grad_clip[..., 3] = grad_vertex[..., 2]
        return grad_clip, grad_vertex[..., 3:], grad_light.sum(0), *[None] * 6


def pixel_attributes(
    clip: Tensor, normals: Tensor, light: Tensor, faces: Tensor, corner_uv: Tensor, listed: Covered
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Barycentrics, depth, texture grid and shading of the listed pixels, differentiable once.

    Args:
        clip: (B, V, 4). normals: (B, V, 3) unit. light: (B, 9, 3). All float32 on the CPU.
        faces: (F, 3). corner_uv: (F, 3, 2).
        listed: covered pixels; their barycentrics are not read.

    Returns:
        barycentric (P, 3), depth (P,), grid (P, 2) in ``grid_sample`` units, shading (P, 3).
    """
    return _PixelAttributes.apply(
        clip.contiguous(),
        normals.contiguous(),
        light.contiguous(),
        faces.contiguous(),
        corner_uv.contiguous(),
        listed.pixel,
        listed.face,
        listed.counts,
        tuple(listed.shape[1:]),
    )
