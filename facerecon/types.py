"""The data that flows through facerecon: frozen dataclasses of tensors, and the conventions, written once.

Conventions (every function in the library follows them):

* float32; RGB and masks in [0, 1]; images (B, 3, H, W); batch first everywhere.
* Angles in radians. Pixels: origin top-left, y down, pixel centers at +0.5.
* World: right-handed, y up, the face looks at +z. One unit is 0.1 m (one decimeter) for every head model.
* Camera frame: x right, y down, z forward; ``x_camera = rotation @ x_world + translation``.
* UV: origin bottom-left. Texel (row r, column c) of an S x S map has its center at
  u = (c + 0.5) / S, v = 1 - (r + 0.5) / S.
* Spherical-harmonic light includes the ambient term 0.8 that the released code adds to band 0.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon.errors import InputError, ShapeError, check_shape
from facerecon.storage import parse_json, read_safetensors, safetensors_bytes, write_whole

__all__ = [
    "Camera",
    "Crop",
    "FaceParams",
    "Fragments",
    "Irises",
    "Latent",
    "MeshTopology",
    "Observation",
    "ReconstructedFace",
    "Rendering",
    "SHLight",
    "SavedFace",
    "SavedTrack",
    "TensorStruct",
    "ToneBelief",
]

Self = TypeVar("Self", bound="TensorStruct")


def _map(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, TensorStruct):
        return value.map(fn)
    if isinstance(value, dict):
        return {key: _map(item, fn) for key, item in value.items()}
    return value


@dataclass(frozen=True)
class TensorStruct:
    """A frozen record of tensors, nested records, dictionaries of tensors, and plain metadata.

    Fields listed in ``SHARED`` have no batch axis (bases, topology, names) and are left alone by
    indexing and ``cat``.
    """

    SHARED = ()
    FORMER = {}  # {field: the name it had in files of earlier versions}
    FINITE = False  # whether a file with NaN or infinity in it is refused; losses of the past may hold them

    def map(self: Self, fn: Callable[[Tensor], Tensor]) -> Self:
        """Apply ``fn`` to every tensor, nested ones included."""
        changes = {f.name: _map(getattr(self, f.name), fn) for f in dataclasses.fields(self)}
        return dataclasses.replace(self, **changes)

    def to(self: Self, *args: Any, **kwargs: Any) -> Self:
        """``Tensor.to`` on every tensor; a dtype is applied to floating-point tensors only."""
        dtype = next((arg for arg in args if isinstance(arg, torch.dtype)), kwargs.pop("dtype", None))
        rest = [arg for arg in args if not isinstance(arg, torch.dtype)]

        def move(t: Tensor) -> Tensor:
            t = t.to(*rest, **kwargs) if rest or kwargs else t
            return t.to(dtype) if dtype is not None and t.is_floating_point() else t

        return self.map(move)

    def detach(self: Self) -> Self:
        """Cut every tensor from the autograd graph."""
        return self.map(Tensor.detach)

    def replace(self: Self, **changes: Any) -> Self:
        """A copy with some fields changed; unknown names are a ``TypeError``."""
        return dataclasses.replace(self, **changes)

    @property
    def batch(self) -> int:
        """Length of the batch axis, read from the first tensor that has one."""
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.name in self.SHARED:
                continue
            if isinstance(value, Tensor):
                return value.shape[0]
            if isinstance(value, TensorStruct):
                return value.batch
        raise ShapeError(f"{type(self).__name__} holds no batched tensor.")

    def __getitem__(self: Self, index: Any) -> Self:
        """Select along the batch axis and keep it: ``faces[2]`` is a batch of one."""
        if isinstance(index, int):
            if not -self.batch <= index < self.batch:
                raise IndexError(f"index {index} is out of range for a batch of {self.batch}")
            index = slice(index, index + 1 or None)

        def pick(value: Any) -> Any:
            if isinstance(value, TensorStruct):
                return value[index]
            if isinstance(value, dict):
                return {key: pick(item) for key, item in value.items()}
            if isinstance(value, tuple):
                if isinstance(index, slice):
                    return value[index]
                return tuple(value[int(i)] for i in index) if value else value  # empty: not in an older file
            return value[index] if isinstance(value, Tensor) else value

        names = [f.name for f in dataclasses.fields(self) if f.name not in self.SHARED]
        return dataclasses.replace(self, **{name: pick(getattr(self, name)) for name in names})

    @classmethod
    def cat(cls: type[Self], items: Sequence[Self]) -> Self:
        """Join records along the batch axis; shared fields come from the first."""
        first = items[0]

        def join(values: list[Any]) -> Any:
            head = values[0]
            if isinstance(head, TensorStruct):
                return type(head).cat(values)
            if isinstance(head, dict):
                return {key: join([v[key] for v in values]) for key in head}
            if isinstance(head, tuple):
                return tuple(x for v in values for x in v)
            return torch.cat(values) if isinstance(head, Tensor) else head

        names = [f.name for f in dataclasses.fields(first) if f.name not in first.SHARED]
        return dataclasses.replace(first, **{n: join([getattr(i, n) for i in items]) for n in names})

    # -- files -----------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike) -> Path:
        """Write every tensor to a safetensors file, whole or not at all; metadata travels in its header.

        Raises:
            OutputError: the file cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        meta: dict[str, Any] = {}

        def walk(prefix: str, value: Any) -> None:
            if isinstance(value, Tensor):
                tensors[prefix] = value.detach().cpu().contiguous().clone()
            elif isinstance(value, TensorStruct):
                for f in dataclasses.fields(value):
                    walk(f"{prefix}.{f.name}" if prefix else f.name, getattr(value, f.name))
            elif isinstance(value, dict) and value and all(isinstance(v, Tensor) for v in value.values()):
                for key, item in value.items():
                    walk(f"{prefix}.{key}", item)
            else:
                meta[prefix] = value

        walk("", self)
        return write_whole(path, safetensors_bytes(tensors, {"type": type(self).__name__, "fields": json.dumps(meta)}))

    @classmethod
    def load(cls: type[Self], path: str | os.PathLike, device: str | torch.device = "cpu") -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: the file is missing, is not a safetensors file, or holds another type.
        """
        advice = f"expected a {cls.__name__} written by facerecon"
        tensors, meta = read_safetensors(
            path, f"a {cls.__name__}", advice, error=InputError, device=device, finite=cls.FINITE
        )
        if meta.get("type") != cls.__name__:
            raise InputError(f"{path} holds {meta.get('type')!r}, expected {cls.__name__}; check the path.")
        try:
            plain = parse_json(meta.get("fields", "{}"))
            return _build(cls, "", tensors, plain)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path} is not a whole {cls.__name__} ({reason}); {advice}.") from None


_STRUCTS: dict[str, type] = {}


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(v) for v in value) if isinstance(value, list) else value


def _build(cls: type, prefix: str, tensors: dict[str, Tensor], plain: dict[str, Any]) -> Any:
    values: dict[str, Any] = {}
    for f in dataclasses.fields(cls):
        name = f"{prefix}.{f.name}" if prefix else f.name
        if name not in tensors and f.name in cls.FORMER:
            name = name.removesuffix(f.name) + cls.FORMER[f.name]
        nested = _STRUCTS.get(str(f.type).split(" |")[0].strip())
        if name in tensors:
            values[f.name] = tensors[name]
        elif nested is not None and any(k.startswith(name + ".") for k in (*tensors, *plain)):
            values[f.name] = _build(nested, name, tensors, plain)
        elif any(k.startswith(name + ".") for k in tensors):
            values[f.name] = {k[len(name) + 1 :]: t for k, t in tensors.items() if k.startswith(name + ".")}
        elif name in plain:
            values[f.name] = _as_tuple(plain[name])
        if str(f.type) == "Tensor" and not isinstance(values.get(f.name), Tensor):
            raise ValueError(f"no tensor '{name}' in it")
    return cls(**values)


def _struct(cls: type) -> type:
    """Frozen dataclass, known by name to :meth:`TensorStruct.load`."""
    cls = dataclass(frozen=True)(cls)
    _STRUCTS[cls.__name__] = cls
    return cls


@_struct
class SHLight(TensorStruct):
    """Second-order spherical-harmonic light.

    Args:
        coefficients: (B, 9, 3), bands 0-2 by RGB; of "encoded" light INCLUDING the release's ambient 0.8 on band 0.
        space: what the light multiplies, see :func:`facerecon.geometry.lighting.encoded_shading`: "encoded" sRGB values
            (the release), or "linear" intensities (physical light).
    """

    coefficients: Tensor
    space: str = "encoded"

    SHARED = ("space",)
    AMBIENT = 0.8
    AMBIENT_LINEAR = 0.53  # with 0.886 of band 0, (0.8 * 0.886) ** 2.2 / 0.886

    @classmethod
    def ambient(cls, batch: int = 1, device: str | torch.device = "cpu", space: str = "encoded") -> SHLight:
        """The release's initial light, 0.8 on band 0 and nothing else; or the linear one of the same shading, 0.53."""
        coefficients = torch.zeros(batch, 9, 3, device=device)
        coefficients[:, 0] = cls.AMBIENT if space == "encoded" else cls.AMBIENT_LINEAR
        return cls(coefficients, space)

    def mirrored(self) -> SHLight:
        """The light with left and right exchanged: the basis functions x, xy and xz change their sign."""
        signs = self.coefficients.new_tensor([1, 1, 1, -1, -1, 1, 1, -1, 1])
        return self.replace(coefficients=self.coefficients * signs[:, None])


