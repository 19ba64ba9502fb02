"""The folders of the FFHQ-UV release: what is whole is converted, what is not is named, a line each."""

from __future__ import annotations

import importlib.util
import os
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image

from facerecon import assets
from facerecon.assets import registry, release
from facerecon.assets.__main__ import main
from facerecon.perception.regressor import Regressor, RegressorConfig, load_regressor, trained_regressor
from facerecon.stylegan.load import decoder_kind, load_decoder
from facerecon.stylegan.released_checkpoints import CroppedDecoder, read_official

TESTS = Path(__file__).resolve().parents[1]


def _module(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


released = _module(TESTS / "released_files.py")
stylegan = _module(TESTS / "stylegan" / "test_released_checkpoints.py")


class Harmful:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def small_regressor() -> dict:
    """A narrow N_enc under the released names."""
    sizes = RegressorConfig("resnet18", 5, 45, 3, width=0.125, face_model="hifi3dpp", decoder="albedo")
    state = {}
    for name, value in Regressor(sizes).state_dict().items():
        for ours, theirs in (
            ("identity", "0"), ("expression", "1.0"), ("texture", "2"), ("angles", "3"), ("light", "4"), ("shift", "5"),
            ("depth", "6"),
        ):  # fmt: skip
            name = name.replace(f"heads.{ours}.", f"final_layers.{theirs}.")
        state[name] = value
    return {"net_recon": state, "opt_00": {"lr": 1e-4}}


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FACERECON_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "FFHQ-UV"
    texgan = stylegan.random_state(stylegan.SMALL)
    models = root / "checkpoints"
    released.save(texgan, models / "texgan_model" / "texgan_ffhq_uv.pth")
    released.save(texgan, models / "texgan_model" / "texgan_cropface630resize1024_ffhq_uv_interpolate.pth")
    released.save(small_regressor(), models / "deep3d_model" / "epoch_latest.pth")
    for name in ("lm_model/68lm_detector.pb", "dlib_model/shape_predictor_68_face_landmarks.dat"):
        (models / name).parent.mkdir(parents=True)
        (models / name).write_bytes(b"a graph")
    topology = root / "topo_assets"
    topology.mkdir()
    for name in ("template_base_uv", "minor_valid_whole_mask", "hair_mask", "nostril_mask"):
        Image.new("RGB", (48, 48), (200, 150, 120)).save(topology / f"{name}.png")
    return root


def test_the_whole_folder(home, folder, same, capsys) -> None:
    assert main(["convert", "ffhq_uv", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "4 converted, 0 could not be, 10 missing" in out
    assert "missing: checkpoints/parsing_model/79999_iter.pth; from github.com/zllrunning" in out
    assert "license: weights for non-commercial research only" in out
    assert "not used: checkpoints/lm_model/68lm_detector.pb: a TensorFlow graph, replaced by ours" in out
    for name in ("ffhq_uv_decoder", "ffhq_uv_decoder_cropface", "ffhq_uv_regressor", "ffhq_uv_topology"):
        assert assets.status(name).state == "ready"
    assert main(["list", "ffhq_uv"]) == 0
    # and they are what was in the files
    decoder = load_decoder("ffhq_uv")
    assert decoder_kind("ffhq_uv") == "stylegan" and decoder.atlas == "hifi3dpp" and decoder.space == "w+"
    direct = read_official(folder / "checkpoints" / "texgan_model" / "texgan_ffhq_uv.pth")
    same(dict(decoder.generator.state_dict()), dict(direct.state_dict()))
    cropped = load_decoder("ffhq_uv_cropface")
    assert isinstance(cropped, CroppedDecoder) and cropped.atlas == "hifi3dpp"
    corner = cropped(torch.randn(1, cropped.rows, cropped.dim))[0, :, 2, 2]
    torch.testing.assert_close(corner, torch.tensor([200.0, 150, 120]) / 255, atol=0.02, rtol=0)
    regressor = load_regressor("hifi3dpp")
    assert trained_regressor("hifi3dpp") == assets.locate("ffhq_uv_regressor")
    assert (regressor.config.identity, regressor.config.expression) == (5, 45)
    released = folder / "checkpoints" / "deep3d_model" / "epoch_latest.pth"
    released_state = torch.load(released, weights_only=True)["net_recon"]
    for ours, theirs in (("backbone.conv1.weight",) * 2, ("heads.light.bias", "final_layers.4.bias")):
        assert torch.equal(regressor.state_dict()[ours], released_state[theirs])


def test_bad_files_are_a_line_each_and_the_rest_goes_on(home, folder, tmp_path, capsys) -> None:
    models = folder / "checkpoints"
    tampered = models / "deep3d_model" / "epoch_latest.pth"
    data = bytearray(tampered.read_bytes())
    data[len(data) // 2] ^= 1  # one bit of a weight
    tampered.write_bytes(data)
    cut = models / "texgan_model" / "texgan_ffhq_uv.pth"
    cut.write_bytes(cut.read_bytes()[:-2000])
    (models / "parsing_model").mkdir()
    mark = tmp_path / "ran"
    torch.save({"a": Harmful(mark)}, models / "parsing_model" / "79999_iter.pth")
    (models / "stylegan_model").mkdir()  # the one file of the release that is a plain pickle
    (models / "stylegan_model" / "stylegan2-ffhq-config-f.pkl").write_bytes(pickle.dumps((0, 0, Harmful(mark)), 4))
    assert main(["convert", "ffhq_uv", str(folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    failed = {line.split(": ")[1].rsplit("/", 1)[-1]: line for line in lines if line.startswith("not converted: ")}
    names = {"epoch_latest.pth", "texgan_ffhq_uv.pth", "79999_iter.pth", "stylegan2-ffhq-config-f.pkl"}
    assert set(failed) == names and sum(line.startswith("not converted: ") for line in lines) == len(names)
    assert "was altered: a checksum in it does not fit" in failed["epoch_latest.pth"]
    assert "is damaged or cut off" in failed["texgan_ffhq_uv.pth"]
    assert "which could run code, so it was not opened" in failed["79999_iter.pth"]
    refused = failed["stylegan2-ffhq-config-f.pkl"]
    assert "system' in it, which could run code" in refused and "reading ended there" in refused
    assert "2 converted, 4 could not be, 8 missing" in lines[-1]
    assert not mark.exists() and assets.status("ffhq_uv_decoder_cropface").state == "ready"
    assert assets.status("ffhq_uv_decoder").state == "missing"


def test_a_file_or_half_of_the_release_will_do(home, folder, capsys) -> None:
    assert main(["convert", "ffhq_uv", str(folder / "checkpoints" / "deep3d_model" / "epoch_latest.pth")]) == 0
    assert "1 converted" in capsys.readouterr().out
    assert main(["convert", "ffhq_uv", str(folder / "topo_assets")]) == 0
    assert "ffhq_uv_topology: " in capsys.readouterr().out
    (folder / "topo_assets" / "hair_mask.png").unlink()
    assert main(["convert", "ffhq_uv", str(folder / "topo_assets")]) == 1
    assert "lacks hair_mask.png" in capsys.readouterr().out


@pytest.mark.parametrize("place, words", [("nowhere", "nowhere does not exist"), (".", "holds no file of the release")])
def test_a_wrong_folder_is_one_line(home, tmp_path, monkeypatch, place, words, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["convert", "ffhq_uv", place]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_every_entry_is_of_the_registry_and_says_where_from() -> None:
    names = [name for one in release.RELEASED for name in one.assets]
    assert sorted(names) == sorted(registry.PACKS["ffhq_uv"])
    for one in release.RELEASED:
        assert one.source and one.license and bool(one.instead) != bool(one.assets)
        assert one.path.startswith(("checkpoints/", "topo_assets/"))
    missing = release.not_converted([])
    assert missing == {}


# -- the hub ---------------------------------------------------------------------------------------------


def hub(monkeypatch, files: dict[str, Path] | None) -> list[str]:
    """Stands for huggingface_hub; without files it has no connection."""
    asked: list[str] = []

    class Api:
        def list_repo_files(self, name, repo_type):
            assert (name, repo_type) == ("csbhr/FFHQ-UV", "dataset")
            if files is None:
                raise ConnectionError("Name or service not known")
            return ["README.md", *files]

    def download(name, path, repo_type, local_dir):
        asked.append(path)
        target = Path(local_dir) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(files[path].read_bytes())

    module = types.ModuleType("huggingface_hub")
    module.HfApi, module.hf_hub_download = Api, download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return asked


def test_what_the_hub_has_is_converted(home, folder, monkeypatch, capsys) -> None:
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    asked = hub(monkeypatch, files)
    assert main(["fetch", "ffhq_uv"]) == 0
    assert "4 converted" in capsys.readouterr().out
    assert "topo_assets/nostril_mask.png" in asked
    assert "checkpoints/lm_model/68lm_detector.pb" not in asked  # what is not used is not downloaded


def test_a_hub_out_of_reach_is_one_line(home, monkeypatch, capsys) -> None:
    hub(monkeypatch, None)
    assert main(["fetch", "ffhq_uv"]) == 2
    error = capsys.readouterr().err
    assert "could not be reached from here, so fetching from it was not tried" in error and error.count("\n") == 1
    hub(monkeypatch, {})
    assert main(["fetch", "ffhq_uv"]) == 2
    assert "holds none of the released model files" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["fetch", "ffhq_uv"]) == 2
    assert "pip install huggingface_hub, or facerecon[hub]" in capsys.readouterr().err
    assert main(["fetch", "ffhq_uv", "sface"]) == 2
    assert "fetch the pack ffhq_uv alone" in capsys.readouterr().err
