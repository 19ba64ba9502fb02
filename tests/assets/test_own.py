"""Models that users bring: converted from their own file, never fetched."""

from __future__ import annotations

from pathlib import Path

import pytest

from facerecon import assets
from facerecon.assets.__main__ import main
from facerecon.errors import AssetError
from facerecon.morphable import load_face_model


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FACERECON_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_converted_once_then_found(home: Path, reference: Path, capsys) -> None:
    source = reference / "ict" / "ict_facekit_light.npz"
    with pytest.raises(AssetError, match=r"git clone .*; then run: python -m facerecon\.assets convert ict PATH"):
        load_face_model("ict")
    assert main(["convert", "ict", str(source)]) == 0
    assert assets.locate("ict") == Path(capsys.readouterr().out.split()[-1])
    model, direct = load_face_model("ict"), load_face_model("ict", path=source)
    assert model.expression_names == direct.expression_names and model.num_identity == 100
    assert (model.mean == direct.mean).all() and (model.topology.faces == direct.topology.faces).all()
    largest = direct.identity_basis.abs().max()
    assert (model.identity_basis - direct.identity_basis).abs().max() < 1e-3 * largest  # half precision
    assert main(["list", "ict"]) == 0
    assert "ready" in capsys.readouterr().out
    with pytest.raises(AssetError, match="head model 'ict', not 'hifi3dpp'"):
        load_face_model("hifi3dpp", path=assets.locate("ict"))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["fetch", "hifi3dpp"], "is in no package registry. Get it: ask its authors"),
        (["convert", "hifi3dpp"], "give the file or folder"),
        (["convert", "ict", "nowhere"], "nowhere does not exist. Get it: git clone"),
        (["verify", "ict"], "ict is not in the cache"),
    ],
)
def test_what_cannot_be_done_is_one_line(home: Path, arguments, words, capsys) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_wrong_file_leaves_the_cache_as_it_was(home: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "model.mat").write_text("nothing of the kind")
    assert main(["convert", "hifi3dpp", str(tmp_path / "model.mat")]) == 2
    assert "not a MATLAB 5 file" in capsys.readouterr().err
    assert not list((home / "assets").glob("hifi3dpp*"))


def test_a_derived_file_is_whole_or_not_there(home: Path) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        assets.derived("table", "1", fail)
    assert not list((home / "derived").iterdir())
    path = assets.derived("table", "1", lambda target: target.write_bytes(b"whole"))
    assert path.read_bytes() == b"whole" and path.parent == home / "derived"
    assert assets.derived("table", "1", fail) == path


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-1] + b"E", lambda data: b""])
def test_a_derived_file_that_was_altered_is_made_again_with_one_warning(home: Path, damage) -> None:
    path = assets.derived("table", "1", lambda target: target.write_bytes(b"whole"))
    other = assets.derived("table", "2", lambda target: target.write_bytes(b"other"))
    path.write_bytes(damage(b"whole"))
    with pytest.warns(UserWarning, match=r"was altered or damaged.*made again") as said:
        again = assets.derived("table", "1", lambda target: target.write_bytes(b"WHOLE"))
    assert len(said) == 1 and "\n" not in str(said[0].message)
    assert again.read_bytes() == b"WHOLE" and sorted((home / "derived").iterdir()) == sorted([again, other])