@_struct
class FaceParams(TensorStruct):
    """Coefficients of one face: p_id, p_exp, p_tex, p_pose, p_light (Sec. 4.2).

    Args:
        identity: (B, I), in standard deviations of the model's basis.
        expression: (B, E), within the model's bounds (makehuman: blendshape weights in [0, 1]).
        albedo: (B, A), coefficients of the model's own linear albedo; A = 0 where a decoder makes the texture.
        rotation: (B, 3) x, y, z Euler angles in radians, R = Rz Ry Rx.
        translation: (B, 3), world units (0.1 m).
        light: spherical-harmonic light.
        tone: (B, 3), mean log color (natural logarithms of encoded RGB) that the skin of a decoder's texture is brought
            to, see :mod:`facerecon.fitting.tone`; None: the texture is as the decoder makes it.
    """

    identity: Tensor
    expression: Tensor
    albedo: Tensor
    rotation: Tensor
    translation: Tensor
    light: SHLight
    tone: Tensor | None = None


@_struct
class ToneBelief(TensorStruct):
    """A Gaussian belief over the mean log color of a face's plain skin, natural logarithms of encoded RGB.

    Args:
        mean: (B, 3).
        covariance: (B, 3, 3).
    """

    mean: Tensor
    covariance: Tensor


@_struct
class Camera(TensorStruct):
    """Pinhole camera: ``p = focal * (x, y) / z + center`` of ``x_camera = rotation @ x_world + translation``.

    Args:
        focal: (B,) or (B, 2), pixels.
        center: (B, 2), pixels (x, y); the middle of an image is (W / 2, H / 2).
        rotation: (B, 3, 3), world to camera (x right, y down, z forward).
        translation: (B, 3), world units.
        warp: (B, 2, 3) affine map of pixels applied after the projection (identity unless a crop was undone).
        size: (H, W) of the image in pixels.
        near, far: clipping distances in world units.
    """

    focal: Tensor
    center: Tensor
    rotation: Tensor
    translation: Tensor
    warp: Tensor
    size: tuple = (224, 224)
    near: float = 5.0
    far: float = 15.0

    SHARED = ("size", "near", "far")

    @classmethod
    def deep3d(cls, size: int = 224, batch: int = 1, device: str | torch.device = "cpu") -> Camera:
        """The release's camera, scaled to ``size``: focal 1015 and center 112 at 224 px, distance 10.

        Its z = 10 - z is a reflection; with y down the proper rotation is diag(1, -1, -1).
        """
        one = torch.ones(batch, device=device)
        scale = size / 224.0
        return cls(
            focal=one * 1015.0 * scale,
            center=one[:, None] * torch.tensor([size / 2, size / 2], device=device),
            rotation=torch.diag(torch.tensor([1.0, -1.0, -1.0], device=device)).expand(batch, 3, 3),
            translation=one[:, None] * torch.tensor([0.0, 0.0, 10.0], device=device),
            warp=torch.eye(2, 3, device=device).expand(batch, 2, 3),
            size=(size, size),
        )


