"""Every configuration composes, equals the code's defaults where it should, and the presets say what the paper says."""

import dataclasses
import functools
import importlib
import inspect
import math
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from facerecon.configs import describe, schema
from facerecon.configs.compose import (
    ALIASES,
    CONFIGS,
    PATHS,
    TEXTS,
    _defaults,
    _text,
    compose,
    composed_defaults,
    groups,
    run,
)
from facerecon.configs.schema import SETTINGS
from facerecon.dataset.complete import CompleteSettings
from facerecon.dataset.pipeline import PipelineSettings
from facerecon.errors import ConfigError
from facerecon.fitting import (
    DetailSettings,
    LandmarkStart,
    RegressorStart,
    default_stages,
    stages_from_config,
)
from facerecon.morphable import load_face_model
from facerecon.render import Renderer
from facerecon.settings import build_settings
from facerecon.stylegan.load import load_decoder
from facerecon.training.ada import ADASettings
from facerecon.training.texture_gan import AdversarialSettings

ROOT = Path(__file__).resolve().parents[1]

DEFAULT_FIT = CONFIGS / "fitting" / "default.yaml"
SCRIPTS = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))


def stages(config):
    return stages_from_config(OmegaConf.to_container(config.fitting.stages, resolve=True))


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_composes_with_every_option(script) -> None:
    config = compose(script)
    assert {"threads", "out"} <= set(config)
    for group, options in groups().items():
        if group in config:
            for option in options:
                compose(script, [f"{group}={option}"])


def settings_class(source):
    return getattr(importlib.import_module(f"facerecon.{source.module}"), source.name)


@pytest.mark.parametrize("script", sorted(SETTINGS))
def test_what_is_read_of_the_settings_is_what_they_are(script) -> None:
    """Keys and defaults of each group are those of the dataclass, and every option of a preset or pack builds it."""
    read = schema.defaults(script)
    for group, source in SETTINGS[script].items():
        kind = settings_class(source)
        values = functools.reduce(dict.__getitem__, group.split("."), read) if group else read
        names = source.only or {f.name for f in dataclasses.fields(kind)} - {*source.without}
        names = {name for name in names if f"{group}.{name}".lstrip(".") not in SETTINGS[script]}
        if source.name == "Stage":
            name = group.rpartition(".")[2]
            assert stages_from_config({name: values})[name] == default_stages()[name]
            assert {*values} == names - {"name"}
        elif dataclasses.is_dataclass(kind) and group != "extract.fit":
            values = {key: value for key, value in values.items() if key in names}
            assert {*values} == names
            assert build_settings(kind, values) == kind()
        else:
            assert {*values} >= names
    if script == "uv_dataset":
        assert build_settings(PipelineSettings, read) == PipelineSettings()
    for name in ("Fitter", "Renderer"):
        for source in (source for source in SETTINGS[script].values() if source.name == name):
            parameters = inspect.signature(settings_class(source)).parameters
            group = next(group for group, of in SETTINGS[script].items() if of is source)
            values = functools.reduce(dict.__getitem__, group.split("."), read)
            assert {key: values[key] for key in source.only} == {key: parameters[key].default for key in source.only}


@pytest.mark.parametrize("script", sorted(SETTINGS))
def test_every_option_builds_every_settings(script) -> None:
    config = compose(script)
    choices = [[f"{group}={option}"] for group, options in groups().items() if group in config for option in options]
    for overrides in [[], *choices]:
        plain = OmegaConf.to_container(compose(script, overrides), resolve=True)
        for group, source in SETTINGS[script].items():
            kind = settings_class(source)
            values = functools.reduce(dict.__getitem__, group.split("."), plain) if group else plain
            if source.name == "Stage":
                stages_from_config({group.rpartition(".")[2]: values})
            elif dataclasses.is_dataclass(kind):
                known = {f.name for f in dataclasses.fields(kind)}
                build_settings(kind, {key: value for key, value in values.items() if key in known}, group)
            elif source.name == "Renderer":
                Renderer(size=224, **values)


