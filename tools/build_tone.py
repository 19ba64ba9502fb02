"""Learn how skin tones show in pictures: facerecon/data/tone.safetensors.

    python tools/build_tone.py --work tone [--count 1034]

Portraits of the open generator, evenly over tones from very dark to very light, none of a held-out person; each as it
is and as other cameras, lamps and rooms would have shown it: random exposure, white balance and gamma, uneven light on
the head, another brightness of what is around it. Beside them rendered heads in the textures of some of the portraits,
whose tone is known exactly. Ridge regression of the tone on what `facerecon.perception.tone` measures; its errors on
people left out are the covariance. About 3 s a portrait of a core; resumable. Then: python -m facerecon.assets seal.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from facerecon import assets
from facerecon.dataset import Manifest
from facerecon.dataset.complete import CompleteSettings, complete
from facerecon.dataset.extract import ExtractSettings, extract
from facerecon.dataset.layout import load_template
from facerecon.dataset.tone_subjects import held_out_tones
from facerecon.errors import FaceReconError
from facerecon.evaluation import ita_errors, person_spread, rank_correlation
from facerecon.morphable import load_face_model
from facerecon.perception import observe
from facerecon.perception.skin_tone import TONE_GROUPS, mean_log_color, skin_tone, tone_group
from facerecon.perception.tone import COLORS, ToneNet, tone_features
from facerecon.run.seeds import item_generator
from facerecon.storage import safetensors_bytes, write_whole
from facerecon.stylegan.face_generator import load_generator
from facerecon.stylegan.load import load_decoder
from facerecon.synthetic.exposure import exposed
from facerecon.synthetic.faces import SyntheticFaces
from facerecon.synthetic.settings import SyntheticSettings
from facerecon.types import Crop

OUTPUT = Path(__file__).resolve().parents[1] / "facerecon" / "data" / "tone.safetensors"
SEEDS = range(20_000, 60_000)
TRUNCATION = 0.7
SIDE, FIT = 320, 224
MIDDLE = slice(46, 274)  # of the full crop: the fit crop
ELSEWHERE, HAIR = (0, 16, 18), 17  # classes background, cloth and hat
VARIANTS = 5
RENDERED, RENDERS, RENDER_WEIGHT = 20, 5, 1.0  # people a group of tones, pictures of each, and what they count
TEXELS, RENDER_SIDE = 256, 448
RIDGE, RIDGE_IDENTITY, SQUARES = 3.0, 5.0, 0.3


def chosen_seeds(generator: torch.nn.Module, count: int) -> list[int]:
    """Seeds whose codes promise tones evenly over the whole range: a ridge in W on the shipped set tells."""
    manifest = Manifest.load(assets.shipped("open_uv_manifest.safetensors"))
    codes, tone = manifest.tensors["source"].double(), manifest.figures["skin_tone"].double()
    center, scale = codes.mean(0), codes.std(0)
    x = (codes - center) / scale
    weight = torch.linalg.solve(x.T @ x + 400 * torch.eye(x.shape[1]).double(), x.T @ (tone - tone.mean()))
    guess = ((generator.sample(list(SEEDS), TRUNCATION).double() - center) / scale) @ weight + tone.mean()
    edges = torch.cat([torch.tensor([-math.inf]), torch.linspace(-40, 70, 20), torch.tensor([math.inf])])
    draw = torch.Generator().manual_seed(0)
    bins = [((guess >= a) & (guess < b)).nonzero()[:, 0] for a, b in zip(edges[:-1], edges[1:], strict=True)]
    bins = [b[torch.randperm(len(b), generator=draw)].tolist() for b in bins]
    held = {seed for members in held_out_tones().values() for seed in members}
    order = [SEEDS[b[i]] for i in range(max(map(len, bins))) for b in bins if i < len(b)]
    return [seed for seed in order if seed not in held][:count]


@torch.no_grad()
def measure(generator: torch.nn.Module, seed: int, path: Path) -> None:
    """Write the crops of one portrait; an empty file where no face is found."""
    image = generator(generator.sample(seed, TRUNCATION))[0].clamp(0, 1)
    try:
        photo = observe(F.interpolate(image[None], (640, 640), mode="area")[0])
    except FaceReconError:
        path.write_bytes(b"")
        return
    full, small = photo.full, {"size": (SIDE, SIDE), "mode": "area"}
    tensors = {
        "full": F.interpolate(full.image, **small) * 255, "skin": F.interpolate(full.skin_mask, **small) * 255,
        "valid": F.interpolate(full.valid, **small) > 0.5, "fit": photo.fit.image * 255,
        "classes": F.interpolate(full.classes.float(), (SIDE, SIDE), mode="nearest"),
    }  # fmt: skip
    tensors = {name: t.round().byte() if t.is_floating_point() else t.byte() for name, t in tensors.items()}
    write_whole(path, safetensors_bytes(tensors | {"landmarks": photo.landmarks68}))


def variants(data: dict[str, Tensor], seed: int) -> tuple[Crop, Crop, Tensor]:
    """Full crops, fit crops and landmarks of a portrait, as it is (first) and changed."""
    draw, count = item_generator(seed, "tone variants"), VARIANTS + 1

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=draw) * 2 - 1

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    changed = (torch.arange(count) > 0).float()[:, None]
    exposure = 2.0 ** (uniform(count, 1) * changed)
    balance = (uniform(count, 3) * math.log(1.28) * changed).exp()
    gamma = 1.2 ** (uniform(count) * changed[:, 0])
    around = ((normal(count, 1) * 0.45 + normal(count, 3) * 0.08) * changed).exp()
    dyed = (normal(count, 1) * 0.5 * (uniform(count, 1) < -0.2) * changed).exp()
    slopes = normal(count, 4) * torch.tensor([0.35, 0.2, 0.2, 0.15]) * changed

    axis = ((torch.arange(SIDE) + 0.5) / SIDE - 0.5) * 4.4
    y, x = axis[:, None].expand(SIDE, SIDE), axis.expand(SIDE, SIDE)
    lamps = torch.einsum("bk,khw->bhw", slopes, torch.stack([x, y, x * x, x * y]))[:, None].exp()
    skin = data["skin"].float() / 255
    lamps = lamps / (lamps * skin).sum((2, 3), keepdim=True) * skin.sum().clamp(min=1)
    classes = data["classes"]
    elsewhere = torch.isin(classes, classes.new_tensor(ELSEWHERE)).float()
    hair = (classes == HAIR).float()
    field = elsewhere * around[:, :, None, None]
    field = field + (1 - elsewhere) * lamps * (1 + hair * (dyed[:, :, None, None] - 1))
    field = F.avg_pool2d(F.pad(field, (2, 2, 2, 2), mode="replicate"), 5, 1)  # no hard edge between the classes
    middle = F.interpolate(field[:, :, MIDDLE, MIDDLE], (FIT, FIT), mode="bilinear")

    def taken(image: Tensor, light: Tensor) -> Tensor:
        lit = image.float() / 255 * light ** (1 / 2.2)
        return (exposed(lit, exposure, balance, gamma) * 255).round() / 255

    blank = torch.zeros(count, 1, 1, 1)
    whole = {"to_photo": torch.zeros(count, 2, 3), "eye_mask": blank, "mouth_mask": blank, "lip_mask": blank}
    full = Crop(
        image=taken(data["full"], field), valid=data["valid"].float().expand(count, -1, -1, -1), face_mask=blank,
        skin_mask=skin.expand(count, -1, -1, -1), classes=classes.expand(count, -1, -1, -1), **whole,
    )  # fmt: skip
    fit = Crop(image=taken(data["fit"], middle), valid=blank, face_mask=blank, skin_mask=blank, **whole)
    return full, fit, data["landmarks"].expand(count, -1, -1)


@torch.no_grad()
def rendered(generator: torch.nn.Module, seed: int, backgrounds: Tensor) -> dict[str, Tensor]:
    """What is measured on rendered heads with the texture of one portrait, and that texture's tone."""
    model = load_face_model("makehuman")
    template = load_template(model, TEXELS)
    image = generator(generator.sample(seed, TRUNCATION)).clamp(0, 1)
    try:
        views = extract(image, model, ExtractSettings(size=TEXELS), template.texture, layout=template.layout)
    except FaceReconError:
        return {}
    texture = complete(views, template, CompleteSettings(tone="off")).texture
    tone = mean_log_color(texture, template.layout.plain)
    settings = SyntheticSettings(
        texture=0, pictures=1, glasses=0, occluded=0, yaw=12, yaw_limit=30, wide=0, exposure=0
    )  # fmt: skip
    maps = (texture * 255).round().byte()
    faces = SyntheticFaces(model, load_decoder("linear"), settings, seed, RENDER_SIDE, maps=maps, backgrounds=backgrounds)
    draw, rows = item_generator(seed, "tone renders"), []
    for number in range(RENDERS):
        exposure = 2.0 ** (torch.rand(1, generator=draw) * 2 - 1)
        balance = ((torch.rand(1, 3, generator=draw) * 2 - 1) * math.log(1.28)).exp()
        gamma = 1.15 ** (torch.rand(1, generator=draw) * 2 - 1)
        try:
            photo = observe(exposed(faces([number]).image, exposure, balance, gamma)[0])
        except FaceReconError:
            continue
        rows.append(tone_features(photo.full, photo.fit, photo.landmarks68)[0])
    return {"features": torch.cat(rows), "color": tone.expand(len(rows), 3).contiguous()} if rows else {}