@_struct
class MeshTopology(TensorStruct):
    """Everything about a head mesh that does not move. Nothing here has a batch axis.

    Args:
        faces: (F, 3) int64, counter-clockwise seen from outside.
        uvs: (T, 2) in [0, 1], origin bottom-left.
        uv_faces: (F, 3) int64 into ``uvs``.
        landmark_faces: (68, K) int64, candidate faces per landmark; K > 1 lets the jaw contour slide with
            pose. A point with fewer candidates repeats its first.
        landmark_barycentric: (68, K, 3) weights of those candidates.
        mesh_points: (M,) int64, which of the 468 face-mesh points have a stable place on this head.
        mesh_point_faces: (M,) int64.
        mesh_point_barycentric: (M, 3).
        mirror: (V,) int64, the vertex on the other side (x -> -x); a point of the midline is its own.
        regions: {name: (F,) bool}: "face", "skin", "eyes", "mouth", "neck", "scalp", "ears", "nose", ...
        name: the head model this belongs to.
    """

    faces: Tensor
    uvs: Tensor
    uv_faces: Tensor
    landmark_faces: Tensor
    landmark_barycentric: Tensor
    mesh_points: Tensor
    mesh_point_faces: Tensor
    mesh_point_barycentric: Tensor
    mirror: Tensor
    regions: dict = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        check_shape("faces", self.faces, "F 3")
        check_shape("uvs", self.uvs, "T 2")
        check_shape("uv_faces", self.uv_faces, f"{self.faces.shape[0]} 3")


