"""The parts of fit/evaluate.py: which items each has, and how one of them is measured.

Every part is a function of the sweep (:class:`fit.evaluate.Sweep`), which keeps the items and loads the fitters.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from safetensors.torch import load

from facerecon.configs.compose import compose
from facerecon.correspond.resample import retarget
from facerecon.dataset import Item, PipelineSettings, UVPipeline, draw_seeds, face_layout
from facerecon.dataset.complete import complete
from facerecon.dataset.extract import ExtractSettings, extract
from facerecon.dataset.layout import load_template
from facerecon.dataset.pipeline import ABLATIONS
from facerecon.dataset.sampling import FIRST_HELD_OUT, held_out_faces
from facerecon.errors import ConfigError, InputError, NoFaceError
from facerecon.evaluation import (
    MapMetrics,
    RealyFolder,
    brightness_symmetry_error,
    fit_metrics,
    head_errors,
    head_regions,
    identity_vectors,
    reconstruction_metrics,
    scan_of_head,
    stage1_heads,
)
from facerecon.evaluation.realy import KEYPOINTS, read_keypoint_places, write_mesh, write_realy_errors
from facerecon.export.views import panel
from facerecon.fit.evaluation_tones import albedo_metrics, measure_fair, measure_tones
from facerecon.fit.models import decoder_content
from facerecon.fitting import (
    MapFeatures,
    TextureInversionSettings,
    fit_landmarks,
    fit_light_and_texture,
    invert_texture,
)
from facerecon.imaging.files import contact_sheet, list_images, read_image, write_bytes, write_jpg, write_png
from facerecon.morphable import load_face_model
from facerecon.perception import load_age_gender, observe
from facerecon.perception.skin_tone import skin_color, skin_tone
from facerecon.render import Renderer
from facerecon.run.directory import file_digest, folder_names
from facerecon.run.signals import check_stop
from facerecon.settings import build_settings
from facerecon.stylegan.decoder import LinearDecoder
from facerecon.stylegan.face_generator import load_generator
from facerecon.stylegan.load import load_decoder, load_face_generator
from facerecon.synthetic.faces import WITHIN_MODEL, SyntheticFaces
from facerecon.synthetic.ict_heads import SyntheticHeads, degrade
from facerecon.synthetic.scan import GAIN as SCAN_GAIN
from facerecon.synthetic.scan import VIEWS, ScanViews
from facerecon.types import Camera, SHLight

HELD_OUT_HEADS = 90_001
"""Seed of the synthetic heads; training draws from its own, small numbers."""
SHEET = 8  # panels on one
INVERTED_BY = "lpips_alex"
"""Feature distance by which decoders express maps; LPIPS (VGG) measures the result."""
RELEASED = {
    "released": "released map, on our head",
    "views": "ours, from the released views",
    "photo": "ours, from the photo",
    "template": "the template, a map of nobody",
}
"""Rows of the part on the authors' own maps."""


def short_hash(*parts: Any) -> str:
    """Of anything that JSON can hold, and of the text of what it cannot."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def split_space(decoder: str) -> tuple[str, str | None]:
    """``"mine.safetensors:w+"`` or ``"open:w"`` -> name and latent space; no space where none is given."""
    name, sign, space = decoder.rpartition(":")
    return (name, space) if sign else (decoder, None)


def _rounded(metrics: dict[str, Any]) -> dict[str, float]:
    """The numbers among some metrics."""
    return {key: round(float(value), 5) for key, value in metrics.items() if isinstance(value, int | float)}


def _listed(vectors: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    return {key: [round(v, 5) for v in vector.float().tolist()] for key, vector in vectors.items()}


# -- one fit -------------------------------------------------------------------------------------------------


def measure_fit(sweep: Any, photo: Any, preset: str, decoder: str) -> tuple[dict[str, Any], Any]:
    """Facts of one fit, and the face."""
    fitter = sweep.fitter(preset, decoder)
    result = fitter(photo, callback=lambda _: check_stop())
    face = result.face
    metrics = fit_metrics(fitter, photo, result, sweep.eval_identity, sweep.distances)
    facts = {
        "metrics": _rounded(metrics | albedo_metrics(fitter.model, face)),
        "about": _rounded(_person(sweep.model, photo, face)),
        "vectors": _listed(identity_vectors(fitter.model, photo, face)),
    }
    if fitter.regressor is not None:
        facts["stage1"] = f"landmarks: {result.fallbacks[0]}" if result.fallbacks else "regressor"
    if result.diverged:
        facts["diverged"] = next(iter(result.diverged.values()))
    return facts, face


def _person(model: Any, photo: Any, face: Any) -> dict[str, float]:
    """Age in years and probability of male, of the photo; tone (ITA, degrees) of the fitted albedo's skin."""
    age, male = load_age_gender()(photo.image.cpu(), photo.landmarks68.cpu())
    about = {"age": float(age), "male": float(male)}
    try:
        plain = face_layout(model, face.decoded.shape[-1]).plain
    except ConfigError:  # a head without the regions for it
        return about
    return about | {"tone": float(skin_tone(skin_color(face.decoded.cpu(), plain.cpu()))[0])}


