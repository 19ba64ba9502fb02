"""Published numbers that an evaluation prints beside its own: measured by others, on data that are not here."""

from __future__ import annotations

from facerecon.evaluation.tables import Row, Summary

__all__ = ["PUBLISHED"]

_RELEASE = "README of the authors' release"
_REALY = "REALY, 100 scans, mean of four regions; arXiv:2312.00311"

PUBLISHED: dict[str, tuple[Row, ...]] = {
    "shape": (
        Row("3DDFA-v2", {"mean": Summary(1.926, 100)}, source=_REALY),
        Row("DECA", {"mean": Summary(2.010, 100)}, source=_REALY),
    ),
    "maps": (
        Row(
            "FFHQ-UV", {"bs_error_map": Summary(7.293, 54165), "identity_std": Summary(0.9006, 54165)}, source=_RELEASE
        ),
        Row(
            "FFHQ-UV-Interpolate",
            {"bs_error_map": Summary(4.490, 100000), "identity_std": Summary(0.8012, 100000)},
            source=_RELEASE,
        ),
    ),
}
"""{table: rows}, in the units of the table's columns.

Only what a source at hand says: the cells of the paper's Tables 4 to 6 are in arXiv:2211.13874, which was read in a
translation without its tables. Who has it adds rows here.
"""
