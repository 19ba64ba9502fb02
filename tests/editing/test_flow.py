"""The paper's way through StyleGAN2-FFHQ: the order of the edits, what the flow is told, when the walk stops."""

from __future__ import annotations

import pytest
import torch

from facerecon.editing.attributes import AttributeMeter, Attributes
from facerecon.editing.flow import TARGETS, ConditionMeter, FlowNormalizer, baldness
from facerecon.editing.inversion import encode
from facerecon.editing.latent_traversal import TraversalSettings
from facerecon.editing.styleflow import CONDITIONS, EDITED_ROWS
from facerecon.errors import ConfigError, ShapeError
from facerecon.imaging.files import read_image
from facerecon.perception.attributes import AttributeNet
from facerecon.perception.bisenet import CLASSES
from facerecon.perception.vgg_expression import FER_EXPRESSIONS

HAPPY = FER_EXPRESSIONS.index("happy")


class Painter:
    """A 'generator' whose picture is its code."""

    def __call__(self, codes):
        assert codes.shape == (1, 18, 512) and torch.equal(codes, codes.half().float())
        return codes[:, None]


class Reader:
    """A 'meter' of a world in which attribute k is component k of the mean of the rows that edits of it replace."""

    def __call__(self, image):
        code, n = image[:, 0], len(image)

        def value(name):
            return code[:, EDITED_ROWS[name], CONDITIONS[name].start].mean(1)

        zero = torch.zeros(n)
        light = torch.zeros(n, 9, 3)
        light[:, 0] = 1.0
        happy = (value("expression") * 8).sigmoid()
        return Attributes(
            yaw=value("yaw"), pitch=value("pitch"), roll=zero, expression=torch.stack([1 - happy, happy], 1),
            opening=zero, smile=value("expression"), age=zero + 30, male=zero, light=light, skin=torch.ones(n, 3),
            hair=torch.ones(n, 3),
            accessories=torch.full((n, 3), -9.0) + value("glasses")[:, None] * torch.eye(3)[:1] * 18,
            evenness=zero, identity=torch.zeros(n, 128), landmarks68=torch.zeros(n, 68, 2),
            mesh468=torch.zeros(n, 468, 3), score=torch.ones(n),
        )  # fmt: skip


class Conditions:
    """The source's attributes, read off the picture; the classifier says "happy" above a limit."""

    def __init__(self, limit: float) -> None:
        self.limit, self.calls = limit, 0

    def __call__(self, image, seen):
        condition = torch.zeros(1, 17)
        for name in ("glasses", "yaw", "pitch", "baldness", "expression"):
            condition[:, CONDITIONS[name]] = image[:, 0, EDITED_ROWS[name], CONDITIONS[name].start].mean(1)[:, None]
        condition[:, CONDITIONS["light"]] = 0.4
        return condition

    def expressions(self, image, seen):
        self.calls += 1
        found = torch.full((1, 7), 0.1)
        found[0, HAPPY] = 0.9 if float(seen.smile) > self.limit else 0.05
        return found


class Flow:
    """A 'flow' that does what it is asked, and keeps a record."""

    def __init__(self) -> None:
        self.asked: list[tuple] = []

    def edit(self, w, condition, attribute, value):
        value = torch.as_tensor(value)
        self.asked.append((attribute, value.tolist(), condition.clone()))
        wanted, moved = condition.clone(), w.clone()
        wanted[:, CONDITIONS[attribute]] = value
        place = CONDITIONS[attribute]
        moved[:, EDITED_ROWS[attribute], place] += (wanted - condition)[:, None, place]
        return moved, wanted


def source() -> torch.Tensor:
    code = torch.zeros(18, 512)
    for name, value in {"glasses": 1.0, "yaw": 11.0, "pitch": -5.5, "baldness": 0.0, "expression": 0.5}.items():
        code[EDITED_ROWS[name], CONDITIONS[name].start] = value
    return code


def smile() -> torch.Tensor:
    direction = torch.zeros(1, 512)
    direction[0, CONDITIONS["expression"]] = 1.0
    return direction


def normalizer(limit: float = 0.0, **settings) -> FlowNormalizer:
    return FlowNormalizer(Painter(), Flow(), smile(), Reader(), Conditions(limit), TraversalSettings(**settings))


def test_the_edits_come_in_the_releases_order_and_reach_their_targets() -> None:
    made = (of := normalizer())(source())
    asked = [(name, value) for name, value, _ in of.flow.asked]
    assert [name for name, _ in asked] == ["light", "glasses", "yaw", "pitch", "baldness", "yaw", "yaw"]
    assert asked[0][1] == [1.0] + 8 * [0.0] and asked[4][1] == 1.0
    assert [value for _, value in asked[5:]] == [30.0, -30.0]
    assert made.reasons == []
    assert made.codes.shape == (3, 18, 512) and made.images.shape == (3, 1, 18, 512)
    torch.testing.assert_close(made.attributes.yaw, torch.tensor([0.0, 30.0, -30.0]), atol=0.02, rtol=0)
    assert made.attributes.pitch.abs().max() < 0.01 and float(made.attributes.probability("glasses")[0]) < 0.01
    assert float(made.source.yaw) == 11.0 and torch.equal(made.source_image[0], source())
    assert torch.equal(made.images[:, 0], made.codes)
    # both sides start from the front view and from what it shows, not from each other
    (_, _, left), (_, _, right) = of.flow.asked[5:]
    assert torch.equal(left, right) and float(left[0, CONDITIONS["yaw"]]) == 0
    assert float(left[0, CONDITIONS["expression"]]) == pytest.approx(0.05)
    outside = [row for row in range(18) if row not in range(*EDITED_ROWS["yaw"].indices(18))]
    assert torch.equal(made.codes[0, outside], made.codes[1, outside])
    assert [row["step"] for row in made.trace] == ["source", "front 1", "left", "right"]
    assert len(made.trace[0]["condition"]) == 17
    assert list(TARGETS) == [name for name, _ in asked[:5]]