# -- shape ---------------------------------------------------------------------------------------------------


def measure_shape(sweep: Any) -> None:
    """Heads whose shape is known, by REALY's protocol."""
    spare = 2 * sweep.heads + 4  # heads that are tried, should no face be found in some
    kinds = (
        ("ict", _ict_heads, sweep.heads, spare),
        ("scan", _scan_views, sweep.views, sweep.views),
        ("synthetic", _synthetic_heads, sweep.heads, spare),
    )
    for kind, heads, count, most in kinds:
        if not count:
            continue
        try:
            make, content = heads(sweep)
        except Exception as error:
            sweep.skipped.append(f"Shape on {kind} heads was not measured: {' '.join(str(error).split())}")
            sweep.bar.update(count * (1 + len(sweep.fitted)))
            continue
        number = good = 0
        while good < count and number < most:
            source = [kind, sweep.seed, content]
            good += _measure_head(sweep, f"shape/{kind}/{number}", source, partial(make, number))
            number += 1


def _measure_head(
    sweep: Any,
    name: str,
    source: list,
    make: Callable[[], tuple[Any, Any]],
    places: Any = None,
    keep: Callable[[str, Any, Any], None] | None = None,
) -> bool:
    """All rows of one head: the mean face and the starts, and full fits with every decoder; False without a face.

    ``make`` gives the observed photo and the scan. Of the benchmark, whose photos must show a face, ``keep`` is called
    with the decoder's key, the result and the shape of each full fit.
    """
    head = cache(make)

    def errors(params: Any) -> dict[str, float]:
        return _rounded(head_errors(sweep.model, params, head()[1], places)[0].errors)

    def starts() -> dict[str, Any]:
        try:
            photo, _ = head()
        except NoFaceError as error:
            if keep is not None:
                raise
            return {"skipped": str(error)}
        heads, reason = stage1_heads(sweep.fitter(*sweep.main), photo)
        heads = {"mean face": sweep.model.neutral(1).to(sweep.device)} | heads
        facts = {"stage1": f"landmarks: {reason}"} if reason else {}
        return facts | {"errors": {key: errors(params) for key, params in heads.items()}}

    def full(key: str) -> dict[str, Any]:
        photo, scan = head()
        facts, face = measure_fit(sweep, photo, sweep.preset, sweep.decoders[key])
        result, shape = head_errors(sweep.model, face.params, scan, places)
        if keep is not None:
            keep(key, result, shape)
        return facts | {"errors": _rounded(result.errors)}

    facts = sweep.item(f"{name}/starts", [source, sweep.fit_config(*sweep.main)[1]], starts)
    if keep is None and (facts is None or "skipped" in facts):
        return False
    for key, decoder in sweep.fitted.items():
        sweep.item(f"{name}/{key}", [source, sweep.fit_config(sweep.preset, decoder)[1]], partial(full, key))
    return True


