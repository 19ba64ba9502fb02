"""Reports: well-formed, self-contained, escaped; numbers and pictures arrive in them."""

from __future__ import annotations

import base64
import html
import io
import os
import re
from html.parser import HTMLParser
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

import pytest
import torch
from PIL import Image

from facerecon import assets, export
from facerecon.errors import InputError
from facerecon.export.report import (
    IndexEntry,
    ReportEntry,
    _href,
    curve_points,
    loss_curve,
    stand_ins,
    write_index,
    write_report,
)

VOID = {"meta", "img", "br", "circle", "polyline", "source"}
EVIL = "<script>alert('x')</script>&\"'"


class Page(HTMLParser):
    """Collects tags, attributes and text; fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:])
        self.open.pop()

    def handle_data(self, data):
        self.text.append(data)

    def attributes(self, name):
        return [attrs[name] for _, attrs in self.tags if name in attrs]


def check_page(path, local_images=False):
    source = path.read_text(encoding="utf-8")
    assert source.startswith("<!DOCTYPE html>")
    page = Page(source)
    assert {"script", "link", "iframe", "object", "base"}.isdisjoint(tag for tag, _ in page.tags)
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    for value in page.attributes("src"):
        assert value.startswith("data:image/") or (local_images and "://" not in value and ":" not in value)
    for value in page.attributes("href"):
        assert ":" not in value
    assert not re.search(r"url\(|@import|https?://", source)
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    return page


@pytest.fixture
def subject():
    return ReportEntry(
        name="ada.jpg",
        pictures={"": Image.new("RGB", (40, 20), "red"), "texture": torch.full((1, 3, 8, 8), 0.5)},
        history={"texture.pix": [3.0, 2.0, 1.0], "texture.total": torch.tensor([9.0, 8.0, 7.5]), "joint.pix": [1.0]},
        seconds={"observe": 1.0, "texture": 10.25},
        metrics={"texture": {"photometric": 0.04321}, "joint": {"photometric": 0.03, "identity": 0.712}},
        facts={"identity": 0.712},
        files={"GLB": "head.glb"},
        notes=["the photo is small"],
    )


def test_report_is_whole_and_loads_nothing(subject, tmp_path):
    path = write_report(
        tmp_path / "new" / "report.html",
        subject,
        preset="paper",
        config={"fitting": {"texture": {"steps": 100}}, "seed": 0},
        replaced={"perceptual": "face_features instead of LPIPS"},
        command="python fit/reconstruct.py img=ada.jpg",
        failures={"b.jpg": "b.jpg holds no face."},
    )
    page = check_page(path)
    text = " ".join(page.text)
    for expected in (
        "ada.jpg", "paper", "0.04321", "0.712", "10.25", "11.25", "the photo is small", "fitting.texture.steps",
        "100", "face_features instead of LPIPS", "img=ada.jpg", "b.jpg holds no face.", "9 → 7.5", "3 → 1",
    ):  # fmt: skip
        assert expected in text, expected
    for asset in assets.ASSETS.values():
        assert asset.name in text and asset.license in text and asset.caveat in text
        assert assets.PACKAGES[asset.package].label in text
    pictures = [base64.b64decode(src.split(",", 1)[1]) for src in page.attributes("src")]
    assert [Image.open(io.BytesIO(data)).size for data in pictures] == [(40, 20), (8, 8)]


def test_every_string_from_outside_is_escaped(tmp_path):
    subject = ReportEntry(
        name=EVIL,
        pictures={EVIL: Image.new("RGB", (4, 4))},
        history={f"{EVIL}.{EVIL}": [1.0, 0.5]},
        seconds={EVIL: 1.0},
        metrics={EVIL: {EVIL: 1.0}},
        facts={EVIL: EVIL},
        files={EVIL: f"javascript:{EVIL}"},
        notes=[EVIL],
    )
    for extra in ([], [subject]):
        path = write_report(
            tmp_path / "report.html", [subject, *extra], title=EVIL, preset=EVIL, config={EVIL: EVIL},
            replaced={EVIL: EVIL}, assets=[EVIL], command=EVIL, failures={EVIL: EVIL},
        )  # fmt: skip
        page = check_page(path)
        assert " ".join(page.text).count(EVIL) >= 15
    index = write_index(
        tmp_path / "index.html", [IndexEntry(EVIL, f"{EVIL}/panel.png", "javascript:alert(1)", {EVIL: EVIL})],
        {EVIL: EVIL}, title=EVIL, command=EVIL,
    )  # fmt: skip
    check_page(index, local_images=True)


def test_a_name_that_is_no_utf8_is_shown(tmp_path):
    page = write_report(
        tmp_path / "r.html", ReportEntry("caf\udce9"), failures={"caf\udce9.jpg": "is empty"}, assets=[]
    )
    assert "caf\\udce9.jpg" in page.read_text(encoding="utf-8")


ADDRESSES = [
    "//evil.example/x.png", "///evil.example/x.png", "////evil.example/x.png", "\\\\evil.example\\x",
    "/\\evil.example/x",
    "\\/evil.example/x", "https://evil.example/x", "https:/evil.example", "https:evil.example", "JaVaScRiPt:alert(1)",
    " javascript:alert(1)", "java\tscript:alert(1)", "\x01javascript:alert(1)", "javascript\n:alert(1)",
    "data:text/html,<script>alert(1)</script>", "vbscript:x", "file://evil.example/x", "\t//evil.example/x",
    "/\t/evil.example/x", "/\n/evil.example/x", "x:y", "?a=https://evil.example", "#//evil.example",
]  # fmt: skip


@pytest.mark.parametrize("where", ADDRESSES)
def test_a_link_leads_to_this_disk_alone(where):
    """As browsers read it, which drop tabs and newlines, take a backslash for a slash and //host for an address."""
    target = html.unescape(_href(where))
    assert not re.search(r"[\x00-\x20\\\"'<>]", target)
    for base in ("file:///home/user/heads/index.html", "https://own.example/heads/index.html"):
        found, start = urlsplit(urljoin(base, target)), urlsplit(base)
        assert (found.scheme, found.netloc) == (start.scheme, start.netloc) and not found.query + found.fragment