OF_TWO = {"adversarial_pair_loss.gradient", "adversarial_pair_loss.skip", "fitting.renderer.antialias"}
"""Where a group differs from its class: a second use of PairWeights, and the fits' renderer."""


@pytest.mark.parametrize("script", sorted(SETTINGS))
def test_defaults_are_written_once(script) -> None:
    """A key of a dataclass has its default there alone; presets of fits hold what differs from the default one."""
    known = leaves(schema.defaults(script))
    assert len(known) > 5
    files = {CONFIGS / f"{script}.yaml": ""} | ({DEFAULT_FIT: "fitting."} if script == "reconstruct" else {})
    for path, prefix in files.items():
        written = leaves(OmegaConf.to_container(OmegaConf.load(path)), prefix)
        for key in {*written} & {*known}:
            assert written[key] != known[key], f"{path.name}: {key} repeats the default"
            by_pack = str(written[key]).startswith("${pack.")
            assert by_pack or key in OF_TWO, f"{path.name}: {key} contradicts the default"


@pytest.mark.parametrize("preset", sorted({*groups()["fitting"]} - {"default"}))
def test_a_preset_holds_what_differs(preset) -> None:
    path = DEFAULT_FIT.with_stem(preset)
    default = leaves(composed_defaults("reconstruct")["fitting"])
    written = leaves({k: v for k, v in OmegaConf.to_container(OmegaConf.load(path)).items() if k != "defaults"})
    assert {*written} <= {*default}
    same = [key for key, value in written.items() if value == default[key]]
    assert [key for key in same if ".weights." not in key] == []  # those of a stage are given as a whole


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_key_is_explained(script) -> None:
    assert [key for key, _, comment in describe.rows(script) if not comment] == []


def test_the_page_of_keys_is_what_is_generated() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == describe.markdown(), (
        "run: python -m configs.describe > docs/configuration.md"
    )


def leaves(values, prefix=""):
    """{dotted key: value} of a nested mapping."""
    found = {}
    for key, value in values.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def test_paper_preset_is_section_4_2() -> None:
    found = stages(compose("reconstruct", ["img=x", "fitting=paper"]))
    texture, joint = found["texture"], found["joint"]
    assert texture.weights == {"lpips": 100, "pix": 10, "id": 10, "reg_z": 0.05}
    assert (texture.steps, texture.learning_rate, texture.sphere, texture.optimize) == (
        100,
        0.1,
        True,
        ("latent",),
    )
    assert joint.weights == {
        "pix": 0.2,
        "id": 1.6,
        "reg_z": 0.05,
        "lm": 2e-3,
        "reg_id": 2e-4,
        "reg_exp": 1.6e-3,
    }
    assert (joint.steps, joint.learning_rate, joint.sphere) == (200, 0.01, False)
    assert set(joint.optimize) == {"latent", "identity", "expression", "pose", "light"}


def test_release_preset_swaps_and_adds() -> None:
    config = compose("reconstruct", ["img=x", "fitting=release"])
    texture, joint = stages(config).values()
    assert joint.weights == {
        "pix": 1.6, "id": 0.2, "reg_z": 0.05, "lm": 2e-3, "reg_id": 2e-4, "reg_exp": 1.6e-3, "light": 10,
    }  # fmt: skip
    assert (texture.rampdown, joint.rampdown) == (0.25, 0.4)
    assert {k: joint.rate_scale[k] for k in ("latent", "pose", "light")} == {
        "latent": 0.05,
        "pose": 0.05,
        "light": 0.05,
    }
    assert (config.fitting.photometric, config.fitting.latent_prior) == ("l1", "geocross")
    assert config.fitting.renderer == {"filter": "nearest", "shading": "vertex", "antialias": False, "texture_level": 0}
    assert not config.fitting.detail.enabled
    assert not config.fitting.occlusion.enabled