def _synthetic_heads(sweep: Any) -> tuple[Callable[[int], tuple[Any, Any]], Any]:
    """Heads of the fit's own model by number: observed photo and scan; and what they depend on."""
    if sweep.model.topology.name != "makehuman":
        raise ConfigError(f"they are drawn of makehuman with its linear texture; the fits are of {sweep.model.name}.")
    model = sweep.model.to("cpu")
    settings = replace(WITHIN_MODEL, yaw_limit=45.0)
    faces = SyntheticFaces(model, load_decoder("linear"), settings, HELD_OUT_HEADS + sweep.seed, size=448)
    regions = head_regions(model)

    def make(number: int) -> tuple[Any, Any]:
        batch = faces([number])
        photo = sweep.observed(degrade(batch.image, np.random.default_rng([sweep.seed, number])))
        shape = model.shape(batch.params)
        return photo, scan_of_head(shape[0], model.topology.faces, model.landmarks3d(shape)[0], regions)

    return make, HELD_OUT_HEADS


def _ict_heads(sweep: Any) -> tuple[Callable[[int], tuple[Any, Any]], Any]:
    """Heads of another model, from light-stage scans; as :func:`_synthetic_heads`."""
    ict = load_face_model("ict", num_identity=None, path=sweep.config.ict or None)
    regions, heads = head_regions(ict), SyntheticHeads(ict, sweep.seed)

    def make(number: int) -> tuple[Any, Any]:
        subject = heads.sample(number)
        scan = scan_of_head(subject.vertices, ict.topology.faces, subject.landmarks, regions)
        return sweep.observed(subject.photo), scan

    return make, short_hash([float(ict.mean.double().sum()), ict.num_identity, ict.num_vertices])


def _scan_views(sweep: Any) -> tuple[Callable[[int], tuple[Any, Any]], Any]:
    """One real face, scanned, in several poses and lights; as :func:`_synthetic_heads`."""
    views = ScanViews(seed=sweep.seed)
    scan = scan_of_head(views.vertices, views.faces, views.landmarks, views.regions)

    def make(number: int) -> tuple[Any, Any]:
        return sweep.observed(views.sample(number).photo), scan

    return make, short_hash(SCAN_GAIN, VIEWS, [int(mask.sum()) for mask in views.regions.values()])


def measure_realy(sweep: Any) -> None:
    """The benchmark itself; meshes and REALY_error.txt are written as its own evaluation reads and writes them."""
    benchmark = RealyFolder(sweep.config.realy_dir)
    given = sweep.config.realy_keypoints
    places = read_keypoint_places(given) if given else None
    images = dict(list(benchmark.images.items())[: None if sweep.config.full else max(sweep.heads, 1)])
    keys = f"{KEYPOINTS} keypoints of {Path(given).name}" if given else "the 68 landmarks of the head"
    sweep.skipped.append(f"REALY: {len(images)} of {len(benchmark.images)} photos, aligned by {keys}.")

    def keep(name: str, key: str, result: Any, shape: Any) -> None:
        where, faces = sweep.folder.path / "realy" / key, sweep.model.topology.faces
        write_mesh(where / "prediction" / f"{name}.obj", shape, faces)
        for region, vertices in {"global": result.coarse, **result.aligned}.items():
            write_mesh(where / "region_align_save" / name / f"at_{region}.obj", vertices, faces)

    for name, path in images.items():
        source = ["realy", short_hash(path.read_bytes().hex()), short_hash(str(places))]

        def make(path: Path = path, name: str = name) -> tuple[Any, Any]:
            return sweep.observed(path), benchmark.scan(name)

        _measure_head(sweep, f"realy/{name}", source, make, places, partial(keep, name))
    for key in sweep.fitted:
        found = {name: sweep.done.get(f"realy/{name}/{key}") for name in images}
        rows = [(name, facts["errors"]) for name, facts in found.items() if facts]
        if rows:
            write_realy_errors(sweep.folder.path / "realy" / key / "REALY_error.txt", rows)


# -- reconstruction ------------------------------------------------------------------------------------------