def test_a_link_keeps_a_path():
    for path in ("a b/panel.png", "é/ü.glb", "50%/x?y#z.obj", "/home/user/head.obj", "caf\udce9/head.glb"):
        assert os.fsdecode(unquote_to_bytes(html.unescape(_href(path)))) == path


def test_a_face_reports_itself(sphere_face, tmp_path):
    face = sphere_face.replace(history={"texture.total": torch.tensor([[2.0, 1.0]])})
    settings = {"face_model": "makehuman", "perceptual": "lpips_vgg", "fitting": {"preset": "release"}}
    path = write_report(
        tmp_path / "report.html", face, panel=torch.rand(3, 20, 30), metrics={"joint": {"nme": 0.02}},
        seconds={"joint": 3.0}, config=settings, command="x",
    )  # fmt: skip
    page = check_page(path)
    text = " ".join(page.text)
    assert "photo.jpg" in text and "2 → 1" in text and "release" in text and "nme" in text
    assert "instead of HiFi3D++" in text and "instead of LPIPS" not in text


def test_batches_get_a_subject_each(sphere_pair, tmp_path):
    page = check_page(write_report(tmp_path / "report.html", sphere_pair))
    assert len(page.attributes("src")) == 4
    with pytest.raises(InputError, match="one face"):
        write_report(tmp_path / "report.html", sphere_pair, seconds={"joint": 1.0})


def test_stand_ins_follow_the_configuration():
    default = {"perceptual": "face_features", "decoder": "linear", "identity": "identity128"}
    assert set(stand_ins(default)) == {"perceptual loss", "decoder", "identity loss"}
    assert stand_ins({"perceptual": "lpips_vgg", "face_model": "hifi3dpp"}) == {}


def test_nothing_to_report(tmp_path):
    with pytest.raises(InputError, match="at least one subject"):
        write_report(tmp_path / "report.html", [])


def test_curve_spans_its_frame_and_survives_odd_values(tmp_path):
    curve = curve_points([4.0, 3.0, 2.0])
    assert curve["runs"] == [["6.0,6.0", "110.0,42.0", "214.0,78.0"]] and curve["ends"] == "4 → 2"
    for values in ([], [1.0], [1.0, 1.0], [float("nan")] * 3, [1.0, float("inf"), 2.0, 1.0]):
        path = write_report(tmp_path / "r.html", ReportEntry("a", history={"s.id": values}), assets=[])
        points = check_page(path).attributes("points")
        assert len(points) == sum(len(run) > 1 for run in curve_points(values)["runs"])
        assert not re.search("nan|inf", "".join(points))
    assert loss_curve([4.0, 2.0], "a<b").count("a&lt;b") == 2 and "<polyline" in loss_curve([4.0, 2.0], "a")


def test_index_links_panels_and_lists_failures(tmp_path):
    entries = [IndexEntry("a b.jpg", "a b/panel.png", "a b/report.html", {"identity": 0.7}), ("c", "c/panel.png")]
    path = write_index(tmp_path / "index.html", entries, {"x.txt": "x.txt is not an image"})
    page = check_page(path, local_images=True)
    assert page.attributes("src") == ["a%20b/panel.png", "c/panel.png"]
    assert page.attributes("href") == ["a%20b/report.html"] * 2 + ["c/panel.png"] * 2
    text = " ".join(page.text)
    assert "2 reconstructed, 1 failed" in text and "x.txt is not an image" in text


def test_index_of_a_run_shows_turning_heads(tmp_path):
    """A still picture for those who want no motion, and links to what there is."""
    for name, files in {"ada": ("viewer.html", "report.html", "turning.webp", "still.webp"), "bob": ()}.items():
        (tmp_path / name).mkdir()
        for file in ("panel.png", *files):
            (tmp_path / name / file).touch()
    path = write_index(tmp_path / "index.html", [IndexEntry.of_folder(tmp_path, name) for name in ("ada", "bob")])
    page = check_page(path, local_images=True)
    assert page.attributes("srcset") == ["ada/still.webp"]
    assert "(prefers-reduced-motion: reduce)" in page.attributes("media")
    assert page.attributes("src") == ["ada/turning.webp", "bob/panel.png"]
    targets = ["ada/viewer.html", "ada/viewer.html", "ada/viewer.html", "ada/report.html", "ada/panel.png"]
    assert page.attributes("href") == [*targets, "bob/panel.png", "bob/panel.png"]
    labels = [label for label in page.attributes("aria-label") if "ada" in label]
    assert labels == ["Turn the head of ada", "viewer of ada", "report of ada", "panel of ada"]


def test_old_names_still_work_and_say_so():
    for old, new in (("Subject", "ReportEntry"), ("contact_sheet", "captioned_sheet")):
        with pytest.warns(DeprecationWarning, match=f"is {new} now; the old name goes in version 0.3.0"):
            assert getattr(export, old) is getattr(export, new)
        assert old not in export.__all__
