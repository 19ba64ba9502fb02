"""Learn how skin tones show in pictures: facerecon/data/tone.safetensors.

    python tools/build_tone.py --work tone [--count 1034]

Portraits of the open generator, evenly over tones from very dark to very light, none of a held-out person; each as it
is and as other cameras would have taken it: random exposure, white balance and gamma. Beside them rendered heads in the
textures of some of the portraits, in all lights, before pictures. Ridge regression of the tone on what
`facerecon.perception.tone` measures, which also holds what it says of one person together; its errors on people left
out are the covariance. A portrait's own tone is what its skin shows, but for half of an unusual hue, which is taken for
the white balance, and for a brightness beyond that of people, which is the exposure's. About 3 s a portrait of a core;
resumable. Then: python -m facerecon.assets seal.
"""

from __future__ import annotations

import argparse
import itertools
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
SIDE = 320
VARIANTS = 5
RENDERED, RENDERS, RENDER_WEIGHT = 20, 5, 1.5  # people a group of tones, pictures of each, and what they count
TEXELS, RENDER_SIDE = 256, 448
HUE = 0.5  # share of an unusual hue that is the person's
USED, PEOPLE = (-60.0, 72.0), (-55.0, 62.0)  # ITA of portraits that are learned from; and of people
RIDGE, RIDGE_IDENTITY, SQUARES = 10.0, 5.0, 0.3
WITHIN = 0.5  # weight of how far pictures of one person come apart, beside the error


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
    bins = [((guess >= a) & (guess < b)).nonzero()[:, 0] for a, b in itertools.pairwise(edges)]
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
    """Full crops, fit crops and landmarks of a portrait, as it is (first) and as other cameras would have taken it."""
    draw, gains, gammas = torch.Generator().manual_seed(seed), [torch.ones(3)], [1.0]
    for _ in range(VARIANTS):
        exposure = 2.0 ** (torch.rand((), generator=draw) * 2 - 1)
        balance = ((torch.rand(3, generator=draw) * 2 - 1) * math.log(1.28)).exp()
        gains.append(exposure * balance / balance[1])
        gammas.append(1.2 ** (torch.rand((), generator=draw).item() * 2 - 1))
    count, gain, gamma = VARIANTS + 1, torch.stack(gains), torch.tensor(gammas)

    def taken(image: Tensor) -> Tensor:
        image = image.float().expand(count, -1, -1, -1) / 255
        return (exposed(image, 1.0, gain, gamma) * 255).round() / 255

    def whole(image: Tensor) -> Tensor:
        return image.expand(count, -1, -1, -1)

    blank = torch.zeros(count, 1, 1, 1)
    other = {"to_photo": torch.zeros(count, 2, 3), "face_mask": blank, "eye_mask": blank, "mouth_mask": blank}
    full = Crop(
        image=taken(data["full"]), valid=whole(data["valid"].float()), skin_mask=whole(data["skin"].float() / 255),
        classes=whole(data["classes"]), lip_mask=blank, **other,
    )  # fmt: skip
    fit = Crop(image=taken(data["fit"]), valid=blank, skin_mask=blank, lip_mask=blank, **other)
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
    faces = SyntheticFaces(
        model, load_decoder("linear"), settings, seed, RENDER_SIDE, maps=maps, backgrounds=backgrounds
    )  # fmt: skip
    draw, rows = torch.Generator().manual_seed(seed), []
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


def tones_of(skin: Tensor) -> Tensor:
    """Log colors of skin in pictures (N, 3) -> tones of the people."""
    bright, hue = skin.mean(1, keepdim=True), skin[:, [0, 2]] - skin[:, [1]]
    line = torch.cat([torch.ones_like(bright), bright], 1)
    usual = line @ torch.linalg.lstsq(line, hue).solution
    hue = usual + HUE * (hue - usual)
    green = bright - hue.sum(1, keepdim=True) / 3
    tone = torch.cat([green + hue[:, :1], green, green + hue[:, 1:]], 1)
    goal = skin_tone(tone.exp().clamp(0, 1)).clamp(*PEOPLE)
    low, high = torch.full_like(bright, -1.0), torch.full_like(bright, 1.0)
    for _ in range(25):
        middle = (low + high) / 2
        darker = (skin_tone((tone + middle).exp().clamp(0, 1)) < goal)[:, None]
        low, high = torch.where(darker, middle, low), torch.where(darker, high, middle)
    return tone + (low + high) / 2