def photos(sweep: Any) -> Iterator[tuple[str, Any, str]]:
    """(name, path or image, what it depends on) of the photos, then of generated faces."""
    config = sweep.config
    if config.photos:
        source = Path(str(config.photos)).expanduser()
        if not source.is_absolute() and not source.exists():
            source = Path(__file__).resolve().parents[1] / source
        try:
            paths = list_images(source)
        except InputError as error:
            sweep.fail("photos", error)
            paths = []
        contents = {path: file_digest(path) for path in paths}
        for path, name in folder_names(contents).items():
            yield f"photo_{name}", path, contents[path]
    if config.seeds:
        generator = load_generator(dtype=torch.bfloat16)
        for seed in config.seeds:
            with torch.no_grad():
                image = generator(generator.sample(seed, config.truncation))[0].float().clamp(0, 1)
            yield f"seed_{seed}", image, f"seed {seed}, truncation {config.truncation}"
    elif sweep.faces:
        for seed, image in held_out_faces(sweep.faces):
            yield f"seed_{seed}", image, f"seed {seed}"


def measure_reconstruction(sweep: Any) -> None:
    """Photos and generated faces, by preset with our decoder, and by decoder with the first preset; sheets of panels.

    With the part sheet alone only our decoder and the first preset are run.
    """
    columns = [(sweep.preset, "ours")]
    if "reconstruction" in sweep.config.parts:
        columns = [(str(preset), "ours") for preset in sweep.config.presets]
        columns += [(sweep.preset, key) for key in sweep.fitted if key != "ours"]
    shown = []
    for name, source, content in photos(sweep):
        photo = cache(partial(sweep.observed, source))
        picture = sweep.folder.path / "panels" / f"{name}.png" if "sheet" in sweep.config.parts else None

        def measured(preset: str, decoder: str, picture: Path | None, photo: Callable = photo) -> dict[str, Any]:
            facts, face = measure_fit(sweep, photo(), preset, decoder)
            if picture is not None:
                drawn = panel(face, photo(), sweep.fitter(preset, decoder).renderer, sweep.model)
                write_png(picture, read_image(drawn))
            return facts

        for preset, key in columns:
            decoder, item = sweep.decoders[key], f"reconstruction/{name}/{preset}/{key}"
            here = picture if (preset, key) == (sweep.preset, "ours") else None
            if here is not None and not here.is_file():
                sweep.kept.pop(item, None)
            work = partial(measured, preset, decoder, here)
            if sweep.item(item, [content, sweep.fit_config(preset, decoder)[1]], work) is not None and here is not None:
                shown.append((name, here))
    for number in range(0, len(shown), SHEET):
        names, paths = zip(*shown[number : number + SHEET])
        sheet = contact_sheet([read_image(path) for path in paths], 4, names, size=700)
        sweep.sheets.append(f"sheet_{number // SHEET + 1}.jpg")
        write_jpg(sweep.folder.path / sweep.sheets[-1], sheet)


# -- UV maps -------------------------------------------------------------------------------------------------


@cache
def map_settings(pack: str) -> PipelineSettings:
    """How maps are made: as train/uv_dataset.py makes them with a pack."""
    values = OmegaConf.to_container(compose("uv_dataset", [f"pack={pack}"]), resolve=True)
    return build_settings(PipelineSettings, {field.name: values[field.name] for field in fields(PipelineSettings)})


@cache
def _pipeline(pack: str) -> UVPipeline:
    return UVPipeline(map_settings(pack))


def subjects(sweep: Any) -> Iterator[str]:
    """Seeds of held-out subjects whose maps the filters accept, as text; made when they are not there yet."""
    settings = map_settings(sweep.config.pack.name)
    digest = short_hash(str(settings))
    generator = load_face_generator(settings.generator)
    seeds = draw_seeds(generator, FIRST_HELD_OUT, settings.truncation, dark_share=0.15)
    found = tried = 0
    while found < sweep.people and tried < 3 * sweep.people + 10:
        seed = next(seeds)
        tried += 1
        item, files = f"maps/{seed}/full", [_map_file(sweep, seed, kind) for kind in ("png", "safetensors")]
        if "refused" not in sweep.kept.get(item, {}) and not all(path.is_file() for path in files):
            sweep.kept.pop(item, None)  # removed by hand
        facts = sweep.item(item, digest, partial(_make_map, sweep, seed))
        if facts is not None and "refused" not in facts:
            found += 1
            yield str(seed)


