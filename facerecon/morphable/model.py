"""A linear 3D face model: coefficients in, shape and landmarks out (Sec. 4.2: p_id, p_exp, p_tex, p_pose)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from facerecon.errors import AssetError, ConfigError, ShapeError, check_floats, check_number, check_shape
from facerecon.geometry.camera import project
from facerecon.geometry.rotation import euler_to_matrix
from facerecon.modes import in_own_modes, own_modes
from facerecon.morphable.regions import JAW_OUTWARD
from facerecon.settings import check_keys
from facerecon.storage import all_finite, open_safetensors, parse_json, refuse_pickle
from facerecon.types import Camera, FaceParams, MeshTopology, SHLight

__all__ = ["MorphableModel", "bare_topology", "read_face_model"]

_TOPOLOGY = tuple(field.name for field in fields(MeshTopology) if field.name not in ("regions", "name"))

SOFTNESS = 0.5
"""Px of a 224 px image over which neighbors on the outline share a landmark."""


class MorphableModel(nn.Module):
    """``shape = mean + identity @ identity_basis + expression @ expression_basis``, then rotation and translation.

    Generic: any head model is one of these with other buffers. ``model.double()`` works in float64 throughout.

    Args:
        mean: (V, 3), 0.1 m, y up, face towards +z, centered as the released camera expects.
        identity_basis: (I, V, 3), one standard deviation each.
        expression_basis: (E, V, 3).
        topology: faces, UVs, landmarks, mirror, regions.
        name: of the model.
        expression_names: E names.
        expression_bounds: (low, high) of every coefficient, or None.
        albedo_mean, albedo_basis: (V, 3) and (A, V, 3) in [0, 1], or None: the model has no albedo of its own.
        identity_variance: (I,) share of the source's variance that the first 1, 2, ... components keep; may be empty.
        version: of the model; coefficients of one version mean nothing to another.

    Attributes:
        mean, identity_basis, expression_basis: buffers.
        topology: its tensors are buffers too.
    """

    def __init__(
        self,
        mean: Tensor,
        identity_basis: Tensor,
        expression_basis: Tensor,
        topology: MeshTopology,
        name: str = "",
        expression_names: tuple[str, ...] = (),
        expression_bounds: tuple[float, float] | None = None,
        albedo_mean: Tensor | None = None,
        albedo_basis: Tensor | None = None,
        identity_variance: tuple[float, ...] = (),
        version: str = "",
    ) -> None:
        super().__init__()
        num_vertices = check_shape("mean", mean, "V 3")["V"]
        check_shape("identity_basis", identity_basis, f"I {num_vertices} 3")
        check_shape("expression_basis", expression_basis, f"E {num_vertices} 3")
        self.name = name
        self._topology_name = topology.name or name
        self.expression_names = tuple(expression_names)
        self.expression_bounds = expression_bounds
        self.identity_variance = tuple(identity_variance)
        self.version = version
        self.register_buffer("mean", mean)
        self.register_buffer("identity_basis", identity_basis)
        self.register_buffer("expression_basis", expression_basis)
        gray, empty = mean.new_full((num_vertices, 3), 0.5), mean.new_zeros(0, num_vertices, 3)
        self.register_buffer("albedo_mean", gray if albedo_mean is None else albedo_mean)
        self.register_buffer("albedo_basis", empty if albedo_basis is None else albedo_basis)
        for key in _TOPOLOGY:
            self.register_buffer(f"_{key}", getattr(topology, key), persistent=False)
        self._region_names = tuple(topology.regions)
        self._mirror_maps: tuple[Tensor, Tensor] | None = None
        for key, rows in topology.regions.items():
            self.register_buffer(f"_region_{key}", rows, persistent=False)
        self.register_buffer("_jaw_outward", mean.new_tensor(JAW_OUTWARD), persistent=False)
        # Weights of points 17-67 that give the image of the y axis under the best affine camera (least squares).
        fixed = self._places(mean[None], self._landmark_faces[17:, 0], self._landmark_barycentric[17:, 0])[0].double()
        system = torch.cat([fixed - fixed.mean(0), torch.ones_like(fixed[:, :1])], dim=1)
        self.register_buffer("_upward", torch.linalg.pinv(system)[1].to(mean), persistent=False)

    # -- what it is -----------------------------------------------------------------------------------------

    @property
    def topology(self) -> MeshTopology:
        """The mesh, on the model's device."""
        regions = {key: getattr(self, f"_region_{key}") for key in self._region_names}
        return MeshTopology(
            **{key: getattr(self, f"_{key}") for key in _TOPOLOGY}, regions=regions, name=self._topology_name
        )

    @property
    def num_vertices(self) -> int:
        """V."""
        return self.mean.shape[0]

    @property
    def num_identity(self) -> int:
        """I."""
        return self.identity_basis.shape[0]

    @property
    def num_expression(self) -> int:
        """E."""
        return self.expression_basis.shape[0]

    @property
    def num_albedo(self) -> int:
        """A; 0 where the texture comes from a decoder."""
        return self.albedo_basis.shape[0]

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        return (
            f"{self.name!r}, vertices={self.num_vertices}, identity={self.num_identity}, "
            f"expression={self.num_expression}, albedo={self.num_albedo}"
        )

    def with_topology(self, topology: MeshTopology) -> MorphableModel:
        """The same shapes with another topology record (landmarks, mesh points, regions), frozen, in eval mode."""
        return self._copy(self.mean, topology)

    def with_mean(self, mean: Tensor) -> MorphableModel:
        """The same bases and topology on another mean shape (V, 3), frozen, in eval mode."""
        return self._copy(mean, self.topology)

    def cropped(self, region: str) -> MorphableModel:
        """The part of the head that shows one region, as a model of the same coefficients, frozen, in eval mode.

        It keeps the faces of the region, those around them, so that its normals are the whole head's, and those of
        landmarks and mesh points. What is rendered of the region, and the points, are the whole head's; of the default
        head's 19,347 vertices the region "face" needs 9,296.

        Args:
            region: key of ``topology.regions``.

        Raises:
            ConfigError: an unknown region.
        """
        topology = self.topology
        check_keys([region], topology.regions, "face region")
        vertices = topology.mirror.new_zeros(self.num_vertices, dtype=torch.bool)
        vertices[topology.faces[topology.regions[region]]] = True
        faces = vertices[topology.faces].any(1)
        faces[topology.landmark_faces] = True
        faces[topology.mesh_point_faces] = True
        vertices[topology.faces[faces]] = True
        vertices |= vertices[topology.mirror]
        vertex, face = (kept.cumsum(0) - 1 for kept in (vertices, faces))  # new numbers
        part = topology.replace(
            faces=vertex[topology.faces[faces]],
            uv_faces=topology.uv_faces[faces],
            landmark_faces=face[topology.landmark_faces],
            mesh_point_faces=face[topology.mesh_point_faces],
            mirror=vertex[topology.mirror[vertices]],
            regions={name: rows[faces] for name, rows in topology.regions.items()},
        )
        return self._copy(self.mean[vertices], part, vertices)

    def _copy(self, mean: Tensor, topology: MeshTopology, vertices: Tensor | None = None) -> MorphableModel:
        def kept(values: Tensor) -> Tensor:
            return values if vertices is None else values[..., vertices, :]

        model = MorphableModel(
            mean=mean,
            identity_basis=kept(self.identity_basis),
            expression_basis=kept(self.expression_basis),
            topology=topology,
            name=self.name,
            expression_names=self.expression_names,
            expression_bounds=self.expression_bounds,
            albedo_mean=kept(self.albedo_mean),
            albedo_basis=kept(self.albedo_basis),
            identity_variance=self.identity_variance,
            version=self.version,
        )
        return model.eval().requires_grad_(False)

    # -- coefficients ---------------------------------------------------------------------------------------

    def neutral(self, batch: int = 1) -> FaceParams:
        """The mean face, unposed, in the release's initial light."""
        zeros = self.mean.new_zeros
        light = zeros(batch, 9, 3)
        light[:, 0] = SHLight.AMBIENT
        return FaceParams(
            identity=zeros(batch, self.num_identity),
            expression=zeros(batch, self.num_expression),
            albedo=zeros(batch, self.num_albedo),
            rotation=zeros(batch, 3),
            translation=zeros(batch, 3),
            light=SHLight(light),
        )

    def sample(self, generator: torch.Generator | None = None, batch: int = 1) -> FaceParams:
        """Random faces: identity and albedo from the standard normal (of a CPU generator), neutral, unposed."""
        params = self.neutral(batch)

        def normal(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=generator).to(like)

        return params.replace(identity=normal(params.identity), albedo=normal(params.albedo))

    def mirrored(self, params: FaceParams) -> FaceParams:
        """Parameters of the mirror image (left and right exchanged in a picture whose camera looks at its middle).

        Expressions by the Left and Right of their names, where each has its other side. Otherwise, and for identity,
        the nearest coefficients: exact where the basis holds every component's mirror image, as the makehuman head's
        does. Albedo stays.
        """
        if self._mirror_maps is None:
            with own_modes():
                expression = self._exchanged_sides()
                if expression is None:
                    expression = self._mirror_map(self.expression_basis)
                self._mirror_maps = self._mirror_map(self.identity_basis), expression
        identity, expression = self._mirror_maps
        turn = params.rotation.new_tensor([1.0, -1.0, -1.0])
        return params.replace(
            identity=params.identity @ identity.to(params.identity),
            expression=params.expression @ expression.to(params.expression),
            rotation=params.rotation * turn,
            translation=params.translation * params.translation.new_tensor([-1.0, 1.0, 1.0]),
            light=params.light.mirrored(),
        )

    def _mirror_map(self, basis: Tensor) -> Tensor:
        """(K, K): row k holds the coefficients of component k's mirror image, by least squares."""
        flat = basis.flatten(1).double()
        swapped = (basis[:, self._mirror] * basis.new_tensor([-1.0, 1.0, 1.0])).flatten(1).double()
        return (swapped @ flat.mT @ torch.linalg.pinv(flat @ flat.mT, hermitian=True)).to(basis)

    def _exchanged_sides(self) -> Tensor | None:
        """(E, E) permutation of expressions by name; None where a side has no other."""
        other = {"Left": "Right", "Right": "Left"}
        place = {name: i for i, name in enumerate(self.expression_names)}
        wanted = [
            next((name.removesuffix(a) + b for a, b in other.items() if name.endswith(a)), name)
            for name in self.expression_names
        ]
        if len(place) != self.num_expression or not all(name in place for name in wanted):
            return None
        eye = torch.eye(self.num_expression, dtype=self.mean.dtype, device=self.mean.device)
        return eye[[place[name] for name in wanted]]

    def bound_expression(self, expression: Tensor) -> Tensor:
        """Clamp (B, E) coefficients to the model's bounds; unchanged where it has none."""
        return expression if self.expression_bounds is None else expression.clamp(*self.expression_bounds)

    def _coefficients(self, kind: str, values: Tensor, expected: int) -> Tensor:
        if values.ndim != 2 or values.shape[1] != expected:
            raise ShapeError(
                f"{kind} coefficients must be (B, {expected}) for face model '{self.name}'; got {tuple(values.shape)}. "
                f"Start from model.neutral(batch)"
                + (" or load the model with the same num_identity." if kind == "identity" else ".")
            )
        check_floats(f"{kind} coefficients", values, self.mean, "the head model")
        return values

    # -- shape ----------------------------------------------------------------------------------------------

    def neutral_shape(self, params: FaceParams) -> Tensor:
        """Unposed vertices without expression: (B, V, 3)."""
        identity = self._coefficients("identity", params.identity, self.num_identity)
        return self.mean + torch.einsum("bi,ivc->bvc", identity, self.identity_basis)

    def shape(self, params: FaceParams) -> Tensor:
        """Unposed vertices: (B, V, 3)."""
        expression = self._coefficients("expression", params.expression, self.num_expression)
        return self.neutral_shape(params) + torch.einsum("be,evc->bvc", expression, self.expression_basis)

    def pose(self, vertices: Tensor, params: FaceParams) -> Tensor:
        """Rotate about the model's origin (R = Rz Ry Rx), then translate: (B, N, 3) -> (B, N, 3)."""
        check_shape("vertices", vertices, "B N 3")
        return vertices @ euler_to_matrix(params.rotation).transpose(1, 2) + params.translation[:, None]

    def forward(self, params: FaceParams) -> Tensor:
        """Posed world vertices: (B, V, 3)."""
        return self.pose(self.shape(params), params)

    def albedo(self, params: FaceParams) -> Tensor:
        """Per-vertex color of the model's own linear albedo: (B, V, 3) in [0, 1], not clamped."""
        albedo = self._coefficients("albedo", params.albedo, self.num_albedo)
        return self.albedo_mean + torch.einsum("ba,avc->bvc", albedo, self.albedo_basis)

    # -- points ---------------------------------------------------------------------------------------------

    def landmarks3d(self, vertices: Tensor, camera: Camera | None = None) -> Tensor:
        """The 68 landmarks on given vertices: (B, 68, 3), in the frame of ``vertices``.

        Points 0-16 are contour points: what is annotated on a photo is where the face's outline is, and that moves
        over the skin as the head turns. Each has candidates along a line from cheek to ear or from chin to throat;
        with a camera, those farthest out in the image are taken, by a softmax over the outward distance, so that the
        point slides instead of jumping (the choice is not differentiated, the point is).

        Args:
            vertices: (B, V, 3); posed world vertices where a camera is given.
            camera: the camera of the image; None takes the contour of a frontal view.
        """
        check_shape("vertices", vertices, f"B {self.num_vertices} 3")
        fixed = self._places(vertices, self._landmark_faces[17:, 0], self._landmark_barycentric[17:, 0])
        if camera is None:
            contour = self._places(vertices, self._landmark_faces[:17, 0], self._landmark_barycentric[:17, 0])
        else:
            weights = self.candidate_weights(vertices, camera)[:, :17]
            contour = (self._contour_candidates(vertices) * weights[..., None]).sum(2)
        return torch.cat([contour, fixed], dim=1)

    @torch.no_grad()
    def candidate_weights(self, vertices: Tensor, camera: Camera) -> Tensor:
        """How much of each candidate of ``topology.landmark_faces`` a landmark takes.

        Args:
            vertices: (B, V, 3), posed.
            camera: of the image.

        Returns:
            (B, 68, K), rows sum to 1; points 17-67 take their first candidate alone.
        """
        rows = self._contour_candidates(vertices)
        weights = vertices.new_zeros(vertices.shape[0], 68, rows.shape[2])
        weights[:, 17:, 0] = 1
        fixed = self._places(vertices, self._landmark_faces[17:, 0], self._landmark_barycentric[17:, 0])
        pixels = project(camera, rows.flatten(1, 2))[..., :2].unflatten(1, (17, -1))
        up = torch.einsum("n,bnc->bc", self._upward, project(camera, fixed)[..., :2])
        angle = torch.atan2(-up[:, 0], -up[:, 1])  # in-plane turn of the head's own y axis
        cos, sin = angle.cos(), angle.sin()
        right, above = torch.stack([cos, -sin], -1), torch.stack([-sin, -cos], -1)
        outward = self._jaw_outward[:, :1] * right[:, None] + self._jaw_outward[:, 1:] * above[:, None]
        distance = torch.einsum("bjkc,bjc->bjk", pixels, outward)
        weights[:, :17] = (distance * (224 / max(camera.size) / SOFTNESS)).softmax(-1)
        return weights

    def _contour_candidates(self, vertices: Tensor) -> Tensor:
        """(B, 17, K, 3)."""
        faces, weights = self._landmark_faces[:17], self._landmark_barycentric[:17]
        return self._places(vertices, faces.flatten(), weights.flatten(0, 1)).unflatten(1, (17, -1))

    def mesh_points3d(self, vertices: Tensor) -> Tensor:
        """Places on (B, V, 3) vertices of the face-mesh points listed in ``topology.mesh_points``: (B, M, 3)."""
        check_shape("vertices", vertices, f"B {self.num_vertices} 3")
        return self._places(vertices, self._mesh_point_faces, self._mesh_point_barycentric)

    def _places(self, vertices: Tensor, faces: Tensor, weights: Tensor) -> Tensor:
        corners = vertices[:, self._faces[faces]]  # (B, N, 3 corners, 3)
        return torch.einsum("bnkc,nk->bnc", corners, weights.to(vertices))


