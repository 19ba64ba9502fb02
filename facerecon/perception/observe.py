"""Photo -> :class:`~facerecon.types.Observation`: detect, align, measure, mask (Sec. 4.2, preprocessing)."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon.errors import ConfigError, InputError, NoFaceError
from facerecon.geometry.alignment import deep3d_crop_transform, invert_affine
from facerecon.imaging.files import LoadedImage, load_image, open_regions, read_open_file
from facerecon.imaging.warp import crop_affine, crop_valid
from facerecon.modes import in_own_modes
from facerecon.perception.attributes import load_age_gender, load_expression
from facerecon.perception.corrections import check_landmarks, fit_mesh, read_landmarks, read_mask
from facerecon.perception.detection import Detection, load_detector
from facerecon.perception.face_landmarker import find_irises, load_expression_scores
from facerecon.perception.facemesh import MOST_APART, disagreement, fused_landmarks, load_facemesh
from facerecon.perception.identity import landmark_box, load_eval_identity, load_identity
from facerecon.perception.landmarks import eye_angle, load_landmarks68, map_points
from facerecon.perception.parsing import load_parser
from facerecon.perception.tone import estimate_tone
from facerecon.run.thread_pool import one_thread
from facerecon.types import Crop, Observation

__all__ = ["MEAN_FIVE_POINTS", "observe"]

MEAN_FIVE_POINTS = torch.tensor(
    [
        [0.0, 0.118, 1.259],
        [-0.305, 0.402, 0.856],
        [0.305, 0.402, 0.856],
        [-0.246, -0.262, 0.980],
        [0.246, -0.262, 0.980],
    ]
)
"""Nose tip, eye centers, mouth corners of a mean head, 0.1 m, y up.