def _map_file(sweep: Any, seed: int | str, kind: str) -> Path:
    """A subject's map (png), or its search (safetensors)."""
    return sweep.folder.path / "maps" / f"{int(seed):06d}.{kind}"


def _make_map(sweep: Any, seed: int) -> dict[str, Any]:
    """A subject through the whole pipeline of Sec. 3.1; its map and its search are kept as files."""
    outcome = _pipeline(sweep.config.pack.name)(Item(seed, seed=seed))
    if outcome.error:
        raise InputError(outcome.error)
    metrics = _rounded(outcome.figures)
    if not outcome.accepted:
        return {"refused": "; ".join(outcome.reasons), "metrics": metrics}
    name = f"{seed:06d}"
    write_bytes(_map_file(sweep, seed, "png"), outcome.files[f"uv-maps/{name}.png"])
    write_bytes(_map_file(sweep, seed, "safetensors"), outcome.files[f"search/{name}.safetensors"])
    fit = load(outcome.files[f"fit/{name}.safetensors"])
    return {
        "metrics": metrics,
        "about": {"age": metrics["age"], "male": metrics["male"], "tone": metrics["skin_tone"]},
        "octaves": {key: value for key, value in outcome.figures.items() if isinstance(value, list)},
        "vectors": _listed({key: fit[f"descriptor_{key}"] for key in ("source", "front", "map")}),
    }


def measure_maps(sweep: Any) -> None:
    """Maps of held-out subjects, and the same with one thing changed (Table 4)."""
    plain = map_settings(sweep.config.pack.name)
    for seed in subjects(sweep):
        for name, row in ABLATIONS.items():
            if name not in sweep.config.ablations:
                continue
            changes = {k: replace(getattr(plain, k), **v) if isinstance(v, dict) else v for k, v in row.items()}

            def made(seed: str = seed, changes: dict = changes) -> dict[str, Any]:
                search = _map_file(sweep, seed, "safetensors").read_bytes()
                pipeline = _pipeline(sweep.config.pack.name).changed(check=False, **changes)
                outcome = pipeline(Item(int(seed), seed=int(seed), search=search))
                if outcome.error:
                    raise InputError(outcome.error)
                return {"metrics": _rounded(outcome.figures)}

            sweep.item(f"maps/{seed}/{name}", str(replace(plain, check=False, **changes)), made)


def measure_expressiveness(sweep: Any) -> None:
    """The maps of those subjects, as each decoder expresses them (Table 6)."""
    settings = TextureInversionSettings(steps=sweep.config.inversion_steps)
    maps = map_settings(sweep.config.pack.name)
    net = cache(lambda decoder: load_decoder(split_space(decoder)[0], space=split_space(decoder)[1]))
    features = cache(lambda: MapFeatures(INVERTED_BY, maps.face_model))
    measure = cache(lambda: MapMetrics(_pipeline(sweep.config.pack.name).template.layout.face, maps.face_model))

    def express(seed: str, decoder: str) -> dict[str, Any]:
        if net(decoder).atlas != maps.face_model:
            atlas = net(decoder).atlas
            raise ConfigError(f"decoder {decoder} makes maps of {atlas}, not of {maps.face_model} as these are.")
        target = read_image(_map_file(sweep, seed, "png"))[None]
        found = invert_texture(target, net(decoder), features(), settings, lambda *_: check_stop())
        side = (target.shape[-1],) * 2
        fitted = torch.nn.functional.interpolate(found.texture, side, mode="bilinear").clamp(0, 1)
        metrics = {name: value.item() for name, value in measure()(fitted, target).items()}
        return {"metrics": _rounded(metrics), "numbers": net(decoder).rows * net(decoder).dim}

    for seed in subjects(sweep):
        made = sweep.done[f"maps/{seed}/full"]["settings"]
        for key, decoder in sweep.decoders.items():
            name, space = split_space(decoder)
            content = (decoder_content(name) or name) + (f":{space}" if space else "")
            sweep.item(f"expressiveness/{seed}/{key}", [str(settings), content, made], partial(express, seed, decoder))


