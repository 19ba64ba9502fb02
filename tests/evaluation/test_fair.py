"""A folder of pictures with their true tones."""

import pytest
import torch

from facerecon.errors import InputError
from facerecon.evaluation.fair import FairFolder
from facerecon.imaging.files import write_png
from facerecon.perception.skin_tone import skin_tone


def written(folder, text: str):
    for name in ("scene_0/0", "scene_0/1"):
        write_png(folder / "crops" / f"{name}.png", torch.rand(3, 8, 8))
    (folder / "truth.csv").write_text(text)
    return folder


def test_tones_of_a_table_and_of_maps(tmp_path) -> None:
    color = torch.tensor([0.6, 0.45, 0.35])
    albedo = torch.rand(3, 16, 12)
    albedo[:, :8] = color[:, None, None]
    skin = torch.zeros(3, 16, 12)
    skin[:, :7] = 1
    write_png(tmp_path / "maps" / "1.png", albedo)
    write_png(tmp_path / "skin.png", skin)
    table = "image,ita,albedo,skin\ncrops/scene_0/0.png,41.25,,\ncrops/scene_0/1.png,,maps/1.png,skin.png\n"
    pictures = FairFolder(written(tmp_path, table)).pictures
    assert list(pictures) == ["crops_scene_0_0", "crops_scene_0_1"]
    first, second = pictures.values()
    assert first.truth() == 41.25 and first.path == tmp_path / "crops" / "scene_0" / "0.png"
    assert second.truth() == pytest.approx(skin_tone((color * 255).round()[None] / 255).item(), abs=1e-3)
    write_png(tmp_path / "skin.png", skin[:, :8])
    with pytest.raises(InputError, match="mask of the size"):
        second.truth()


@pytest.mark.parametrize(
    "text, message",
    [
        ("image,ita\n", "names no picture"),
        ("path,tone\na,1\n", "line 2: expected image and ita"),
        ("image,ita\ncrops/scene_0/9.png,3\n", "9.png does not exist"),
        ("image,ita\ncrops/scene_0/0.png,light\n", "number of degrees"),
        ("image,ita\ncrops/scene_0/0.png,120\n", "number of degrees"),
        ("image,albedo\ncrops/scene_0/0.png,a.png\n", "line 2"),
    ],
)
def test_a_table_that_does_not_fit_says_so(tmp_path, text, message) -> None:
    with pytest.raises(InputError, match=message):
        FairFolder(written(tmp_path, text))


def test_no_table(tmp_path) -> None:
    with pytest.raises(InputError, match=r"truth\.csv cannot be read"):
        FairFolder(tmp_path)