The proportions are ICT-FaceKit's mean face; its scale and origin are set so that the released landmarks of four views
give the released crops (scale within 0.3 %, origin within 1.3 px at 224 px). Our own landmarks give scales within 2.5 %
and origins within 7 px of them: five points are few, and the nose tip weighs much in turned faces."""

_SMALLEST_PHOTO = 64
_STRIP = 128  # px: a photo that would be narrower when reduced is a strip
_STRIP_PIXELS = 4096**2
_SMALLEST_FACE = 40
_SMALL_FACE = 64
_ENOUGH = 640  # px of a face that all crops can use
_AROUND = 2.5  # from the face's center, in its sides: more than the full crop reaches
_MESH_SCORE = 0.5  # of the face mesh, below which a detection is no face
_CLEAR = 0.85  # score of a detection from which on a photo need not be turned; nine of ten good faces have more
_LEANING = 0.9  # radians off upright up to which a photo need not be turned


@in_own_modes
def observe(
    source: Any,
    face: str | int = "largest",
    crop_size: int = 224,
    full_size: int = 896,
    full_margin: float = 1.4,
    mean_points3d: Tensor | None = None,
    landmarks: Any = None,
    mask: Any = None,
    attributes: bool = False,
) -> Observation:
    """Find the face of a photo and measure everything that a fit starts from.

    Args:
        source: what :func:`~facerecon.imaging.files.read_image` takes: a path, bytes, an open binary file, a PIL
            image, an array (H, W, 3) or a tensor (3, H, W).
        face: ``"largest"``, ``"all"``, or an index (0 is the largest).
        crop_size: px, side of the fit crop in the released alignment.
        full_size: px, side of the full crop.
        full_margin: its field of view over the fit crop's.
        mean_points3d: (5, 3) that the alignment uses; :data:`MEAN_FIVE_POINTS` if left out.
        landmarks: 68 points in photo pixels, as :func:`~facerecon.perception.corrections.read_landmarks` takes them.
            They replace the detected ones and choose the face: no detector runs.
        mask: image of the photo's size, white where its face may be used, as
            :func:`~facerecon.perception.corrections.read_mask` takes it; replaces the segmented one.
        attributes: also measure expression, age and gender, which no fit uses.

    Returns:
        Observation of batch 1, or of one entry a face for ``"all"``.

    Raises:
        NoFaceError: no face is found.
        InputError: the file cannot be used, the face is too small, there are fewer faces than the index asks for, or
            landmarks or mask do not fit the photo.
        ConfigError: ``face`` is something else, or ``"all"`` together with landmarks or a mask, which belong to one
            face.
    """
    if not (face in ("largest", "all") or (isinstance(face, int) and not isinstance(face, bool) and face >= 0)):
        raise ConfigError(f"face must be 'largest', 'all' or an index >= 0; got {face!r}.")
    if face == "all" and not (landmarks is None and mask is None):
        raise ConfigError("landmarks and mask belong to one face; got face='all'. Use 'largest' or an index.")
    name = str(source) if isinstance(source, str | os.PathLike) else "the photo"
    source = read_open_file(source)
    loaded = _loaded(source)
    if min(loaded.size) < _SMALLEST_PHOTO:
        raise InputError(
            f"{name} is {loaded.size[1]} x {loaded.size[0]} px; a photo needs at least {_SMALLEST_PHOTO} px a side. "
            "Use a larger copy."
        )
    points = MEAN_FIVE_POINTS if mean_points3d is None else mean_points3d.detach().cpu().float()
    with torch.no_grad(), one_thread():
        found = _chosen(source, loaded, name, face, landmarks)
        area = None if mask is None else read_mask(mask, loaded.size)
        if area is not None and area.shape[-2:] != loaded.image.shape[-2:]:
            area = F.interpolate(area[None], size=loaded.image.shape[-2:], mode="bilinear", antialias=True)[0]
        measured = [
            _measure(item, name, crop_size, full_size, full_margin, points, area, loaded.size) for item in found
        ]
        observation = Observation.cat([_with_attributes(one) if attributes else one for one in measured])
        return observation if loaded.scale == 1 else _in_file_pixels(observation, loaded)


def _chosen(source: Any, loaded: LoadedImage, name: str, face: str | int, landmarks: Any) -> list[_Face]:
    """The faces of a photo that are asked for and large enough; warns of a turned photo and of small faces."""
    closer = _closer(source, loaded)
    if landmarks is not None:
        found, face = [_given(landmarks, loaded, closer)], "largest"
    else:
        found = _find(loaded, closer, face == "largest")
    if not found:
        raise NoFaceError(
            f"{name}: no face found; use a photo with a visible, roughly upright face, or give landmarks=."
        )
    if turn := 90 * found[0].view.turn:
        warnings.warn(f"{name}: its face is not upright; turned by {turn} degrees clockwise it is.", stacklevel=4)
    if isinstance(face, int):
        if face >= len(found):
            raise InputError(f"{name}: face={face} does not exist, {len(found)} face(s) were found; count from 0.")
        found = [found[face]]
    large = [item for item in found if item.detection.side >= _SMALLEST_FACE]
    if not large:
        raise InputError(
            f"{name}: the face is only {found[0].detection.side:.0f} px wide, at least {_SMALLEST_FACE} px are needed; "
            "use a larger copy of the photo."
        )
    small = min(item.detection.side for item in large)
    if small < _SMALL_FACE:
        warnings.warn(f"{name}: the face is only {small:.0f} px wide; expect little detail.", stacklevel=4)
    return large


def _with_attributes(photo: Observation) -> Observation:
    """An observation of batch 1 with expression, age and gender."""
    age, male = load_age_gender()(photo.image, photo.landmarks68)
    return photo.replace(expression=load_expression()(photo.image, photo.landmarks68), age=age, male=male)


def _loaded(source: Any) -> LoadedImage:
    """A photo, reduced where it is large; a long strip (a screenshot) only as far as its short side allows."""
    loaded = load_image(source)
    if loaded.scale == 1 or min(loaded.image.shape[-2:]) >= _STRIP:
        return loaded
    short, long = sorted(loaded.size)
    factor = min(1.0, 4 * _STRIP / short, math.sqrt(_STRIP_PIXELS / (short * long)))
    return load_image(source, max_side=round(long * factor))


def _in_file_pixels(photo: Observation, loaded: LoadedImage) -> Observation:
    """An observation in pixels of a reduced photo -> in those of its file."""
    height, width = loaded.image.shape[-2:]
    grow = photo.box.new_tensor([loaded.size[1] / width, loaded.size[0] / height])
    fit, full = (crop.replace(to_photo=crop.to_photo * grow[:, None]) for crop in (photo.fit, photo.full))
    return photo.replace(box=photo.box * grow.repeat(2), fit=fit, full=full)


@dataclass(frozen=True)
class _View:
    """The photo, or the part of it around a face that is small in it, with more pixels; turned upright."""

    image: Tensor  # (3, h, w)
    zoom: float = 1.0  # its pixels per photo pixel
    left: float = 0.0  # photo pixels of its corner, before it was turned
    top: float = 0.0
    turn: int = 0  # quarter turns, clockwise, from the photo to the image

    def turned(self, turn: int) -> _View:
        """This view, which is not turned yet, turned clockwise by quarters."""
        return replace(self, image=torch.rot90(self.image, -turn, (1, 2)), turn=turn) if turn else self

    def seen(self, detection: Detection) -> Detection:
        """A detection in photo pixels -> in pixels of the view."""
        from_photo = invert_affine(self.to_photo(torch.eye(2, 3, dtype=torch.float64)[None]))
        return Detection(_mapped(from_photo, detection.box), detection.score)

    def to_photo(self, transform: Tensor) -> Tensor:
        """An affine map (B, 2, 3) into the view -> into the photo."""
        if self.turn:
            transform = _turned_back(transform, self.turn, tuple(self.image.shape[-2:]))
        return transform / self.zoom + transform.new_tensor([[0, 0, self.left], [0, 0, self.top]])


def _turned_back(transform: Tensor, turn: int, size: tuple[int, int]) -> Tensor:
    """An affine map (B, 2, 3) into an image of ``size`` (h, w) -> into what it was before that many quarter turns."""
    height, width = size
    back = {1: [[0, 1, 0], [-1, 0, width]], 2: [[-1, 0, width], [0, -1, height]], 3: [[0, -1, height], [1, 0, 0]]}
    matrix = transform.new_tensor(back[turn])
    return torch.cat([matrix[:, :2] @ transform[:, :, :2], matrix[:, :2] @ transform[:, :, 2:] + matrix[:, 2:]], -1)


def _mapped(transform: Tensor, box: tuple[float, ...]) -> tuple[float, ...]:
    """The box (x0, y0, x1, y1) of a box's corners through an affine map (1, 2, 3)."""
    corners = map_points(transform, transform.new_tensor(box).view(1, 2, 2))[0]
    return (*corners.amin(0).tolist(), *corners.amax(0).tolist())