@_struct
class Latent(TensorStruct):
    """A point in a texture decoder's latent space.

    Args:
        codes: (B, N, C), N rows of C numbers (N = 1 for "z", "w" and "linear").
        space: "z", "w", "w+" or "linear".
    """

    codes: Tensor
    space: str = "z"

    SHARED = ("space",)


@_struct
class Fragments(TensorStruct):
    """What the rasterizer found in each pixel.

    Args:
        face_index: (B, H, W) int64, -1 on background.
        barycentric: (B, H, W, 3), perspective-correct, 0 on background; differentiable in the vertices.
        depth: (B, H, W), world units along the camera's z, 0 on background.
    """

    face_index: Tensor
    barycentric: Tensor
    depth: Tensor


@_struct
class Rendering(TensorStruct):
    """One rendered image.

    Args:
        image: (B, 3, H, W), albedo times shading, not clamped; 0 on background.
        mask: (B, 1, H, W) in {0, 1} (or soft, with antialiasing).
        depth: (B, 1, H, W), world units, 0 on background.
        landmarks: (B, 68, 2), pixels.
        shading: (B, 3, H, W), irradiance factor of the light, 0 on background.
        fragments: the rasterizer's result.
    """

    image: Tensor
    mask: Tensor
    depth: Tensor
    landmarks: Tensor
    shading: Tensor
    fragments: Fragments

    @property
    def surface(self) -> Tensor:
        """(B, 3, H, W): the head's own color in every pixel that it covers, wholly or (antialiased) in part.

        ``image`` holds that color times the mask along the outline; in the ratio the outer outline has no gradient,
        only silhouettes within the head have.
        """
        return self.image / self.mask.clamp(min=0.05)


@_struct
class Crop(TensorStruct):
    """One face cut from a photo, with its masks.

    Args:
        image: (B, 3, S, S) in [0, 1].
        to_photo: (B, 2, 3), affine map from crop pixels to photo pixels.
        valid: (B, 1, S, S), 1 where the photo has pixels, 0 where the crop reaches over its border.
        face_mask: (B, 1, S, S) in [0, 1]: skin, eyes, brows, nose, lips; no hair, no background.
        skin_mask: (B, 1, S, S): the face without eyes, brows, lips and mouth interior.
        eye_mask, mouth_mask, lip_mask: (B, 1, S, S): eyeballs; mouth interior; both lips.
        classes: (B, 1, S, S) uint8, of every pixel, numbered as :data:`facerecon.perception.bisenet.CLASSES`: hair,
            hat, glasses and the rest; of all people that the crop shows. None in observations of before.
    """

    image: Tensor
    to_photo: Tensor
    valid: Tensor
    face_mask: Tensor
    skin_mask: Tensor
    eye_mask: Tensor
    mouth_mask: Tensor
    lip_mask: Tensor
    classes: Tensor | None = None


