"""The FAIR benchmark of TRUST (Feng et al., ECCV 2022): pictures of people whose albedo was scanned, in scenes.

FAIR is given out by its authors on request. Its pictures lie in ``validation_set/crops/SCENE/N.png`` and
``validation_set/full_image/SCENE.png`` (the authors' published reader names them); how its true albedos lie was not at
hand. So the truth is told by a table of one's own, ``truth.csv`` in the folder::

    image,ita                                    or      image,albedo,skin
    validation_set/crops/scene_0/0.png,41.3              crops/scene_0/0.png,maps/12.png,skin.png

``image``: a picture of one face; ``ita``: of the person's albedo, degrees; or ``albedo``, the person's UV map, and
``skin``, a mask of the same size, bright at the skin that counts. Paths are relative to the folder.
"""

from __future__ import annotations

import csv
import math
import os
from dataclasses import dataclass
from pathlib import Path

from facerecon.errors import InputError
from facerecon.imaging.files import read_image
from facerecon.perception.skin_tone import skin_tone

__all__ = ["FairFolder", "FairPicture"]


@dataclass(frozen=True)
class FairPicture:
    """A picture and what tells its truth.

    Args:
        path: of the picture.
        ita: degrees, or None where the maps tell it.
        albedo, skin: maps, or None.
    """

    path: Path
    ita: float | None = None
    albedo: Path | None = None
    skin: Path | None = None

    def truth(self) -> float:
        """ITA of the person's albedo, degrees; of maps that of the median color of the skin."""
        if self.ita is not None:
            return self.ita
        albedo, skin = read_image(self.albedo), read_image(self.skin)[0] > 0.5
        if albedo.shape[1:] != skin.shape or not bool(skin.any()):
            raise InputError(f"{self.skin} must be a mask of the size of {self.albedo} with bright skin.")
        return skin_tone(albedo[:, skin].median(1).values[None]).item()


class FairFolder:
    """The pictures of ``truth.csv``.

    Attributes:
        pictures: {name: picture}, in the order of the table; names are those of its paths, with "_" between parts.

    Raises:
        InputError: no table, or a row that does not fit; says what is expected.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        folder = Path(folder).expanduser()
        table = folder / "truth.csv"
        try:
            rows = list(csv.DictReader(table.read_text(encoding="utf-8-sig").splitlines()))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{table} cannot be read ({error}); expected columns image,ita or image,albedo,skin."
            ) from None
        if not rows:
            raise InputError(f"{table} names no picture; expected columns image,ita or image,albedo,skin.")
        self.pictures: dict[str, FairPicture] = {}
        for number, row in enumerate(rows, 2):
            name = (row.get("image") or "").strip()
            if not name or not (row.get("ita") or (row.get("albedo") and row.get("skin"))):
                raise InputError(f"{table}, line {number}: expected image and ita, or image, albedo and skin.")
            paths = {key: folder / row[key].strip() for key in ("image", "albedo", "skin") if row.get(key)}
            if missing := [path for path in paths.values() if not path.is_file()]:
                raise InputError(f"{table}, line {number}: {missing[0]} does not exist.")
            ita = _degrees(row["ita"], f"{table}, line {number}") if row.get("ita") else None
            key = "_".join(Path(name).with_suffix("").parts)
            self.pictures[key] = FairPicture(paths["image"], ita, paths.get("albedo"), paths.get("skin"))


def _degrees(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not -90 <= value <= 90:
        raise InputError(f"{where}: ita must be a number of degrees in -90..90; got {text!r}.")
    return value