@dataclass(frozen=True)
class _Face:
    """A face that was found; everything in pixels of the view."""

    view: _View
    detection: Detection
    landmarks: Tensor  # (1, 68, 2)
    mesh: Tensor  # (1, 478, 3)
    sure: bool = True  # whether what was measured on it goes together


def _closer(source: Any, loaded: LoadedImage) -> Callable[[Detection], tuple[_View, Detection]]:
    """A function that gives a face's best view, turned clockwise by quarters, and its detection there: where the photo
    was reduced and the face is small, the part around it at the file's own resolution."""
    whole = _View(loaded.image)
    height, width = loaded.image.shape[-2:]
    regions = open_regions(source)

    def view(detection: Detection, turn: int = 0) -> tuple[_View, Detection]:
        seen = upright(detection).turned(turn)
        return seen, seen.seen(detection)

    def upright(detection: Detection) -> _View:
        zoom = min(_ENOUGH / max(detection.side, 1.0), 1 / loaded.scale)
        if zoom < 1.1:
            return whole
        x0, y0, x1, y1 = detection.box
        reach, x, y = _AROUND * detection.side, (x0 + x1) / 2, (y0 + y1) / 2
        box = ((x - reach) / width, (y - reach) / height, (x + reach) / width, (y + reach) / height)
        image, found = regions(box, round(2 * reach * zoom))
        left, top = found[0] * width, found[1] * height
        return _View(image, image.shape[-1] / (found[2] * width - left), left, top)

    return view


_TURNS = (0, 1, 3, 2)  # quarter turns, in the order in which they are tried


def _find(loaded: LoadedImage, closer: Callable, largest: bool) -> list[_Face]:
    """The faces of a photo, largest first; of the photo turned by quarters where it shows none to be trusted as it is.

    A turn with a face of which the detector is sure, too, is taken at once: upside down, a chin may pass for a nose.
    ``largest``: one is enough, the largest to be trusted, else the largest; the others are then not measured.
    """
    tried: list[list[_Face]] = []
    for turn in _TURNS:
        image = torch.rot90(loaded.image, -turn, (1, 2))
        whole, faces, clear = _View(image, turn=turn), [], False
        for detection in load_detector()(image):
            in_photo = Detection(_mapped(whole.to_photo(torch.eye(2, 3)[None]), detection.box), detection.score)
            face = _shaped(*closer(in_photo, turn), confirm=loaded.scale < 1)
            faces += [] if face is None else [face]
            clear |= face is not None and face.sure and detection.score >= _CLEAR
            if largest and clear:
                break
        tried.append(faces)
        if clear:
            break
    chosen = tried[-1] if clear else next((faces for faces in tried if any(face.sure for face in faces)), tried[0])
    return sorted(chosen, key=lambda face: not face.sure)[:1] if largest else chosen


def _shaped(view: _View, detection: Detection, confirm: bool) -> _Face | None:
    """A detection with its 68 landmarks and 478 mesh points, in pixels of the view; None without a face.
    ``confirm``: look for it once more where the view is closer than the one in which it was found."""
    if confirm and view.zoom > 1 and not load_detector().confirm(view.image, detection):
        return None
    photo = view.image[None]
    box = torch.tensor([detection.box])
    mesh, score = load_facemesh()(photo, box)
    if score.item() < _MESH_SCORE:
        return None
    landmarks = load_landmarks68()(photo, box)
    center, reach = landmarks.mean(1), (landmarks.amax(1) - landmarks.amin(1)).amax(1)
    if (mesh[..., :2].mean(1) - center).norm(dim=1).item() > 0.35 * reach.item():  # it lost the face: measure it again
        mesh, _ = load_facemesh()(photo, landmark_box(landmarks))
    fused = fused_landmarks(landmarks, mesh)
    sure = disagreement(fused, mesh).item() <= MOST_APART and abs(eye_angle(landmarks).item()) < _LEANING
    return _Face(view, detection, fused, mesh, sure)