def measure_released(sweep: Any) -> None:
    """Subjects of the authors' set: their map on our head, ours from their views and from the photo, the template.

    All are drawn on one head in one pose, with the same eyes; CSIM compares each, in the photo, with the photo.
    """
    folder = Path(sweep.config.released_dir).expanduser()
    names = sorted(path.name.removesuffix("_final_uv.png") for path in folder.glob("*_final_uv.png"))
    if not names:
        raise InputError(f"{folder} has no NAME_final_uv.png; expected maps of the authors' set and their photos.")
    pack = sweep.config.pack.name
    size, mat = map_settings(pack).size, folder / "hifi3dpp_model_info.mat"
    model = load_face_model(map_settings(pack).face_model)
    source = load_face_model("hifi3dpp", num_identity=0, path=mat if mat.is_file() else None)
    template, retargeted = load_template(model, size), retarget(model, source=source)

    def measure(name: str, row: str) -> dict[str, Any]:
        views = torch.stack([read_image(folder / f"{name}_{side}.jpg") for side in ("front", "left", "right")])
        photo = observe(folder / f"{name}_photo.jpg")
        ours = complete(extract(views, model, ExtractSettings(size=size)), template)
        map_, metrics = ours.texture, {}
        if row == "released":
            map_ = read_image(folder / f"{name}_final_uv.png")[None]
            metrics["bs_error_map"] = brightness_symmetry_error(map_).item()  # on its own atlas
            carried = torch.nn.functional.interpolate(
                retargeted.texture(map_, source), (size, size), mode="bilinear", antialias=True
            )
            map_ = torch.where(template.layout.skin > 0, carried, ours.texture)  # the same eyes
        elif row == "views":
            metrics["bs_error"] = brightness_symmetry_error(map_, ours.observed).item()
            metrics["observed"] = ours.observed_share.item()
        elif row == "photo":
            outcome = _pipeline(pack).changed(check=False)(Item(0, path=str(folder / f"{name}_photo.jpg")))
            if outcome.error:
                raise InputError(outcome.error)
            map_ = read_image(outcome.files["uv-maps/000000.png"])[None]
            metrics |= {key: outcome.figures[key] for key in ("bs_error", "observed")}
        else:
            map_ = template.texture
        metrics.setdefault("bs_error_map", brightness_symmetry_error(map_).item())
        return {"metrics": _rounded(metrics | _in_photo(model, photo, map_, sweep.eval_identity))}

    for name in names:
        content = short_hash(
            [file_digest(path) for path in sorted(folder.glob(f"{name}_*.*g"))], str(map_settings(pack))
        )
        for row in RELEASED:
            sweep.item(f"released/{name}/{row}", content, partial(measure, name, row))


def _in_photo(model: Any, photo: Any, texture: torch.Tensor, eval_identity: Any) -> dict[str, float]:
    """Metrics of a texture on the head that is fitted to a photo's landmarks, under the light that is solved for it."""
    renderer = Renderer(size=photo.image.shape[-1])
    params = fit_landmarks(model, photo.landmarks68, mesh_points=photo.mesh468)
    vertices = model(params)
    view = renderer.prepare(vertices, model.topology, Camera.deep3d(), SHLight.ambient(1), face_region="face")
    fixed = LinearDecoder(texture[0], torch.zeros(1, *texture.shape[1:]))
    light, _ = fit_light_and_texture(photo, fixed, view, vertices, model.topology)
    metrics, _ = reconstruction_metrics(photo, params.replace(light=light), texture, model, renderer, eval_identity)
    return {key: value.item() for key, value in metrics.items()}


MEASURES: dict[str, Callable[[Any], None]] = {
    "shape": measure_shape,
    "reconstruction": measure_reconstruction,
    "maps": measure_maps,
    "expressiveness": measure_expressiveness,
    "sheet": measure_reconstruction,
    "tone": measure_tones,
    "fair": measure_fair,
    "realy": measure_realy,
    "released": measure_released,
}