def bare_topology(
    name: str,
    faces: NDArray,
    uvs: NDArray,
    uv_faces: NDArray,
    landmarks: tuple[NDArray, NDArray],
    mirror: NDArray,
    regions: Mapping[str, NDArray],
) -> MeshTopology:
    """A topology record without face-mesh points and with one candidate a landmark.

    Args:
        name: of the head model.
        faces, uv_faces: (F, 3) int64.
        uvs: (T, 2).
        landmarks: face (68,) and barycentric weights (68, 3) of each.
        mirror: (V,) int64.
        regions: {name: (F,) bool}.
    """
    empty = torch.zeros(0, dtype=torch.int64)
    return MeshTopology(
        faces=torch.from_numpy(faces),
        uvs=torch.from_numpy(uvs.astype(np.float32)),
        uv_faces=torch.from_numpy(uv_faces),
        landmark_faces=torch.from_numpy(landmarks[0])[:, None],
        landmark_barycentric=torch.from_numpy(landmarks[1].astype(np.float32))[:, None],
        mesh_points=empty,
        mesh_point_faces=empty,
        mesh_point_barycentric=torch.zeros(0, 3),
        mirror=torch.from_numpy(mirror),
        regions={key: torch.from_numpy(rows) for key, rows in regions.items()},
        name=name,
    )