def learned(features: Tensor, tones: Tensor, weight: Tensor) -> ToneNet:
    """Weighted ridge regression, in float64; squares and descriptors are held more tightly."""
    net, known = ToneNet(features.shape[1], COLORS), ~features.isnan()
    net.center = torch.where(known, features, 0).sum(0) / known.sum(0).clamp(min=1)
    net.scale = torch.where(known, features - net.center, 0).std(0).clamp(min=0.02)
    terms = net.terms(features).double()
    penalty = torch.ones(terms.shape[1], dtype=torch.float64)
    penalty[COLORS : features.shape[1]], penalty[features.shape[1] :] = RIDGE_IDENTITY, 1 / SQUARES**2
    share = (weight / weight.sum()).double()[:, None]
    center, mean = (terms * share).sum(0), (tones.double() * share).sum(0)
    left = (terms - center) * share * len(terms)
    system = left.T @ (terms - center) + RIDGE * len(terms) / 100 * torch.diag(penalty)
    solution = torch.linalg.solve(system, left.T @ (tones.double() - mean))
    net.weight, net.bias = solution.float(), (mean - center @ solution).float()
    return net


def collected(work: Path, count: int) -> dict[str, list[Tensor]]:
    """Features, tones, numbers of people, and weights of their kind, in the order in which they are made."""
    generator, found = load_generator(), {"features": [], "tone": [], "person": [], "kind": []}

    def add(data: dict[str, Tensor], tone: Tensor, person: int, kind: float) -> None:
        found["features"].append(data["features"])
        found["tone"].append(tone.expand(len(data["features"]), 3))
        found["person"].append(torch.full((len(data["features"]),), person))
        found["kind"].append(torch.full((len(data["features"]),), kind))

    tones: dict[int, float] = {}
    for seed in tqdm(chosen_seeds(generator, count), desc="portraits"):
        crops, path = work / f"{seed}.safetensors", work / f"{seed}.features.safetensors"
        if not crops.exists():
            measure(generator, seed, crops)
        if crops.stat().st_size == 0:
            continue
        if not path.exists():
            with torch.no_grad():
                features, color = tone_features(*variants(load_file(crops), seed))
            save_file({"features": features, "color": color}, path)
        data = load_file(path)
        add(data, data["color"][:1], seed, 1.0)
        tones[seed] = skin_tone(data["color"][:1].exp()).item()
    backgrounds = torch.stack([_small(load_file(work / f"{seed}.safetensors")) for seed in sorted(tones)[::6]])
    groups = {name: sorted(s for s in tones if tone_group(tones[s]) == name)[:RENDERED] for name in TONE_GROUPS}
    for seed in tqdm([seed for members in groups.values() for seed in members], desc="rendered heads"):
        path = work / f"{seed}.rendered.safetensors"
        if not path.exists():
            write_whole(path, safetensors_bytes(rendered(generator, seed, backgrounds)))
        data = load_file(path)
        if data:
            add(data, data["color"][:1], seed, RENDER_WEIGHT)
    return found