def _given(landmarks: Any, loaded: LoadedImage, closer: Callable) -> _Face:
    """The face that the user's landmarks mark."""
    name = Path(landmarks).name if isinstance(landmarks, str | Path) else "landmarks"
    points = read_landmarks(landmarks)
    check_landmarks(points, loaded.size, name)
    points = points[None] * loaded.scale
    view, _ = closer(Detection(tuple(landmark_box(points)[0].tolist()), 1.0))
    points = (points - points.new_tensor([view.left, view.top])) * view.zoom
    box = landmark_box(points)
    mesh, _ = load_facemesh()(view.image[None], box)
    return _Face(view, Detection(tuple(box[0].tolist()), 1.0), points, fit_mesh(mesh, points))


def _measure(
    found: _Face,
    name: str,
    size: int,
    full_size: int,
    full_margin: float,
    points3d: Tensor,
    area: Tensor | None,
    photo_size: tuple[int, int],
) -> Observation:
    """Observation of batch 1 of one face; ``area`` (1, H, W), of the whole photo, is the face mask if it is known."""
    view, detection, landmarks, mesh = found.view, found.detection, found.landmarks, found.mesh
    image = view.image
    photo = image[None]
    to_photo = deep3d_crop_transform(landmarks, points3d, size)
    from_photo = invert_affine(to_photo.double()).to(to_photo.dtype)
    fit_landmarks = map_points(from_photo, landmarks)
    scale = from_photo[:, 0, 0][:, None, None]
    fit_mesh = torch.cat([map_points(from_photo, mesh[..., :2]), mesh[..., 2:] * scale], -1)

    # the full crop: same center, wider, and no more pixels than asked for
    ratio = size * full_margin / full_size
    grow = torch.eye(3)[None] * ratio
    grow[:, :2, 2] = (size - size * full_margin) / 2
    grow[:, 2, 2] = 1
    full_to_photo = to_photo @ grow
    full_image = crop_affine(photo, full_to_photo, full_size)
    valid = crop_valid(tuple(image.shape[-2:]), full_to_photo, full_size)
    into_full = invert_affine(full_to_photo.double()).to(full_to_photo.dtype)
    full_mesh = map_points(into_full, mesh[..., :2])
    face = None
    if area is not None:
        face = crop_affine(area[None], view.to_photo(full_to_photo), full_size, padding="zeros")
        if face.mean() < 0.002:
            raise InputError(f"{name}: the mask is black where the face is; white marks the face that may be used.")
    masks = load_parser()(full_image, full_mesh, face)
    full_masks = torch.cat([masks.face, masks.skin, masks.eye, masks.mouth, masks.lip], 1) * valid
    full = Crop(full_image, view.to_photo(full_to_photo), valid, *full_masks.split(1, 1), masks.classes)

    # the fit crop sees the middle of the full one
    to_full = torch.linalg.inv(grow)[:, :2].clone()
    fit_masks = crop_affine(full_masks, to_full, size, padding="zeros")
    fit_image = crop_affine(photo, to_photo, size)
    fit_valid = crop_valid(tuple(image.shape[-2:]), to_photo, size)
    at = ((torch.arange(size) + 0.5) * to_full[0, 0, 0] + to_full[0, 0, 2]).long().clamp(0, full_size - 1)
    fit_classes = masks.classes[:, :, at[:, None], at]
    fit = Crop(fit_image, view.to_photo(to_photo), fit_valid, *(fit_masks * fit_valid).split(1, 1), fit_classes)

    return Observation(
        fit=fit,
        full=full,
        landmarks68=fit_landmarks,
        mesh468=fit_mesh[:, :468],
        box=torch.tensor([_mapped(view.to_photo(torch.eye(2, 3)[None]), detection.box)]),
        score=torch.tensor([detection.score]),
        identity=load_identity()(fit_image, fit_landmarks),
        eval_identity=load_eval_identity()(fit_image, fit_landmarks),
        tone=estimate_tone(full, fit, fit_landmarks),
        irises=find_irises(fit_mesh),
        expression_scores=load_expression_scores()(fit_mesh),
        path=(name,),
        photo_size=(photo_size,),
        mask_given=(area is not None,),
        turned=(90 * view.turn,),
    )