@pytest.mark.parametrize(
    "override, message",
    [
        ("imgg=x", "did you mean 'img'"),
        ("fitting=relese", "did you mean 'release'"),
        ("fitting.stages.texture.weights.lpip=3", r"did you mean 'fitting.stages.texture.weights.lpips'"),
        ("face.jpg", "is not key=value"),
    ],
)
def test_what_is_unknown_names_the_nearest(override, message) -> None:
    with pytest.raises(ConfigError, match=message):
        compose("reconstruct", [override])


def test_a_key_of_before_still_works_and_says_so(capsys) -> None:
    config = compose("regressor", ["synthetic.relief=3", "++synthetic.slip=0.5", "pack.judge=other", "seed=1"])
    assert (config.synthetic.shape_residual, config.synthetic.uv_jitter, config.pack.eval_identity) == (3, 0.5, "other")
    assert "relief" not in config.synthetic and "judge" not in config.pack
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "note: key 'synthetic.relief' is now 'synthetic.shape_residual'; the old name goes in 0.3.0."
    assert len(said) == 3
    with pytest.raises(ConfigError, match=r"'synthetic\.stark' is gone since version 0.2.0"):
        compose("regressor", ["synthetic.stark=0.7"])
    with pytest.raises(ConfigError, match=r"unknown config key 'synthetic\.relief'"):
        compose("texture_gan", ["synthetic.relief=3"])


def test_every_alias_leads_to_a_key_that_is_there() -> None:
    for script, names in ALIASES.items():
        for old, new in names.items():
            for name in SCRIPTS if script == "*" else (script,):
                known = _defaults(name)
                assert old.removesuffix(".") not in known
                there = new is None or any(f"{key}.".startswith(f"{new.removesuffix('.')}.") for key in known)
                assert there or (script == "*" and "pack" not in known), (name, new)


def test_an_option_file_of_before_still_works(monkeypatch, tmp_path) -> None:
    shutil.copytree(CONFIGS, tmp_path / "configs")
    mine = (CONFIGS / "pack" / "open.yaml").read_text("utf-8").replace("eval_identity: faceres1024", "judge: my_own")
    (tmp_path / "configs" / "pack" / "mine.yaml").write_text(mine, "utf-8")
    monkeypatch.setattr("facerecon.configs.compose.CONFIGS", tmp_path / "configs")
    config = compose("reconstruct", ["pack=mine", "img=x"])
    assert config.pack.eval_identity == "my_own" and "judge" not in config.pack
    assert config.decoder == "open"
    with pytest.raises(ConfigError):
        compose("reconstruct", ["pack=mine", "imgg=x"])


def test_a_number_stays_one_where_another_script_has_a_path() -> None:
    assert compose("regressor", ["texture=3"]).texture == 3
    assert compose("transfer", ["texture=3", "target=ict"]).texture == "3"


def test_trainings_alone_may_be_forced_to_go_on() -> None:
    assert compose("texture_gan", ["resume=force"]).resume == "force"
    assert compose("uv_dataset", ["resume=false"]).resume is False
    with pytest.raises(ConfigError, match="resume must be true, false or force; got 'maybe'"):
        compose("regressor", ["resume=maybe"])
    with pytest.raises(ConfigError, match="resume must be true or false; got 'force'"):
        compose("reconstruct", ["resume=force"])


def test_paths_need_no_quoting() -> None:
    assert compose("reconstruct", ["img=a b (1), c=d.jpg"]).img == "a b (1), c=d.jpg"
    assert compose("reconstruct", ["img=photos/*.jpg"]).img == "photos/*.jpg"


