"""Head models from where their authors publish them, held against a local server that speaks Range."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from facerecon import assets
from facerecon.assets import download as downloading
from facerecon.assets import registry
from facerecon.assets.__main__ import main
from facerecon.assets.download import download
from facerecon.assets.registry import OwnAsset, RemoteFile
from facerecon.errors import AssetError

HEAD = bytes(range(256)) * 4000  # about 1 MB: several blocks
MARKS = b"1 0.5 2 0.25 3 0.25\n"


class Server:
    """A mirror that knows a few files; ``tell`` are the Range headers it was sent, in order."""

    def __init__(self) -> None:
        self.files = {"/host.org/v1/head.npz": HEAD, "/other.org/marks.txt": MARKS}
        self.ranges: list[str | None] = []
        self.answers: list[int] = []  # status codes to answer with first
        self.breaks: list[int] = []  # bytes after which the next answers break off
        self.knows_ranges, self.redirect = True, ""
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args) -> None:
                pass

            def do_GET(self) -> None:
                outer.ranges.append(self.headers.get("Range"))
                content = outer.files.get(urlsplit(self.path).path)  # a proxy is asked for the whole address
                if outer.answers or content is None:
                    self.send_error(outer.answers.pop(0) if outer.answers else 404)
                    return
                if outer.redirect:
                    self.send_response(302)
                    self.send_header("Location", outer.redirect)
                    self.end_headers()
                    return
                start = 0
                if outer.knows_ranges and outer.ranges[-1]:
                    start = int(outer.ranges[-1].removeprefix("bytes=").removesuffix("-"))
                    if start >= len(content):
                        self.send_error(416)
                        return
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                self.wfile.write(content[start:][: outer.breaks.pop(0) if outer.breaks else None])

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    made = Server()
    monkeypatch.setenv("FACERECON_MIRROR", made.address)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(downloading, "_WAITS", (0.0, 0.0))
    yield made
    made.stop()


def remote(path: str, url: str, content: bytes, known: bool = True) -> RemoteFile:
    return RemoteFile(
        path, url, hashlib.sha256(content).hexdigest() if known else "", len(content) if known else 2_000_000
    )


FILES = (
    remote("head.npz", "https://host.org/v1/head.npz", HEAD),
    remote("marks.txt", "https://other.org/marks.txt", MARKS),
)


def test_files_come_whole_and_are_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    told: list[int] = []
    sums = download(FILES, tmp_path / "new", told.append)
    assert sums == {file.path: file.sha256 for file in FILES}
    assert (tmp_path / "new" / "head.npz").read_bytes() == HEAD
    assert told == sorted(told) and told[-1] == len(HEAD) + len(MARKS) and len(set(told)) > 3
    assert download(FILES, tmp_path / "new", told.append) == sums and len(server.ranges) == 2
    (tmp_path / "new" / "head.npz").write_bytes(HEAD[:-1])  # altered since
    assert download(FILES, tmp_path / "new", told.append) == sums and len(server.ranges) == 3
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["head.npz", "marks.txt"]


def test_what_broke_off_is_continued(server: Server, tmp_path: Path) -> None:
    server.breaks = [700_000, 100_000]
    assert download(FILES[:1], tmp_path, lambda done: None)
    assert server.ranges == [None, "bytes=700000-", "bytes=800000-"]
    assert (tmp_path / "head.npz").read_bytes() == HEAD


def test_what_an_earlier_process_left_is_continued(server: Server, tmp_path: Path) -> None:
    server.breaks = [700_000, 0, 0]
    with pytest.raises(AssetError, match=r"head.npz \(broke off after 700000 of 1024000 bytes\)"):
        download(FILES[:1], tmp_path, lambda done: None)
    assert (tmp_path / "head.npz.part").stat().st_size == 700_000
    server.ranges.clear()
    download(FILES[:1], tmp_path, lambda done: None)
    assert server.ranges == ["bytes=700000-"] and (tmp_path / "head.npz").read_bytes() == HEAD


def test_a_server_without_ranges_sends_all_of_it_again(server: Server, tmp_path: Path) -> None:
    server.knows_ranges, server.breaks = False, [700_000]
    download(FILES[:1], tmp_path, lambda done: None)
    assert server.ranges == [None, "bytes=700000-"] and (tmp_path / "head.npz").read_bytes() == HEAD


@pytest.mark.parametrize("left", [b"x" * 700_000, HEAD + b"more", HEAD[:-1] + b"x"])
def test_another_beginning_is_noticed_and_left_behind(server: Server, tmp_path: Path, left: bytes) -> None:
    (tmp_path / "head.npz.part").write_bytes(left)
    download(FILES[:1], tmp_path, lambda done: None)
    assert (tmp_path / "head.npz").read_bytes() == HEAD


def test_a_file_of_unknown_sum_begins_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / "head.npz.part").write_bytes(b"x" * 100)
    server.breaks = [700_000]
    file = dataclasses.replace(FILES[0], sha256="", limit=2_000_000)
    assert download([file], tmp_path, lambda done: None) == {"head.npz": FILES[0].sha256}
    assert server.ranges == [None, None] and (tmp_path / "head.npz").read_bytes() == HEAD


def test_passing_faults_are_tried_again_refusals_are_not(server: Server, tmp_path: Path) -> None:
    server.answers = [503, 429]
    assert download(FILES[:1], tmp_path / "a", lambda done: None)
    server.answers = [503, 503, 503]
    with pytest.raises(AssetError, match=r"could not download http://.*head.npz \(503 "):
        download(FILES[:1], tmp_path / "b", lambda done: None)
    server.ranges.clear()
    server.answers = [403]
    with pytest.raises(AssetError, match="was refused \\(403 "):
        download(FILES[:1], tmp_path / "b", lambda done: None)
    assert len(server.ranges) == 1


def test_another_content_and_too_much_are_refused(server: Server, tmp_path: Path) -> None:
    server.files["/host.org/v1/head.npz"] = HEAD[:-1] + b"x"
    with pytest.raises(AssetError, match="not the expected file: its sha256"):
        download(FILES[:1], tmp_path, lambda done: None)
    server.files["/host.org/v1/head.npz"] = HEAD + b"x"
    with pytest.raises(AssetError, match=r"sends more than the 1\.0 MB"):
        download(FILES[:1], tmp_path, lambda done: None)
    assert not list(tmp_path.iterdir())


def test_the_proxy_of_the_environment_is_asked(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:  # nobody listens there: only the proxy can answer
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("FACERECON_MIRROR", f"http://127.0.0.1:{closed.getsockname()[1]}")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", server.address)
    assert download(FILES[:1], tmp_path, lambda done: None) and len(server.ranges) == 1


def test_only_https_or_this_machine(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.redirect = "http://example.org/head.npz"
    with pytest.raises(AssetError, match=r"example\.org/head\.npz is not an https address"):
        download(FILES[:1], tmp_path, lambda done: None)
    for address in ("http://example.org", "ftp://127.0.0.1", "mirror.org"):
        monkeypatch.setenv("FACERECON_MIRROR", address)
        with pytest.raises(AssetError, match="FACERECON_MIRROR must be https"):
            download(FILES[:1], tmp_path, lambda done: None)
    assert len(server.ranges) == 1


# -- in the cache ------------------------------------------------------------------------------------

CONVERTER = """
from pretend_converters import _write
def convert(source, target):
    _write(target, (source / "marks.txt").read_text() + str((source / "head.npz").stat().st_size))
