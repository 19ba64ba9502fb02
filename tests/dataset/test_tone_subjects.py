"""People of known albedo: who they are, and what is read of their maps."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from facerecon import assets
from facerecon.dataset import Manifest, held_out_tones, load_tone_subjects
from facerecon.errors import InputError
from facerecon.imaging.files import write_png
from facerecon.morphable import load_face_model
from facerecon.perception.skin_tone import TONE_GROUPS, skin_tone, tone_group


def test_ten_people_of_each_group() -> None:
    chosen = held_out_tones()
    manifest = Manifest.load(assets.shipped("open_uv_manifest.safetensors"))
    tones = dict(zip(manifest.seeds.tolist(), manifest.figures["skin_tone"].tolist(), strict=True))
    assert list(chosen) == list(TONE_GROUPS)
    assert len({seed for seeds in chosen.values() for seed in seeds}) == 60
    assert {len(seeds) for seeds in chosen.values()} == {10}
    # groups are by the tone as photographed, the manifest's figures by what the views speak for
    known = [[tones[seed] for seed in seeds if seed in tones] for seeds in chosen.values()]
    assert min(map(len, known)) >= 9
    assert all(np.mean(lighter) > np.mean(darker) + 2 for darker, lighter in pairwise(known))


def test_maps_and_tones_of_a_folder(asset, tmp_path) -> None:
    asset("makehuman")
    color = torch.tensor([153, 115, 89]) / 255
    for number, seed in enumerate((481, 1860)):
        write_png(tmp_path / f"{seed:06d}.png", (color * (1 + number) / 2)[:, None, None].expand(3, 512, 512))
        np.save(tmp_path / f"{seed:06d}.npy", np.full(80, number, np.float32))
    found = load_tone_subjects(tmp_path, 64, [1860, 481])
    assert found.seeds == (1860, 481) and found.groups == ("dark", "brown")
    assert found.maps.shape == (2, 3, 64, 64) and found.maps.dtype == torch.uint8
    assert found.maps[0, :, 5, 5].tolist() == [153, 115, 89]
    assert found.identity[:, 3].tolist() == [1, 0]
    assert found.ita[0].item() == pytest.approx(skin_tone(color[None]).item(), abs=1e-3)
    torch.testing.assert_close(found.log_color[0], color.log(), atol=1e-4, rtol=0)
    with pytest.raises(InputError, match="seed 5 "):
        load_tone_subjects(tmp_path, 64, [5])


@pytest.mark.slow
def test_a_map_that_is_not_there_is_made(asset, tmp_path) -> None:
    for name in ("mobile_stylegan", "makehuman", "facemesh478", "landmarks68", "identity128"):
        asset(name)
    made = load_tone_subjects(tmp_path, seeds=[3250])
    assert (tmp_path / "003250.png").is_file()
    assert made.groups == ("tan",) and tone_group(made.ita.item()) == "tan"
    assert made.identity.shape == (1, load_face_model().num_identity)  # the manifest's are of the head's first edition