ODD = (
    "${pack.name}",
    "a\\\\${x}",
    "[2023]",
    "'quoted'",
    '"',
    " both ends ",
    "2024",
    "true",
    "caf\udce9.jpg",
    "a=b, {c}: #d",
    "$(e)\\",
)
KEYS = sorted(
    {(key, script) for script in SCRIPTS for key in _defaults(script) if key in PATHS}
    - {("texture", "regressor")}  # a number there
)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_path_is_taken_as_it_stands(script) -> None:
    for first in (0, 5):
        given = {key: ODD[(first + i) % len(ODD)] for i, (key, of) in enumerate(KEYS) if of == script}
        if given.get("init", "").startswith("["):
            given["init"] = "its [] is a list"
        config = compose(script, [f"{key}={name}" for key, name in given.items()])
        assert {key: OmegaConf.select(config, key) for key in given} == given
        plain = OmegaConf.to_container(config, resolve=True)
        assert {key: functools.reduce(dict.get, key.split("."), plain) for key in given} == given
    OmegaConf.to_yaml(config).encode()  # of --cfg


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    name=st.lists(st.sampled_from(["${", *"[]{},=$'\"\\\\\\#: ()*?~+-.%aé\udce9\n1"]), min_size=1, max_size=8).map(
        "".join
    )
)
def test_any_text_is_a_path(name) -> None:
    config = OmegaConf.create({"img": _text("img", name, "???")})
    assert config.img == os.path.expanduser(name)
    assert OmegaConf.to_container(config, resolve=True) == {"img": config.img}


def test_every_key_without_a_default_is_a_path_a_text_or_known_to_be_neither() -> None:
    others = {
        *(
            "adversarial.r1_gamma",
            "dark_share",
            "decoder_components",
            "filters.residual",
            "first",
            "keep_decoders",
            "max_minutes",
            "minutes",
            "n",
            "num_identity",
            "pack.num_identity",
        ),
        *("pair_truncation", "recompute_from", "seeds", "size", "threads", "video", "workers"),
    }
    found = {key for script in SCRIPTS for key, value in _defaults(script).items() if value in (None, "???")}
    assert {key for key in found if not key.startswith("fitting.")} <= PATHS | TEXTS | others
    names = {"atlas", "decoder", "decoders.linear", "decoders.ours", "out", "photos", "source", "template", "weak.data"}
    assert names <= PATHS  # whose default is no null


