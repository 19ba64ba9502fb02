"""Heads of nothing are marked, by whatever else is in the batch, and heads of faces are not."""

from __future__ import annotations

import json
import types
from pathlib import Path

import pytest
import torch

from facerecon.fitting import Fitter
from facerecon.fitting.trust import find_suspects, flatness, unlike
from facerecon.imaging.files import read_image
from facerecon.morphable import load_face_model
from facerecon.perception import observe
from facerecon.perception.facemesh import EYES_AND_MOUTH, disagreement, fused_landmarks
from facerecon.render import Renderer
from facerecon.stylegan.load import load_decoder
from facerecon.types import Camera, Observation

SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "astronaut.jpg"


@pytest.fixture(scope="module")
def fitter(fit_models) -> Fitter:
    return Fitter(load_face_model("makehuman", num_identity=20), load_decoder("linear"), Renderer(224))


@pytest.fixture(scope="module")
def faces(fitter) -> Observation:
    """The sample photo; in two levels a channel; and with a sheet over the half on the right."""
    photo = read_image(SAMPLE)
    seen = observe(photo)
    nose = seen.landmarks68[:, 30] @ seen.fit.to_photo[0, :, :2].mT + seen.fit.to_photo[:, :, 2]
    right = torch.arange(512) > nose[0, 0]
    return Observation.cat([seen, observe(two_levels(photo)), observe(torch.where(right, 0.3, photo))])


def two_levels(image: torch.Tensor) -> torch.Tensor:
    return torch.where(image >= 0.5, 0.5, 0.0)


def initialized(fitter: Fitter, photo: Observation) -> dict[int, str]:
    return fitter.initialize(photo).suspect


def test_what_is_no_face_is_marked_and_a_face_is_not(fitter, faces) -> None:
    found = initialized(fitter, faces)
    assert sorted(found) == [1, 2]
    assert "as if drawn" in found[1] or "two networks" in found[1]  # the nets nearly part there, too
    assert "two networks put eyes and mouth" in found[2]


def test_the_mark_does_not_depend_on_the_batch(fitter, faces) -> None:
    together = initialized(fitter, faces[torch.tensor([2, 0, 1, 2])])
    assert sorted(together) == [0, 2, 3] and together[0] == together[3]
    for i, place in ((1, 2), (2, 0)):
        alone = initialized(fitter, faces[i])
        assert alone[0].split(" %")[0][:-2] == together[place].split(" %")[0][:-2]  # but for the figure's last digit


def test_an_observation_of_an_older_file_is_judged_as_well(fitter, faces, tmp_path) -> None:
    faces.replace(turned=(), mask_given=()).save(tmp_path / "old.safetensors")
    old = Observation.load(tmp_path / "old.safetensors")
    assert old.turned == () and sorted(initialized(fitter, old[torch.tensor([1, 0])])) == [0]


def test_each_reason_is_found_on_its_own(fitter, faces) -> None:
    good, camera = faces[0], Camera.deep3d()
    start = fitter.initialize(good)
    params = start.params
    view, _ = fitter.objective.prepare(params, camera)
    render = view.shade(fitter.objective.albedo(params, start.latent)).surface

    def why(photo: Observation, drawn: torch.Tensor = render) -> str:
        return find_suspects(fitter.model, photo, params, camera, drawn, view.rendering.mask).get(0, "")

    assert why(good) == ""
    extent = (good.landmarks68.amax(1) - good.landmarks68.amin(1)).amax()
    assert "two networks" in why(good.replace(mesh468=good.mesh468 + 0.06 * extent))
    assert "misses its landmarks by 1" in why(good.replace(landmarks68=good.landmarks68 + 9, mesh468=good.mesh468 + 9))
    part = good.replace(fit=good.fit.replace(skin_mask=good.skin_mask * (torch.arange(224) < 90)))
    assert "seen as skin" in why(part) and why(part.replace(mask_given=(True,))) == ""
    assert "seen as skin" in why(good.replace(fit=good.fit.replace(image=(100 * good.image).clamp(max=1))))
    no_lips = good.replace(fit=good.fit.replace(classes=good.fit.classes.clamp(max=1)))
    assert "no mouth" in why(no_lips) and why(good.replace(fit=good.fit.replace(classes=None))) == ""
    assert "as if drawn" in why(good.replace(fit=good.fit.replace(image=two_levels(good.image))))
    assert "not a head's" in why(good, render.flip(-2))


