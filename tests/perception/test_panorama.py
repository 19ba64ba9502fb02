"""A 12,000 px panorama: its small faces are found and read at full resolution, in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageFilter

from facerecon.imaging.files import load_image, open_regions

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "samples" / "astronaut.jpg"
PLACES = ((3000, 3500), (8000, 2800))

LOOK = r"""
import json, re, sys, torch
from facerecon.perception import observe
photos, alone = observe(sys.argv[1], face="all"), observe(sys.argv[2])
try:  # ru_maxrss would count the process that started this one
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1])
except OSError:
    peak = 0
print(json.dumps({
    "gigabytes": peak / 1e6,
    "size": photos.photo_size[0], "boxes": photos.box.tolist(), "alone": alone.box.tolist()[0],
    "same_person": (photos.eval_identity @ alone.eval_identity[0]).tolist(),
    "crop": (photos.full.image - alone.full.image).abs().mean((1, 2, 3)).tolist(),
}))
"""


@pytest.fixture(scope="module")
def panorama(tmp_path_factory, observe_models) -> Path:
    path = tmp_path_factory.mktemp("panorama") / "beach.jpg"
    with Image.open(SAMPLE) as person:
        backdrop = person.resize((60, 30)).filter(ImageFilter.GaussianBlur(6)).resize((12000, 6000))
        for place in PLACES:
            backdrop.paste(person, place)
    backdrop.save(path, quality=90)
    return path


def test_small_faces_of_a_panorama(panorama) -> None:
    run = subprocess.run(
        [sys.executable, "-c", LOOK, str(panorama), str(SAMPLE)], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["size"] == [6000, 12000] and len(found["boxes"]) == 2
    alone = torch.tensor(found["alone"])
    for box, (x, y) in zip(sorted(found["boxes"]), PLACES):
        expected = alone + torch.tensor([x, y, x, y])
        assert (torch.tensor(box) - expected).abs().max() < 36  # px of the file, in which the face has 130
    # as much is seen of it as in the photo that was pasted in
    assert min(found["same_person"]) > 0.95
    assert max(found["crop"]) < 0.03
    assert found["gigabytes"] < 2.5


@pytest.mark.parametrize("orientation", [1, 6])
def test_regions_are_parts_of_the_upright_photo(tmp_path, orientation) -> None:
    path = tmp_path / "photo.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(SAMPLE) as image:
        image.crop((0, 0, 500, 400)).save(path, exif=exif)
    whole = load_image(path).image
    height, width = whole.shape[-2:]
    part, box = open_regions(path)((0.25, 0.5, 0.75, 0.9), 10_000)
    assert box == (0.25, 0.5, 0.75, 0.9)
    rows, columns = slice(round(0.5 * height), round(0.9 * height)), slice(round(0.25 * width), round(0.75 * width))
    assert torch.equal(part, whole[:, rows, columns])
    part, box = open_regions(path)((-3.0, 0.5, 4.0, 8.0), 50)
    assert box == (0.0, 0.5, 1.0, 1.0) and max(part.shape) == 50


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_regions_read_every_mode_as_the_whole_is_read(tmp_path, mode) -> None:
    path = tmp_path / ("photo.tif" if mode in ("CMYK", "I;16") else "photo.png")
    with Image.open(SAMPLE) as image:
        image = image.crop((0, 0, 128, 128))
        image = image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode)
        image.save(path)
    part, _ = open_regions(path)((0.0, 0.0, 0.5, 0.5), 1000)
    assert torch.allclose(part, load_image(path).image[:, :64, :64], atol=1e-6)