def test_a_path_begins_at_home_and_is_never_empty(monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert compose("reconstruct", ["out=~/heads", "img=~"]).out == "/home/ada/heads"
    assert compose("regressor", ["init=[~/a b.safetensors, c.safetensors]"]).init == [
        "/home/ada/a b.safetensors", "c.safetensors",
    ]  # fmt: skip
    for key, script in KEYS:
        with pytest.raises(ConfigError, match=f"^{key}= is empty; give a path"):
            _text(key, "", _defaults(script)[key])
    with pytest.raises(ConfigError, match="img= is empty"):
        compose("reconstruct", ["img="])
    with pytest.raises(ConfigError, match="out= is empty"):
        compose("reconstruct", ["out=null"])
    assert compose("evaluate", ["photos=null", "decoders.linear=null", "set="]).photos is None


def test_text_that_is_no_path_needs_no_quoting() -> None:
    for written in ("jawOpen:0.5,mouthSmileLeft:1", "'jawOpen:0.5,mouthSmileLeft:1'", '"jawOpen:0.5,mouthSmileLeft:1"'):
        assert compose("render", [f"expression={written}"]).expression == "jawOpen:0.5,mouthSmileLeft:1"
    config = compose("texture_gan", ["mapping_layers=4", "train_mapping=true", "logger=a=b", "logger=none"])
    assert (config.mapping_layers, config.train_mapping, config.logger) == (4, True, "none")
    assert compose("reconstruct", ["face=2", "face=all"]).face == "all"
    assert compose("reconstruct", ["face=all", "face=2"]).face == 2
    words = "'regressor=a b.safetensors' face_model=ict"
    assert compose("evaluate", [f"set={words}"]).set == words


def test_a_console_that_shows_no_accents_stops_nothing(monkeypatch) -> None:
    import io

    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", console)
    assert run(lambda config: print(f"{config.img} and März"), "reconstruct", "", ["img=caf\udce9.jpg"]) == 0
    assert console.buffer.getvalue() == b"caf\\udce9.jpg and M\\xe4rz\n"


def test_a_reader_that_has_seen_enough_ends_the_run_without_a_word(monkeypatch, capfd) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as console:
        monkeypatch.setattr(sys, "stdout", console)
        assert run(lambda config: print("a line"), "reconstruct", "", ["img=x"]) == 141  # at the end
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as console:
        monkeypatch.setattr(sys, "stdout", console)
        assert run(lambda config: print("a line" * 10_000), "reconstruct", "", ["img=x"]) == 141
    assert capfd.readouterr().err == ""

    def worker(config):  # another pipe than the console's
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.undo()
    assert run(worker, "reconstruct", "", ["img=x"]) == 2


def test_run_turns_errors_into_one_line_and_a_status(capsys) -> None:
    def broken(config):
        raise ConfigError("one\nline")

    assert run(broken, "reconstruct", "doc", ["img=x"]) == 2
    assert capsys.readouterr().err == "error: one line\n"

    def interrupted(config):
        raise KeyboardInterrupt

    assert run(interrupted, "reconstruct", "doc", ["img=x"]) == 130
    assert run(broken, "reconstruct", "What it does.", ["--help"]) == 0
    text = capsys.readouterr().out
    assert "What it does." in text
    assert "one of default, fast, paper, release, smoke" in text
    assert "  sigma_jaw=6.0 " in text and "px, noise of the jaw contour, which slides" in text  # of a dataclass


def test_a_stop_that_python_swallows_is_raised_again(monkeypatch, capsys) -> None:
    """Python drops what a signal handler raises inside ``__del__``: the next look between two steps raises it."""
    import signal

    from facerecon.run import signals as module

    class Swallows:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    reached = []
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job may start with it ignored
    monkeypatch.setattr("sys.unraisablehook", lambda _: reached.append("swallowed"))

    def main(config) -> int:
        thing = Swallows()
        del thing
        reached.append("went on")
        module.check_stop()
        reached.append("not reached")
        return 0

    try:
        assert run(main, "reconstruct", "", ["img=x"]) == 130
        assert reached == ["swallowed", "went on"]
        assert "interrupted" in capsys.readouterr().err
        assert run(lambda config: module.check_stop(), "reconstruct", "", ["img=x"]) == 0  # forgotten by the next
    finally:
        signal.signal(signal.SIGINT, handler)


def test_a_patient_stop_waits_for_the_work(monkeypatch) -> None:
    """A first signal sets a flag; what may be cut off is, and a second signal does not wait."""
    import signal

    from facerecon.run import signals as module

    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    reached = []

    def main(config) -> int:
        with module.patient_stops() as asked:
            reached.append(asked())
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)  # `timeout` and torchrun send it twice
            reached.append(asked())
            try:
                with module.patient_stops(False):
                    reached.append("not reached")
            except module.Stopped:
                reached.append("cut off")
            monkeypatch.setattr(module, "_SAME", 0.0)
            signal.raise_signal(signal.SIGTERM)
            reached.append("not reached")
        return 0

    try:
        assert run(main, "reconstruct", "", ["img=x"]) == 143
        assert reached == [False, True, "cut off"]
        reached.clear()

        def impatient(config) -> None:
            signal.raise_signal(signal.SIGTERM)
            reached.append("not reached")

        assert run(impatient, "reconstruct", "", ["img=x"]) == 143
        assert reached == []
        module.check_stop()  # nothing is left of it for what comes after
    finally:
        signal.signal(signal.SIGTERM, handler)


