"""Model files that are fetched, checked and converted once, and the files that come with the library.

``locate(name)`` gives the path of a converted model in the cache, ``fetch(...)`` fills the cache, and
``shipped(name)`` gives a file of ``facerecon/data``. On the command line:
``python -m facerecon.assets list|fetch|verify|convert``.
"""

from facerecon.assets.registry import ASSETS, PACKAGES, PACKS
from facerecon.assets.store import Progress, convert, derived, fetch, home, locate, shipped, status, verify

__all__ = [
    "ASSETS",
    "PACKAGES",
    "PACKS",
    "Progress",
    "convert",
    "derived",
    "fetch",
    "home",
    "locate",
    "shipped",
    "status",
    "verify",
]