def refuse(source, target):
    from facerecon.errors import AssetError
    raise AssetError("identity012.obj has 3 vertices.")
"""


@pytest.fixture
def heads(pretend, server: Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, OwnAsset]:
    """``sure``: all sums known; ``unsure``: none."""
    (pretend.folder / "head_converters.py").write_text(CONVERTER)
    how = "git clone https://host.org/v1"
    made = {
        name: OwnAsset(
            name, "head_converters:convert", 1, "tests", "MIT", "-", how, files, "host.org v1", 1_024_020, 30
        )
        for name, files in (
            ("sure", FILES),
            ("unsure", tuple(dataclasses.replace(file, sha256="", limit=2_000_000) for file in FILES)),
        )
    }
    monkeypatch.setattr(registry, "OWN", made)
    return made


def test_fetched_converted_and_ready(heads, server: Server, pretend, capsys) -> None:
    assert main(["fetch", "sure", "head", "--archives", str(pretend.archives)]) == 2
    assert "sure comes in no archive. Get it: git clone" in capsys.readouterr().err
    assert main(["fetch", "sure", "unsure"]) == 0
    assert "from host.org v1" in capsys.readouterr().out
    path = assets.locate("sure")
    assert path.read_bytes().endswith(MARKS + b"1024000")
    assert assets.status("sure").detail == "" and assets.status("unsure").detail == "source not checked"
    manifest = pretend.manifest()
    assert manifest["unsure"]["files"] == {file.path: file.sha256 for file in FILES}
    assert manifest["sure"]["package"] == "host.org v1"
    assert not (pretend.home / "downloads" / "sure").exists()
    asked = len(server.ranges)
    assert main(["fetch", "sure"]) == 0 and len(server.ranges) == asked  # nothing to do
    assert main(["list", "sure"]) == 0
    assert "its authors" in capsys.readouterr().out


def test_an_interrupted_fetch_goes_on_where_it_was(heads, server: Server, pretend, capsys) -> None:
    server.breaks = [700_000, 0, 0]
    assert main(["fetch", "sure"]) == 2
    error = capsys.readouterr().err
    assert "broke off" in error and error.count("\n") == 1
    assert "Get it: git clone https://host.org/v1; then run: python -m facerecon.assets convert sure PATH" in error
    server.ranges.clear()
    assert main(["fetch", "sure"]) == 0 and server.ranges[0] == "bytes=700000-"


def test_no_connection_is_one_line_with_the_manual_way(heads, pretend, capsys, monkeypatch) -> None:
    with socket.socket() as closed:  # a port where nobody listens
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("FACERECON_MIRROR", f"http://127.0.0.1:{closed.getsockname()[1]}")
    assert main(["fetch", "sure"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "could not download" in error and "refused" in error
    assert "Get it: git clone https://host.org/v1; then run: python -m facerecon.assets convert sure PATH" in error


def test_files_of_unknown_sums_are_held_to_the_first_fetch(heads, server: Server, pretend, capsys) -> None:
    assert main(["fetch", "unsure"]) == 0
    server.files["/other.org/marks.txt"] = b"9 1.0 9 0.0 9 0.0\n"
    assert main(["fetch", "unsure", "--force"]) == 2
    error = capsys.readouterr().err
    assert "marks.txt is not the one of the first fetch" in error and error.count("\n") == 1
    assert assets.locate("unsure").read_bytes().endswith(MARKS + b"1024000")
    assert not (pretend.home / "downloads" / "unsure").exists()
    server.files["/other.org/marks.txt"] = MARKS
    assert main(["fetch", "unsure", "--force"]) == 0


def test_files_that_the_converter_refuses_are_not_kept(heads, server: Server, pretend, capsys) -> None:
    heads["unsure"] = dataclasses.replace(heads["unsure"], converter="head_converters:refuse")
    assert main(["fetch", "unsure"]) == 2
    assert "identity012.obj has 3 vertices" in capsys.readouterr().err
    assert not (pretend.home / "downloads" / "unsure").exists()


def test_downloads_are_kept_where_asked(heads, server: Server, pretend) -> None:
    assert main(["fetch", "sure", "--keep-archives"]) == 0
    asked = len(server.ranges)
    assert main(["fetch", "sure", "--force", "--quiet"]) == 0 and len(server.ranges) == asked


# -- the registry ------------------------------------------------------------------------------------


def test_published_heads_are_pinned_and_in_no_pack() -> None:
    published = {name: asset for name, asset in registry.OWN.items() if asset.files}
    assert set(published) == {"ict", "gnm"}
    for asset in published.values():
        assert not any(asset.name in pack for pack in registry.PACKS.values())
        assert (
            asset.license in ("MIT", "Apache-2.0") and asset.caveat and asset.download_bytes and asset.converted_bytes
        )
        for file in asset.files:
            revision = next(part for part in file.url.split("/") if len(part) == 40)
            assert file.url.startswith("https://") and revision in asset.source
            assert len(file.sha256) in (0, 64) and 0 < file.limit < 100_000_000


def test_ict_names_the_files_of_its_model(reference: Path) -> None:
    import numpy as np

    paths = {file.path.removesuffix(".obj") for file in registry.OWN["ict"].files}
    with np.load(reference / "ict" / "ict_facekit_light.npz") as file:
        names, count = {str(name) for name in file["expression_names"]}, len(file["identity"])
    assert paths == {"generic_neutral_mesh", *names, *(f"identity{index:03d}" for index in range(count))}