@in_own_modes
def read_face_model(path: Path, num_identity: int | None = None) -> MorphableModel:
    """Build a model from a file laid out as in :mod:`facerecon.morphable.convert`.

    Args:
        path: the safetensors file.
        num_identity: components to keep, None keeps all.

    Raises:
        AssetError: the file is missing or is not a head model.
        ConfigError: more components are asked for than the file has.
    """
    refuse_pickle(path)
    if num_identity is not None:
        check_number("num_identity", num_identity, whole=True)
    try:
        with open_safetensors(path) as file:
            meta = file.metadata() or {}
            available = file.get_slice("identity_basis").get_shape()[0]
            count = available if num_identity is None else num_identity
            if not 0 <= count <= available:
                raise ConfigError(f"num_identity must be 0..{available} for '{meta.get('name')}'; got {num_identity}.")
            basis = file.get_slice("identity_basis")[:count].float()
            arrays = {key: file.get_tensor(key) for key in list(file.keys()) if key != "identity_basis"}
            missing = [key for key in ("mean", "expression_basis", *_TOPOLOGY) if key not in arrays]
            missing += [key for key in ("name", "expression_names") if key not in meta]
            if missing:
                raise SafetensorError(f"no '{missing[0]}' in it")
    except (SafetensorError, OSError, LookupError) as error:
        raise AssetError(f"{path} is not a head model ({error}); run: python -m facerecon.assets fetch open") from None
    for key, array in {**arrays, "identity_basis": basis}.items():
        if array.is_floating_point() and not all_finite(array):
            raise AssetError(
                f"{path} holds NaN or infinite numbers (in '{key}'); run: python -m facerecon.assets fetch open --force"
            )
    try:
        regions = {key[7:]: rows.bool() for key, rows in arrays.items() if key.startswith("region.")}
        topology = MeshTopology(
            **{key: arrays[key].long() if not arrays[key].is_floating_point() else arrays[key] for key in _TOPOLOGY},
            regions=regions,
            name=meta["name"],
        )
        low, high = meta.get("expression_low", ""), meta.get("expression_high", "")
        bounds = (float(low or "-inf"), float(high or "inf")) if low or high else None
        return MorphableModel(
            mean=arrays["mean"],
            identity_basis=basis,
            expression_basis=arrays["expression_basis"].float(),
            topology=topology,
            name=meta["name"],
            expression_names=tuple(parse_json(meta["expression_names"])),
            expression_bounds=bounds,
            albedo_mean=arrays.get("albedo_mean"),
            albedo_basis=arrays["albedo_basis"].float() if "albedo_basis" in arrays else None,
            identity_variance=tuple(parse_json(meta.get("identity_variance", "[]"))[:count]),
            version=meta.get("version", ""),
        )
    except (ValueError, TypeError, LookupError, RuntimeError) as error:
        raise AssetError(f"{path} is not a head model ({error}); run: python -m facerecon.assets fetch open") from None
