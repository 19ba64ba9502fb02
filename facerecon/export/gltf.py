"""The binary layout of a glTF 2.0 file: accessors in one buffer, each view aligned to 4 bytes.

:class:`GlbBuilder` knows about accessors and nothing about faces; :mod:`facerecon.export.mesh` decides what
goes in, and whether as float32 or as normalized integers (KHR_mesh_quantization).
"""

from __future__ import annotations

import numpy as np
import pygltflib as gl

from facerecon.errors import ShapeError

__all__ = ["GlbBuilder", "normalized", "smallest_index_type"]

_TYPES = {1: gl.SCALAR, 2: gl.VEC2, 3: gl.VEC3, 4: gl.VEC4}
_COMPONENTS = {
    np.dtype(np.float32): gl.FLOAT,
    np.dtype(np.int8): gl.BYTE,
    np.dtype(np.int16): gl.SHORT,
    np.dtype(np.uint8): gl.UNSIGNED_BYTE,
    np.dtype(np.uint16): gl.UNSIGNED_SHORT,
    np.dtype(np.uint32): gl.UNSIGNED_INT,
}


def smallest_index_type(largest: int) -> type[np.unsignedinteger]:
    """uint16 where it can hold ``largest``, else uint32; the type's maximum is reserved by glTF."""
    return np.uint16 if largest < 65535 else np.uint32


def normalized(values: np.ndarray, kind: type[np.integer]) -> np.ndarray:
    """Numbers in [-1, 1], or [0, 1] for an unsigned kind, as the integers that glTF normalizes to them."""
    return np.rint(values * np.iinfo(kind).max).astype(kind)