@pytest.mark.parametrize(
    ("limit", "steps"), [(0.0, 1), (-0.51, 2), (-0.56, 3), (-0.74, 6), (-9.0, 6)]
)  # the smile is 0.5 - 2 * 0.5 * (1 + 0.05 k)
def test_the_walk_ends_when_the_classifier_sees_no_smile(limit, steps) -> None:
    of = normalizer(limit)
    made = of(source())
    assert of.conditions.calls == steps
    expected = 0.5 - 1.0 * (1 + 0.05 * (steps - 1))
    assert float(made.attributes.smile[0]) == pytest.approx(expected, abs=2e-3)


def test_a_code_of_w_serves_all_rows_and_targets_missed_are_said() -> None:
    made = normalizer(yaw=50.0)(torch.zeros(512))
    assert made.codes.shape == (3, 18, 512) and float(made.attributes.yaw[1]) == pytest.approx(50, abs=0.05)

    class Stuck(Flow):
        def edit(self, w, condition, attribute, value):
            return w, condition

    of = normalizer()
    of.flow = Stuck()
    assert {reason.split(":")[0] for reason in of(source()).reasons} == {"yaw", "glasses"}  # a pitch of 5.5 may stay


def test_bad_input_is_one_line() -> None:
    with pytest.raises(ShapeError, match="one at a time"):
        normalizer()(torch.zeros(2, 18, 512))
    with pytest.raises(ConfigError, match="at most 60 degrees"):
        normalizer(yaw=80.0)
    with pytest.raises(ShapeError, match=r"smile must be \(1, 512\) or \(18, 512\)"):
        FlowNormalizer(Painter(), Flow(), torch.zeros(3, 512), Reader(), Conditions(0.0))


def test_baldness_is_the_lack_of_hair() -> None:
    found = torch.zeros(3, 19, 40, 40)
    found[:, CLASSES.index("skin"), 20:, :20] = 1  # 400 px of face
    found[1, CLASSES.index("hair"), :5, :20] = 1  # 100 of hair: half of what is not bald at all
    found[2, CLASSES.index("hair"), :20] = 1
    assert baldness(found).tolist() == [1.0, 0.5, 0.0]


def test_what_the_flow_is_told_of_the_papers_subject(reference, asset) -> None:
    """Against what the authors' closed service and DPR say of the same picture; DPR and parsing are stand-ins here."""
    for name in ("makehuman", "facemesh478", "landmarks68", "age_gender", "expression7", "identity128"):
        asset(name)
    image = read_image(reference / "ffhq_uv" / "01223_inversion.jpg")[None]
    crops = []

    class Net(torch.nn.Module):
        size = 48

        def forward(self, crop):
            crops.append(crop)
            return torch.eye(7)[None, HAPPY] * 0.65

    class Parser:
        def probabilities(self, image):
            found = torch.zeros(1, 19, 8, 8)
            found[:, CLASSES.index("skin"), :4], found[:, CLASSES.index("hair"), 4:] = 1, 1
            return found

    light = torch.linspace(0.8, -0.1, 9)[None]
    meter = ConditionMeter(lambda image: light, AttributeNet(Net(), softmax=False), Parser())
    condition = meter(image, AttributeMeter()(image))[0]
    told = {name: condition[place] for name, place in CONDITIONS.items()}
    assert torch.equal(told["light"], light[0])
    assert float(told["yaw"]) == pytest.approx(11.2, abs=4) and float(told["pitch"]) == pytest.approx(-5.6, abs=6)
    assert float(told["age"]) == pytest.approx(23, abs=6)
    assert [float(told[name]) for name in ("gender", "glasses", "baldness", "beard")] == [0, 0, 0, 0]
    assert float(told["expression"]) == pytest.approx(0.65)
    assert crops[0].shape == (1, 3, 48, 48) and 0.3 < float(crops[0].mean()) < 0.9  # the face fills it


def test_an_encoders_code_is_taken_as_it_is(reference, asset) -> None:
    for name in ("facemesh478", "landmarks68", "identity128", "faceres1024"):
        asset(name)
    crop = read_image(reference / "ffhq_uv" / "01223_photo.jpg")[None]
    codes = torch.randn(1, 18, 512)
    for shown, low, high in ((crop, 0.999, 1.001), (crop.flip(1).roll(150, 3), -1, 0.97)):

        def generator(code, shown=shown):
            assert torch.equal(code, codes)
            return shown

        found = encode(crop, generator, lambda image: codes)
        assert torch.equal(found.code, codes[0]) and torch.allclose(found.w, codes[0].mean(0), atol=1e-6)
        assert low < found.quality["csim"] < high and (found.quality["error"] < 1e-4) == (shown is crop)