def test_rows_are_logged_as_the_logger_says(monkeypatch) -> None:
    import types

    from facerecon.run.wandb_logger import row_logger

    seen = []
    fake = types.SimpleNamespace(
        init=lambda **of: seen.append(of) or types.SimpleNamespace(log=lambda row, step=None: seen.append((row, step)))
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config = {"data": "x", "out": "o", "logger": "none"}
    row_logger(config, dict)({"a": 1.0})
    assert seen == []
    config["logger"] = "wandb"
    row_logger(config, lambda row: {"a": row["a"]}, "images")({"a": 2.0, "images": 32, "phase": "warm"})
    row_logger(config, lambda row: {"a": row["a"]})({"a": 3.0})
    assert seen[0]["config"]["data"] == "x"
    assert (seen[1], seen[3]) == (({"a": 2.0}, 32), ({"a": 3.0}, None))
    import os

    assert os.environ["WANDB_MODE"] == "offline"
    config["logger"] = "tensorboard"
    with pytest.raises(ConfigError, match="logger"):
        row_logger(config, dict)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_seed_is_a_key_only_where_something_is_drawn_with_it(script) -> None:
    sources = [*ROOT.glob(f"fit/{script}.py"), *ROOT.glob(f"train/{script}.py")]
    sources += ROOT.glob("fit/evaluation_parts.py") if script == "evaluate" else []
    text = "".join(source.read_text("utf-8") for source in sources)
    assert ("seed" in compose(script)) == bool(re.search(r"\bc(onfig)?\.seed\b", text))


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: DetailSettings(size=0), "detail.size"),
        (lambda: DetailSettings(levels=0), "detail.levels"),
        (lambda: DetailSettings(mirror=math.nan), "detail.mirror"),
        (lambda: LandmarkStart(iterations=2.5), "start.iterations"),
        (lambda: LandmarkStart(sigma=0), "start.sigma"),
        (lambda: RegressorStart(max_error=math.nan), "regressor.max_error"),
        (lambda: stages_from_config({"joint": {"learning_rate": -1}}), "learning_rate"),
        (lambda: AdversarialSettings(r1_every=0), "r1_every"),
        (lambda: AdversarialSettings(path_every=0), "path_every"),
        (lambda: ADASettings(every=0), "augment.every"),
        (lambda: CompleteSettings(levels=0), "complete.levels"),
        (lambda: Renderer(size=0), "size"),
        (lambda: Renderer(size=(224, 2.5)), "size"),
        (lambda: load_decoder("linear", components=0), "components"),
        (lambda: load_face_model(num_identity=1.5), "num_identity"),
    ],
)
def test_a_number_out_of_range_is_one_line_at_the_constructor(make, name) -> None:
    with pytest.raises(ConfigError, match=name) as error:
        make()
    assert "got" in str(error.value)


@pytest.mark.parametrize(
    "script, override",
    [
        ("render", "size=0"),
        ("render", "size=99999"),
        ("render", "size=12.5"),
        ("render", "yaw=nan"),
        ("render", "yaw=null"),
        ("render", "background=-1"),
        ("transfer", "size=0"),
        ("reconstruct", "batch=0"),
        ("reconstruct", "batch=1.5"),
        ("invert_texture", "batch=null"),
        ("invert_texture", "first=0"),
        ("evaluate", "inversion_steps=-1"),
        ("uv_dataset", "first_seed=-1"),
        ("uv_dataset", "threads=0"),
        ("edit_directions", "folds=1"),
        ("edit_directions", "truncation=nan"),
    ],
)
def test_a_number_out_of_range_is_one_line_of_a_script(script, override, capsys, tmp_path) -> None:
    folder = "fit" if (ROOT / "fit" / f"{script}.py").exists() else "train"
    main = importlib.import_module(f"{folder}.{script}").main
    missing = {
        "render": "params=x",
        "transfer": "texture=x",
        "reconstruct": "img=samples/astronaut.jpg",
        "invert_texture": "maps=samples",
    }
    more = [missing[script]] if script in missing else []
    more += ["target=ict"] if script == "transfer" else []
    assert run(main, script, "", [override, *more, f"out={tmp_path / 'o'}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and override.partition("=")[0] in said