class GlbBuilder:
    """Collects arrays into one buffer and writes the GLB container.

    Args:
        generator: the text of ``asset.generator``.
    """

    def __init__(self, generator: str) -> None:
        self.gltf = gl.GLTF2(asset=gl.Asset(version="2.0", generator=generator))
        self._blob = bytearray()
        self._zeros: dict[tuple, int] = {}

    def view(self, data: bytes, target: int | None = None, stride: int | None = None) -> int:
        """Append bytes as a bufferView that starts at a multiple of 4; returns its index."""
        self._blob.extend(b"\0" * (-len(self._blob) % 4))
        offset = len(self._blob)
        self._blob.extend(data)
        self.gltf.bufferViews.append(
            gl.BufferView(buffer=0, byteOffset=offset, byteLength=len(data), byteStride=stride, target=target)
        )
        return len(self.gltf.bufferViews) - 1

    def accessor(
        self, values: np.ndarray, target: int | None = None, bounds: bool = False, name: str | None = None
    ) -> int:
        """Append a dense accessor; returns its index. Rows of vertices are padded to a multiple of 4 bytes.

        Args:
            values: (N,) or (N, C) of float32, or of integers, which stand for [-1, 1] or [0, 1] but in indices.
            target: ``pygltflib.ARRAY_BUFFER`` or ``ELEMENT_ARRAY_BUFFER``.
            bounds: also store the minimum and maximum of each component (required for POSITION).
        """
        values = self._columns(values)
        accessor = self._describe(values, bounds, name)
        accessor.normalized &= target != gl.ELEMENT_ARRAY_BUFFER
        padding, stride = -(values.itemsize * values.shape[1]) % 4, None
        if padding and target == gl.ARRAY_BUFFER:
            values = np.pad(values, ((0, 0), (0, padding // values.itemsize)))
            stride = values.strides[0]
        accessor.bufferView, accessor.byteOffset = self.view(values.tobytes(), target, stride), 0
        return self._add(accessor)

    def delta_accessor(
        self, values: np.ndarray, tolerance: float = 0.0, bounds: bool = False, name: str | None = None
    ) -> int:
        """Append an accessor of mostly zero rows, in the smallest of three forms; returns its index.

        Rows within ``tolerance`` of zero are stored as zero. All-zero arrays of one shape share an accessor
        without data (which glTF defines as zeros); otherwise it is sparse where that is smaller, else dense.

        Args:
            values: (N, C) float32, int8 or int16.
            tolerance: largest absolute component that counts as zero, in the unit of ``values``.
            bounds: store minimum and maximum (required for POSITION, in morph targets too).
        """
        values = self._columns(values)
        rows = np.flatnonzero(np.logical_or.reduce((np.abs(values) > tolerance).T))
        if len(rows) == 0:
            key = (values.shape[0], values.shape[1] if bounds else -values.shape[1], values.dtype)
            if key not in self._zeros:
                self._zeros[key] = self._add(self._describe(np.zeros_like(values), bounds, "zero"))
            return self._zeros[key]
        kept = np.zeros_like(values)
        kept[rows] = values[rows]
        index_type = smallest_index_type(len(values))
        if len(rows) * (values.itemsize * values.shape[1] + np.dtype(index_type).itemsize) >= values.nbytes:
            return self.accessor(kept, gl.ARRAY_BUFFER, bounds, name)
        accessor = self._describe(kept, bounds, name)
        accessor.sparse = gl.Sparse(
            count=len(rows),
            indices=gl.AccessorSparseIndices(
                bufferView=self.view(rows.astype(index_type).tobytes()),
                componentType=_COMPONENTS[np.dtype(index_type)],
            ),
            values=gl.AccessorSparseValues(bufferView=self.view(kept[rows].tobytes())),
        )
        return self._add(accessor)

    def texture(self, data: bytes, mime: str, name: str | None = None) -> int:
        """Embed an encoded picture (trilinear filter, clamped border); returns the texture's index."""
        self.gltf.images.append(gl.Image(bufferView=self.view(data), mimeType=mime, name=name))
        clamped = {"wrapS": gl.CLAMP_TO_EDGE, "wrapT": gl.CLAMP_TO_EDGE}
        self.gltf.samplers.append(gl.Sampler(magFilter=gl.LINEAR, minFilter=gl.LINEAR_MIPMAP_LINEAR, **clamped))
        self.gltf.textures.append(gl.Texture(source=len(self.gltf.images) - 1, sampler=len(self.gltf.samplers) - 1))
        return len(self.gltf.textures) - 1

    def add_scene(self, mesh: gl.Mesh, name: str, scale: float = 1.0) -> None:
        """The one mesh, on node 0 of the one scene."""
        self.gltf.meshes.append(mesh)
        self.gltf.nodes.append(gl.Node(name=mesh.name, mesh=0, scale=None if scale == 1 else [scale] * 3))
        self.gltf.scenes.append(gl.Scene(name=name, nodes=[0]))
        self.gltf.scene = 0

    def to_bytes(self) -> bytes:
        """The finished GLB: header, JSON chunk, binary chunk."""
        self._blob.extend(b"\0" * (-len(self._blob) % 4))
        self.gltf.buffers = [gl.Buffer(byteLength=len(self._blob))]
        self.gltf.set_binary_blob(bytes(self._blob))
        return b"".join(self.gltf.save_to_bytes())

    def _add(self, accessor: gl.Accessor) -> int:
        self.gltf.accessors.append(accessor)
        return len(self.gltf.accessors) - 1

    @staticmethod
    def _columns(values: np.ndarray) -> np.ndarray:
        values = np.ascontiguousarray(values)
        values = values[:, None] if values.ndim == 1 else values
        if values.ndim != 2 or values.shape[1] not in _TYPES or values.dtype not in _COMPONENTS:
            known = ", ".join(str(t) for t in _COMPONENTS)
            raise ShapeError(f"an accessor must be (N,) or (N, 1..4) of {known}; got {values.shape} {values.dtype}.")
        return values

    @staticmethod
    def _describe(values: np.ndarray, bounds: bool, name: str | None) -> gl.Accessor:
        accessor = gl.Accessor(
            byteOffset=None,
            componentType=_COMPONENTS[values.dtype],
            normalized=values.dtype.kind in "iu",
            count=len(values),
            type=_TYPES[values.shape[1]],
            name=name,
        )
        if bounds:
            accessor.min = values.min(axis=0).tolist()
            accessor.max = values.max(axis=0).tolist()
        return accessor