@_struct
class Observation(TensorStruct):
    """All that is measured on a face before anything is fitted. Points are in pixels of ``fit``.

    Args:
        fit: 224 px crop in the released alignment; every image loss lives here.
        full: a larger crop of the same face (wider framing, more pixels), for unwrapping and detail.
        landmarks68: (B, 68, 2), pixels of the fit crop.
        mesh468: (B, 468, 3), pixels of the fit crop; z in the same scale, relative.
        box: (B, 4), x0, y0, x1, y1 in pixels of the photo's file, upright, as ``to_photo`` of the crops.
        score: (B,), detector confidence in [0, 1].
        identity: (B, 128), embedding of the differentiable identity network.
        eval_identity: (B, 1024), unit vectors of the identity network that measures results and is never optimized.
        tone: belief over the color of the skin; None where nothing tells (observations of before).
        irises: (B, 2, 3), center x, y and radius in pixels of the fit crop, the person's right eye first.
        expression_scores: (B, 52) in [0, 1], of
            :data:`~facerecon.perception.face_landmarker.EXPRESSION_SCORES`.
        expression: (B, 7) probabilities: neutral, happy, sad, angry, fearful, disgusted, surprised; None where
            :func:`~facerecon.observe` was not asked for ``attributes``.
        age: (B,), years; None likewise.
        male: (B,), probability; None likewise.
        path: one string a face, where it came from.
        photo_size: one (H, W) a face, of the file.
        mask_given: one bool a face: whether a user drew its mask, which is then used as it is.
        turned: one number a face: degrees, clockwise, by which the photo was turned for the crops to be upright (0, 90,
            180, 270). ``to_photo``, ``box`` and ``photo_size`` are of the photo as it is.
    """

    fit: Crop
    full: Crop
    landmarks68: Tensor
    mesh468: Tensor
    box: Tensor
    score: Tensor
    identity: Tensor
    eval_identity: Tensor
    tone: ToneBelief | None = None
    irises: Tensor | None = None
    expression_scores: Tensor | None = None
    expression: Tensor | None = None
    age: Tensor | None = None
    male: Tensor | None = None
    path: tuple = ()
    photo_size: tuple = ()
    mask_given: tuple = ()
    turned: tuple = ()

    FORMER = {"eval_identity": "judge"}

    @property
    def camera(self) -> Camera:
        """The camera of the fit crop, of batch B."""
        return Camera.deep3d(self.fit.image.shape[-1], self.batch, self.fit.image.device)

    @property
    def image(self) -> Tensor:
        """(B, 3, 224, 224): the fit crop."""
        return self.fit.image

    @property
    def face_mask(self) -> Tensor:
        """(B, 1, 224, 224)."""
        return self.fit.face_mask

    @property
    def skin_mask(self) -> Tensor:
        """(B, 1, 224, 224)."""
        return self.fit.skin_mask


@_struct
class Irises(TensorStruct):
    """The irises of B faces, measured on the photo. The person's right eye comes first.

    An eye that does not show has a ``share`` of 0 and looks as the other one; where neither shows they look ahead, and
    radius and colors are usual ones, not measured.

    Args:
        gaze: (B, 2, 3) unit vectors from the middle of the eyeball through that of the iris, in the head's axes.
        angle: (B,) radians between there and the rim of the iris, from the middle of the eyeball; of both eyes.
        color: (B, 3) mean albedo between pupil and rim, in [0, 1]; of both eyes.
        sclera: (B, 3) albedo of the white where it is light; of both eyes.
        share: (B, 2) of each iris that shows, in [0, 1]; 0 where none was found.
    """

    gaze: Tensor
    angle: Tensor
    color: Tensor
    sclera: Tensor
    share: Tensor