def _small(data: dict[str, Tensor]) -> Tensor:
    """The middle of a full crop, (3, 256, 256) uint8: what an FFHQ portrait shows."""
    return F.interpolate(data["full"][:, :, 38:282, 38:282].float(), (256, 256), mode="area")[0].round().byte()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of what is measured, for resuming")
    parser.add_argument("--count", type=int, default=1034, help="portraits")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    found = {name: torch.cat(parts) for name, parts in collected(options.work, options.count).items()}
    features, truth, person, kind = found.values()
    ita = skin_tone(truth.exp())
    group = torch.bucketize(ita, ita.new_tensor(list(TONE_GROUPS.values())[1:]), right=True)
    weight = (1 / torch.bincount(group, minlength=len(TONE_GROUPS)).clamp(min=1))[group] * kind

    people, number = person.unique(return_inverse=True)
    fold = torch.randint(0, 5, (len(people),), generator=torch.Generator().manual_seed(0))[number]
    guess = torch.zeros_like(truth)
    for k in range(5):
        guess[fold == k] = learned(features[fold != k], truth[fold != k], weight[fold != k])(features[fold == k]).mean
    error, photos = guess - truth, kind == 1.0
    found_ita = skin_tone(guess.exp().clamp(0, 1))[photos]
    errors, names = ita_errors(found_ita, ita[photos]), person[photos].tolist()
    figures = {"mean": errors.mean, "bias": errors.bias, **errors.groups, "spread": person_spread(found_ita, names)}
    figures = {key: round(value, 2) for key, value in figures.items()}
    figures["rank"] = round(rank_correlation(found_ita, ita[photos]), 3)
    print(f"{len(people)} people, {len(truth)} pictures; portraits of people left out: {figures}")
    net = learned(features, truth, weight)
    net.covariance = torch.einsum("nc,nd,n->cd", error, error, weight / weight.sum())
    meta = {"figures": json.dumps(figures), "people": str(len(people)), "tool": "tools/build_tone.py"}
    write_whole(OUTPUT, safetensors_bytes(dict(net.state_dict()), meta))


if __name__ == "__main__":
    main()