def test_disagreement_is_the_distance_before_they_were_fused() -> None:
    generator = torch.Generator().manual_seed(0)
    mesh = 100 * torch.rand(3, 468, 3, generator=generator)
    landmarks = 100 * torch.rand(3, 68, 2, generator=generator)
    landmarks[:, 0], landmarks[:, 8] = 0, 100  # the extent is 100 px
    landmarks[:, 36:] = mesh[:, list(EYES_AND_MOUTH), :2] + torch.tensor([3.0, 4.0])
    landmarks[1, 36:] -= torch.tensor([3.0, 4.0])
    found = disagreement(fused_landmarks(landmarks.clamp(0, 100), mesh), mesh)
    assert found[1] < 1e-6
    free = (landmarks[:, 36:] <= 100).all(-1).all(-1)
    expected = (landmarks.clamp(0, 100)[:, 36:] - mesh[:, list(EYES_AND_MOUTH), :2]).norm(dim=-1).mean(1) / 100
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert not free.all() or found[0] == pytest.approx(0.05, abs=1e-5)


def test_flatness_of_what_is_known() -> None:
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    steps = (ramp * 3.99).floor() / 3  # all change on 3 of 63 columns
    skin = torch.ones(1, 64, 64, dtype=torch.bool)
    for image, expected in ((ramp, 0.0), (0.2 * ramp, 0.0), (steps, 60 / 63), (torch.zeros_like(ramp), 1.0)):
        assert flatness(image, skin).item() == pytest.approx(expected, abs=1e-4)
    half = torch.cat([0.01 * ramp[:, :, :32], steps[:, :, 32:]], 2)
    above = (torch.arange(64) < 31).view(1, -1, 1).expand(1, 64, 64)
    assert flatness(half, above).item() == 0  # only the skin counts
    assert flatness(ramp, ~skin).item() == 1
    assert flatness(torch.cat([steps, ramp]), skin.expand(2, -1, -1)).tolist() == pytest.approx([60 / 63, 0], abs=1e-4)


def test_unlike_is_the_share_of_the_variance_that_is_left() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, 32, 32, generator=generator).expand(1, 3, 32, 32)
    skin = torch.ones(1, 32, 32, dtype=torch.bool)
    mean = image.mean().expand_as(image)
    cases = ((image, 0.0), (mean, 1.0), ((image + mean) / 2, 0.25), (2 * mean - image, 4.0))
    for render, expected in cases:
        assert unlike(image, render, skin).item() == pytest.approx(expected, abs=1e-4)
        assert unlike(0.1 * image, 0.1 * render, skin).item() == pytest.approx(expected, abs=1e-3)


class _Photo(list):
    """As much of an observation as a job looks at."""

    batch = 1


class _Folder:
    """A run of fit/reconstruct.py without networks: photos a and b, of which the face of b is ``suspect`` or not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, out: Path) -> None:
        import facerecon.fit.models
        import facerecon.fit.person  # imports what is replaced below
        import facerecon.fit.reconstruct
        import facerecon.perception

        self.suspect, self.out, self.script = "", out, facerecon.fit.reconstruct
        self.photos = [folder / "a.jpg", folder / "b.jpg"]
        for photo in self.photos:
            photo.write_bytes(SAMPLE.read_bytes())
        monkeypatch.setattr(facerecon.perception, "observe", lambda *_, **__: _Photo([0]))
        monkeypatch.setattr(facerecon.perception, "load_eval_identity", torch.nn.Identity)
        monkeypatch.setattr(
            facerecon.fit.models, "build_fitter", lambda *_: types.SimpleNamespace(decoder=load_decoder("linear"))
        )
        monkeypatch.setattr(facerecon.fit.reconstruct, "reconstruct", self.fit)

    def fit(self, job, photos: list, items: list) -> tuple[list[dict], dict]:
        rows = [{"item": item.name, "path": str(item.path), "settings": job.settings[item.path]} for item in items]
        for row in rows:
            if row["item"] == "b" and self.suspect:
                row["suspect"] = self.suspect
        return rows, {}

    def run(self, *overrides: str) -> int:
        from facerecon.configs.compose import compose

        config = compose("reconstruct", [f"img={self.photos[0].parent}", f"out={self.out}", "device=cpu", *overrides])
        return self.script.main(config)

    def failures(self) -> list[dict]:
        path = self.out / "failures.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_suspect_face_is_a_line_of_failures_and_the_status(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "photos").mkdir()
    folder = _Folder(monkeypatch, tmp_path / "photos", tmp_path / "out")
    folder.suspect = "two networks do not agree"
    line = {"item": "b", "kind": "suspect", "message": "b is suspect: two networks do not agree"}
    assert folder.run() == 1 and folder.failures() == [line]
    assert "suspect: b is suspect: two networks do not agree" in capsys.readouterr().err
    assert "two networks do not agree" in (folder.out / "index.html").read_text()
    assert folder.run() == 1  # nothing to do, and still no success
    assert "nothing to do" in capsys.readouterr().out and folder.failures() == [line]
    folder.suspect = ""
    assert folder.run("resume=false") == 0 and folder.failures() == []
    assert folder.run() == 0