@_struct
class ReconstructedFace(TensorStruct):
    """The result of a fit.

    Args:
        params: fitted coefficients.
        latent: fitted texture code.
        texture: (B, 3, S, S) in [0, 1], albedo in UV (with the detail step: of that person).
        decoded: (B, 3, S', S'), what the decoder alone made of ``latent``.
        visibility: (B, 1, S, S) in [0, 1]: 1 where the photo shows the texel and colors it, 0 where it is invented
            (hidden, turned away, occluded, or copied from the other side of the face) or drawn (eyeballs, inside of the
            mouth); between the two at the borders.
        vertices: (B, V, 3), unposed, with expression.
        neutral_vertices: (B, V, 3), unposed, without.
        camera: in pixels of the photo.
        topology: the mesh.
        expression_basis: (E, V, 3).
        expression_names: E names.
        path, photo_size: one string and one (H, W) a face.
        history: {"stage.term": (B, steps)}, every loss term of every step.
        residual_shading: (B, 3, R, R) > 0 in UV: cast shadows, lamps and highlights, which multiply the shading of
            ``params.light`` in this photo and belong to no texture. None: ones.
        irises: measured on the photo; None where they were not.
    """

    params: FaceParams
    latent: Latent
    texture: Tensor
    decoded: Tensor
    visibility: Tensor
    vertices: Tensor
    neutral_vertices: Tensor
    camera: Camera
    topology: MeshTopology
    expression_basis: Tensor
    expression_names: tuple = ()
    path: tuple = ()
    photo_size: tuple = ()
    history: dict = field(default_factory=dict)
    residual_shading: Tensor | None = None
    irises: Irises | None = None

    SHARED = ("topology", "expression_basis", "expression_names")
    FORMER = {"visibility": "seen"}

    def __getitem__(self, index: Any) -> ReconstructedFace:
        """As for every record; the camera of a single face takes the size of its own photo."""
        face = super().__getitem__(index)
        if len(face.photo_size) == 1:
            return face.replace(camera=face.camera.replace(size=tuple(face.photo_size[0])))
        return face

    def texture_in_photo(self) -> Tensor:
        """(B, 3, S, S) >= 0, texture times residual shading: what under ``params.light`` looks as in the photo."""
        if self.residual_shading is None:
            return self.texture
        size = self.texture.shape[-2:]
        return self.texture * F.interpolate(self.residual_shading, size=size, mode="bilinear", align_corners=False)


HEAD_VERSIONS = {"makehuman": "2"}
"""Editions of head models that have had others under their name: coefficients of one mean nothing to another."""


def saved_head(name: str, version: str) -> str:
    """The head model that a file is of: what was saved as makehuman's without a version is its first edition's.

    Args:
        name: of the head model in the file.
        version: of it there, "" where the file names none.

    Raises:
        InputError: a version that this facerecon does not have.
    """
    if version == HEAD_VERSIONS.get(name, ""):
        return name
    if name == "makehuman" and not version:
        return "makehuman_artist"
    raise InputError(f"it is of version {version!r} of the head model '{name}', which this facerecon lacks; update it.")


@_struct
class SavedFace(TensorStruct):
    """What ``params.safetensors`` holds: enough to make the head again from its models.

    Args:
        params, latent, camera: of one face.
        face_model, decoder: names to load.
        num_identity: basis size.
        path: the photo's name.
        face_model_path: the head model's own file, "" where it came from the cache.
        face_model_version: of the head model; "" where a file names none, see :func:`saved_head`.
        decoder_version: of the decoder, of :data:`~facerecon.stylegan.load.DECODER_VERSIONS`; "" where a file names
            none.
    """

    params: FaceParams
    latent: Latent
    camera: Camera
    face_model: str = "makehuman"
    decoder: str = "linear"
    num_identity: int = 80
    path: tuple = ()
    face_model_path: str = ""
    face_model_version: str = ""
    decoder_version: str = ""

    FINITE = True
    SHARED = ("face_model", "decoder", "num_identity", "face_model_path", "face_model_version", "decoder_version")


@_struct
class SavedTrack(TensorStruct):
    """What ``track.safetensors`` holds: one person along a video.

    Args:
        face: of batch T; identity and latent are the same in every row.
        times: (T,), seconds from the first frame.
        frames: (T,) int64, their numbers in the video.
    """

    face: SavedFace
    times: Tensor
    frames: Tensor

    FINITE = True
