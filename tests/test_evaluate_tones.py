"""The part of fit/evaluate.py on albedo: what is asked of fits, and what comes of their numbers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from facerecon.configs.compose import compose
from facerecon.dataset import face_layout
from facerecon.dataset.tone_subjects import ToneSubjects, held_out_tones
from facerecon.errors import NoFaceError
from facerecon.fit import evaluation_tones as tones
from facerecon.fit.evaluate import Sweep
from facerecon.fit.evaluation_report import write_evaluation
from facerecon.morphable import load_face_model
from facerecon.perception.skin_tone import skin_tone
from facerecon.run import RunDirectory
from facerecon.synthetic.toned_heads import TonedHeads
from facerecon.types import SHLight

COLORS = {"dark": (0.3, 0.2, 0.16), "brown": (0.5, 0.36, 0.28), "tan": (0.62, 0.46, 0.36),
          "intermediate": (0.7, 0.54, 0.44), "light": (0.76, 0.6, 0.5), "very light": (0.85, 0.7, 0.6)}  # fmt: skip


SMALL = ("parts=[tone]", "tones=6", "pictures=2", "faces=2", "presets=[smoke]")


def sweep(folder: Path, *overrides: str) -> Sweep:
    made = Sweep(compose("evaluate", [f"out={folder}", *overrides]), RunDirectory(folder, {"script": "evaluate"}))
    made.bar = SimpleNamespace(update=lambda count: None, set_postfix_str=lambda text: None, write=lambda *a, **k: None)
    return made


def subjects(seeds: list[int]) -> ToneSubjects:
    of = {seed: group for group, members in held_out_tones().items() for seed in members}
    colors = torch.tensor([COLORS[of[seed]] for seed in seeds])
    maps = (colors[:, :, None, None].expand(-1, 3, 64, 64) * 255).round().to(torch.uint8)
    return ToneSubjects(tuple(seeds), tuple(of[s] for s in seeds), maps, torch.zeros(len(seeds), 160),
                        skin_tone(colors), colors.log())  # fmt: skip


def face_of(texture: torch.Tensor) -> SimpleNamespace:
    size = texture.shape[-1]
    visible = torch.ones(1, 1, size, size)
    visible[..., size // 2 :] = 0
    light = SHLight.ambient(1)
    return SimpleNamespace(texture=texture, visibility=visible, params=SimpleNamespace(light=light))


def fit(image: torch.Tensor, callback: object) -> SimpleNamespace:
    """Everybody has the color of the middle of the photo."""
    color = image[:, 28:36, 28:36].flatten(1).median(1).values
    return SimpleNamespace(face=face_of(color[None, :, None, None].expand(1, 3, 64, 64)))


@pytest.fixture(scope="module")
def faked(asset):
    """Small heads of one color each, two gray portraits, and fits that observe nothing."""
    asset("makehuman")
    faces = [(seed, torch.full((3, 64, 64), level)) for seed, level in ((7, 0.5), (8, 0.7))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tones, "load_tone_subjects", subjects)
        patch.setattr(tones, "TonedHeads", partial(TonedHeads, size=64))
        patch.setattr(tones, "held_out_faces", lambda count: iter(faces[:count]))
        patch.setattr(Sweep, "model", load_face_model())
        patch.setattr(Sweep, "observed", lambda self, image: image)
        patch.setattr(Sweep, "fitter", lambda self, *key: fit)
        yield


@pytest.fixture(scope="module")
def ran(faked, tmp_path_factory) -> Sweep:
    one = sweep(tmp_path_factory.mktemp("tones"), *SMALL)
    one.run()
    assert not one.failed
    return one


def test_heads_of_every_group_and_portraits_are_fitted(ran) -> None:
    one = ran
    people = [members[0] for members in held_out_tones().values()]
    names = {f"tone/head/{seed}/{k}" for seed in people for k in (0, 1)} | {f"tone/told/{seed}/0" for seed in people}
    names |= {f"tone/portrait/{seed}/{k}" for seed in (7, 8) for k in (0, 1, 2)}
    assert set(one.done) == names
    facts = one.done[f"tone/head/{people[0]}/1"]
    assert facts["about"]["person"] == people[0]
    assert facts["about"]["tone"] == pytest.approx(skin_tone(torch.tensor([COLORS["dark"]])).item(), abs=1)
    exposures = {one.done[f"tone/head/{people[0]}/{k}"]["about"]["exposure"] for k in (0, 1)}
    assert len(exposures) == 2


def test_who_is_told_the_exposure_errs_by_the_lamps_alone(ran) -> None:
    """These fits take the color of the picture for the albedo: exposure and light color are in their error."""
    errors = {}
    for kind in ("head", "told"):
        found = [facts for name, facts in ran.done.items() if name.startswith(f"tone/{kind}/") and name.endswith("/0")]
        errors[kind] = [(f["metrics"]["texture"], f["metrics"]["ita"] - f["about"]["tone"]) for f in found]
    told, head = (torch.tensor(errors[kind]).abs().mean(0) for kind in ("told", "head"))
    assert told[0] < 0.8 * head[0] and told[1] < head[1]


def test_an_uncorrupted_portrait_is_fitted_as_it_is(ran) -> None:
    gray = skin_tone(torch.full((1, 3), 0.7)).item()
    assert ran.done["tone/portrait/8/0"]["metrics"]["ita"] == pytest.approx(gray, abs=0.1)
    assert abs(ran.done["tone/portrait/8/1"]["metrics"]["ita"] - gray) > 1


def test_a_person_is_the_same_however_many_are_asked_for(ran, tmp_path) -> None:
    fewer = sweep(tmp_path / "fewer", "parts=[tone]", "tones=2", "pictures=1", "faces=0", "presets=[smoke]")
    fewer.run()
    name = f"tone/head/{held_out_tones()['brown'][0]}/0"
    assert fewer.done[name]["metrics"] == pytest.approx(ran.done[name]["metrics"], abs=1e-3)


def test_a_head_without_a_face_is_a_line_of_the_report(faked, tmp_path, monkeypatch) -> None:
    one = sweep(tmp_path, "parts=[tone]", "tones=1", "pictures=1", "faces=1", "presets=[smoke]")

    def refuse(self: Sweep, image: torch.Tensor) -> torch.Tensor:
        raise NoFaceError("no face")

    monkeypatch.setattr(Sweep, "observed", refuse)
    one.run()
    assert set(one.failed.values()) == {"no face"} and len(one.failed) == 4 and not one.done


def test_light_and_seams_of_a_texture(asset) -> None:
    asset("makehuman")
    model, size = load_face_model(), 128
    texture = torch.full((1, 3, size, size), 0.5)
    plain = tones.albedo_metrics(model, face_of(texture))
    assert plain["bs_visible"] != plain["bs_visible"] or plain["bs_visible"] < 0.01  # one half is seen: no pairs
    assert plain["side"] == pytest.approx(1)
    seen = face_of(texture)
    seen.visibility = torch.ones_like(seen.visibility) * face_layout(model, size).face
    ramp = torch.linspace(0.4, 0.6, size).expand(1, 3, size, size)
    lit = face_of(ramp)
    lit.visibility = seen.visibility
    assert tones.albedo_metrics(model, lit)["bs_visible"] > 3 + tones.albedo_metrics(model, seen)["bs_visible"]
    step = face_of(texture - 0.1 * seen.visibility)
    step.visibility = seen.visibility
    assert tones.albedo_metrics(model, step)["seam"] > 3
    coefficients = torch.zeros(1, 9, 3)
    coefficients[:, 0], coefficients[:, 3] = 1.0, -0.3  # from the right
    step.params.light = SHLight(coefficients)
    assert tones.albedo_metrics(model, step)["side"] > 1.3


def test_the_report_has_tones_by_group(tmp_path) -> None:
    one = sweep(tmp_path, *SMALL)
    for seed, (fitted, truth) in {1: (-30.0, -40.0), 2: (24.0, 20.0), 3: (60.0, 60.0)}.items():
        for k, off in ((0, 1.0), (1, -1.0)):
            metrics = {"ita": fitted + off, "bs_visible": 4.0, "seam": 1.5, "side": 1.0 + 0.4 * k, "texture": 0.05}
            one.done[f"tone/head/{seed}/{k}"] = {"metrics": metrics, "about": {"tone": truth, "person": seed}}
        one.done[f"tone/told/{seed}/0"] = {"metrics": {"ita": truth + 2.0}, "about": {"tone": truth, "person": seed}}
        for k, ita in enumerate((fitted, fitted + 3.0, fitted - 3.0)):
            one.done[f"tone/portrait/{seed}/{k}"] = {"metrics": {"ita": ita}, "about": {"person": seed}}
    one.done["fair/a"] = {"metrics": {"ita": 20.0}, "about": {"tone": 25.0}}
    assert write_evaluation(one) == 0
    text = (Path(one.folder.path) / "evaluate.md").read_text()
    for line in (
        "| rendered heads of known albedo | 5.0 (2.0 to 8.0) | 10.0 (",
        " | +4.7 (+1.3 to +8.0) | 1.4 | 0.96 (",
        "first picture of each, exposure and light color told | 2.0 (2.0 to 2.0) | 2.0 (2.0 to 2.0) | 0.0 (0.0 to 0.0)",
        "| generated portraits as other cameras would take them |  |  |  |  | 4.2 | 0.96 |",
        "| FAIR | 5.0 | 5.0 |",
        "*published: HUST* | *11.2* |",
        "rendered heads of known albedo: dark, n = 2 10.0, tan, n = 2 4.0, very light, n = 2 1.0;",
        "rendered heads, n = 6 4.00, rendered heads: in side light, n = 3 4.00](albedo.png)",
    ):  # fmt: skip
        assert line in text, f"{line}\n\n{text}"