def learned(features: Tensor, tones: Tensor, weight: Tensor, person: Tensor) -> ToneNet:
    """Weighted ridge regression, in float64; squares and descriptors are held more tightly."""
    net, known = ToneNet(features.shape[1], COLORS), ~features.isnan()
    net.center = torch.where(known, features, 0).sum(0) / known.sum(0).clamp(min=1)
    net.scale = torch.where(known, features - net.center, 0).std(0).clamp(min=0.02)
    terms = net.terms(features).double()
    penalty = torch.ones(terms.shape[1], dtype=torch.float64)
    penalty[COLORS : features.shape[1]], penalty[features.shape[1] :] = RIDGE_IDENTITY, 1 / SQUARES**2
    share = (weight / weight.sum()).double()[:, None]
    center, mean = (terms * share).sum(0), (tones.double() * share).sum(0)
    terms = terms - center
    row = person.unique(return_inverse=True)[1]
    count = torch.bincount(row)[:, None]
    apart = terms - (torch.zeros(len(count), terms.shape[1]).double().index_add(0, row, terms) / count)[row]
    left = (terms * share).T
    system = left @ terms + WITHIN * (apart * share).T @ apart + RIDGE / 100 * torch.diag(penalty)
    solution = torch.linalg.solve(system, left @ (tones.double() - mean))
    net.weight, net.bias = solution.float(), (mean - center @ solution).float()
    return net


def collected(work: Path, count: int) -> dict[str, list[Tensor]]:
    """Features, tones, seeds of people, and whether a picture is rendered."""
    generator, found = load_generator(), {"features": [], "tone": [], "person": [], "rendered": []}

    def add(data: dict[str, Tensor], person: int, rendered: bool) -> None:
        found["features"].append(data["features"])
        found["tone"].append(data["color"][:1].expand(len(data["features"]), 3))
        found["person"].append(torch.full((len(data["features"]),), person))
        found["rendered"].append(torch.full((len(data["features"]),), rendered))

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
        add(data, seed, False)
        tones[seed] = skin_tone(data["color"][:1].exp()).item()
    backgrounds = torch.stack([_small(load_file(work / f"{seed}.safetensors")) for seed in sorted(tones)[::6]])
    groups = {name: sorted(s for s in tones if tone_group(tones[s]) == name)[:RENDERED] for name in TONE_GROUPS}
    for seed in tqdm([seed for members in groups.values() for seed in members], desc="rendered heads"):
        path = work / f"{seed}.rendered.safetensors"
        if not path.exists():
            write_whole(path, safetensors_bytes(rendered(generator, seed, backgrounds)))
        data = load_file(path)
        if data:
            add(data, seed, True)
    return found


def _small(data: dict[str, Tensor]) -> Tensor:
    """The middle of a full crop, (3, 256, 256) uint8: what an FFHQ portrait shows."""
    return F.interpolate(data["full"][:, :, 38:282, 38:282].float(), (256, 256), mode="area")[0].round().byte()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of what is measured, for resuming")
    parser.add_argument("--count", type=int, default=1039, help="portraits")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    found = {name: torch.cat(parts) for name, parts in collected(options.work, options.count).items()}
    seen = skin_tone(found["tone"].exp())
    used = (seen >= USED[0]) & (seen <= USED[1])
    features, truth, person, rendered_ = (part[used] for part in found.values())
    photos = ~rendered_
    truth[photos] = tones_of(truth[photos])
    ita = skin_tone(truth.exp().clamp(0, 1))
    group = torch.bucketize(ita, ita.new_tensor(list(TONE_GROUPS.values())[1:]), right=True)
    weight = torch.zeros(len(group))
    for kind, counts in ((photos, 1.0), (rendered_, RENDER_WEIGHT)):  # each group alike
        share = 1 / torch.bincount(group[kind], minlength=len(TONE_GROUPS)).clamp(min=1)
        weight[kind] = share[group[kind]] * counts / share[group[kind]].mean()
    of = 2 * person + rendered_  # a portrait and its renders need not be told alike

    people, number = person.unique(return_inverse=True)
    fold = torch.randint(0, 5, (len(people),), generator=torch.Generator().manual_seed(0))[number]
    guess = torch.zeros_like(truth)
    for k in range(5):
        rest = fold != k
        guess[~rest] = learned(features[rest], truth[rest], weight[rest], of[rest])(features[~rest]).mean
    error = guess - truth
    found_ita = skin_tone(guess.exp().clamp(0, 1))[photos]
    errors, names = ita_errors(found_ita, ita[photos]), person[photos].tolist()
    figures = {"mean": errors.mean, "bias": errors.bias, **errors.groups, "spread": person_spread(found_ita, names)}
    figures = {key: round(value, 2) for key, value in figures.items()}
    figures["rank"] = round(rank_correlation(found_ita, ita[photos]), 3)
    print(f"{len(people)} people, {len(truth)} pictures; portraits of people left out: {figures}")
    net = learned(features, truth, weight, of)
    share = weight[photos] / weight[photos].sum()
    net.covariance = torch.einsum("nc,nd,n->cd", error[photos], error[photos], share)
    meta = {"figures": json.dumps(figures), "people": str(len(people)), "tool": "tools/build_tone.py"}
    write_whole(OUTPUT, safetensors_bytes(dict(net.state_dict()), meta))


if __name__ == "__main__":
    main()
