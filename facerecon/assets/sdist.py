"""Download one file of a package index with the user's own pip, and build nothing: a script for a process of its own.

``pip download`` runs the setup.py of a source distribution, to learn what it requires. This asks pip's own finder for
the link of the pinned file instead and saves what is there, with pip's session: configuration files, PIP_ variables,
indexes, find-links, proxies, certificates and passwords apply as in ``pip download``. Run by
:func:`facerecon.assets.fetch`, which checks the hash before it reads anything.

Usage: python sdist.py NAME FILE FOLDER
"""

from __future__ import annotations

import os
import sys


def _command():
    """pip's download command (20.3 and later), which reads all settings and reports errors, with a run of ours."""
    from pip._internal.commands.download import DownloadCommand
    from pip._internal.exceptions import InstallationError
    from pip._vendor.requests import RequestException

    class SaveFile(DownloadCommand):
        def run(self, options, args):
            name, file, folder = args
            session = self.get_default_session(options)
            finder = self._build_package_finder(options, session, ignore_requires_python=True)
            links = [candidate.link for candidate in finder.find_all_candidates(name)]
            link = next((link for link in links if link.filename == file), None)
            if link is None:
                raise InstallationError(f"no index or find-links that pip knows has {file}")
            try:
                with session.get(
                    link.url_without_fragment, headers={"Accept-Encoding": "identity"}, stream=True
                ) as got:
                    got.raise_for_status()
                    with open(os.path.join(folder, file), "wb") as target:
                        for piece in got.iter_content(1 << 16):
                            target.write(piece)
            except RequestException as error:
                raise InstallationError(f"{file}: {' '.join(str(error).split())}") from error
            return 0

    return SaveFile("download", "")


def main(arguments: list[str]) -> int:
    """Save one file; returns pip's exit status, after a line of pip's on standard error where that is not 0."""
    try:
        command = _command()
        options = ["--no-binary=:all:", "--no-input", "--disable-pip-version-check", *arguments]
        return command.main(options)
    except (ImportError, AttributeError, TypeError) as error:
        print(f"ERROR: this pip has other parts than versions 20.3 to 26.3 ({error})", file=sys.stderr)
        return 1


if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != here]  # its modules are none of pip's
    sys.exit(main(sys.argv[1:]))
