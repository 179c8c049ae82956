"""Whatever is wrong with what a person gives: one line that says it, the right exit code, no traceback."""

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Called, Ran, hkdpipe, started, succeeded
from PIL import Image
from tiny import EVALUATION, GENERATION, KOOPMAN, TRAINING, WORK, Inputs, make_teacher, settings

from hkdpipe.stages.generation.generate import generate
from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.students.loading import load_model

GENERATE = "generate-trajectories --out new --teacher teacher"
TRAIN = "train --out new --teacher teacher --archive archive-zarr"
AGAIN = TRAIN.replace("new", "training")
REGENERATE = GENERATE.replace("new", "archive-zarr")
EVALUATE = "evaluate --out new --teacher teacher --archive archive-zarr --checkpoint training/checkpoints"
SAMPLE = "sample --out new --model"
SETTINGS = settings(generation=GENERATION, training=TRAINING, koopman=KOOPMAN, evaluation=EVALUATION)
SHARD = "archive-zarr/states/c/1/0/0/0/0"
TAR = "archive-webdataset/shard-000001.tar"


def write(name: str, text: str) -> Callable[[], None]:
    def prepare() -> None:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)

    return prepare


def truncate(name: str) -> Callable[[], None]:
    return lambda: os.truncate(name, Path(name).stat().st_size // 2)


def flip(*names: str) -> Callable[[], None]:
    """Another bit in the middle of each file."""

    def prepare() -> None:
        for name in names:
            data = bytearray(Path(name).read_bytes())
            data[len(data) // 2] ^= 1
            Path(name).write_bytes(data)

    return prepare


def remove(name: str) -> Callable[[], None]:
    return Path(name).unlink


def edit(name: str, change: Callable[[Any], Any]) -> Callable[[], None]:
    """A JSON file with one value changed in place."""

    def prepare() -> None:
        values = json.loads(Path(name).read_text())
        change(values)
        Path(name).write_text(json.dumps(values))

    return prepare


def architecture(**values: Any) -> Callable[[], None]:
    return edit("teacher/config.json", lambda config: config["architecture"].update(values))


def picture(size: tuple[int, int], mode: str) -> Callable[[], None]:
    def prepare() -> None:
        Path("pictures").mkdir()
        for index in range(4):
            Image.new(mode, size, index).save(f"pictures/{index}.png")

    return prepare


def npz(**arrays: Any) -> Callable[[], None]:
    return lambda: np.savez("images.npz", **arrays)


def conditional_teacher() -> None:
    make_teacher(Path("teacher"), seed=0, label_dim=4)


def another_teacher() -> None:
    make_teacher(Path("teacher"), seed=1)


def flip_checkpoints() -> None:
    flip(*map(str, Path("training/checkpoints").glob("step-*/ema.safetensors")))()


def nothing() -> None:
    pass


@dataclass(frozen=True)
class Case:
    command: str
    code: int
    error: str
    """What all of the line must match."""
    prepare: Callable[[], Any] = nothing
    variables: dict[str, str] = field(default_factory=dict)


def told(command: str) -> Callable[..., Case]:
    """Cases of a command that is told more: more words, an error, and what prepares it, if anything does."""
    return lambda more, *others: Case(f"{command} {more}", 2, *others)


configured = told("config --set")
generated = told(f"{GENERATE} --set")
trained = told(f"{TRAIN} --set")
evaluated = told(f"{EVALUATE} --set")
TWO = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
CASES = {
    # The command line itself
    "unknown command": Case("trian", 2, r"no command 'trian'; did you mean 'train'\? \(see hkdpipe --help\)"),
    "unknown option": Case("train --bugdet 3", 2, r"No such option.*--bugdet.* \(see hkdpipe train --help\)"),
    "no number": Case("sample --model x --out y --count many", 2, r".*'many' is not a valid integer.*"),
    "unknown device": Case(f"{SAMPLE} training --device tpu", 2, r"--device: got 'tpu'; accepted: auto, .*"),
    "no such gpu": Case(f"{SAMPLE} training --device cuda:99", 2, r"--device: cuda:99 is not there; .*"),
    "run as one of two": Case(
        "run --run-dir new", 2, r"run: started as one of 2 processes; .*", variables=TWO
    ),
    # Configuration
    "no file": Case("run --config mine.toml", 3, r"mine\.toml: no such file"),
    "a folder": Case("run --config teacher", 2, r"teacher: Is a directory"),
    "not TOML": Case(
        "run --config a.toml", 2, r"a\.toml: not TOML: Expected ']'.*", write("a.toml", "[training")
    ),
    "a key given twice": Case(
        "run --config a.toml", 2, r"a\.toml: not TOML: .*", write("a.toml", "[training]\nema = 1\nema = 1\n")
    ),
    "not UTF-8": Case(
        "run --config a.toml", 2, r"a\.toml: not UTF-8 at byte 0", lambda: Path("a.toml").write_bytes(b"\xff")
    ),
    "unknown section": Case(
        "run --config a.toml",
        2,
        r"trainnig: unknown section; did you mean 'training'\?",
        write("a.toml", "[trainnig]"),
    ),
    "a value for a section": Case(
        "run --config a.toml", 2, r"training: got a value; accepted: .*", write("a.toml", "training = 3")
    ),
    "unknown preset": Case("run --preset digts", 2, r"--preset: no preset 'digts'; did you mean 'digits'\?"),
    "preset and file": Case(
        "run --preset digits --config a.toml", 2, r"--preset and --config: give one of .*"
    ),
    "unknown key": configured("training.bugdet=3", r"training\.bugdet: unknown key; did you mean 'budget'\?"),
    "set without value": configured("training.budget", r"--set: got 'training\.budget'; accepted: .*"),
    "set without section": configured("budget=3", r"--set: got 'budget=3'; accepted: .*"),
    "wrong type": configured(
        "training.budget=many", r'training\.budget: got "many"; accepted: an integer, at least 1'
    ),
    "negative": configured(
        "generation.count=-1", r"generation\.count: got -1; accepted: an integer, at least 1"
    ),
    "not a number": configured(
        "training.ema=nan",
        r"training\.ema: got NaN; accepted: a number or a list, each a number, at least 0, at most 1",
    ),
    "no choice": configured(
        "generation.format=hdf5", r'generation\.format: got "hdf5"; accepted: one of "zarr", "webdataset"'
    ),
    "levels the wrong way": configured(
        "generation.sigma_min=90", r"generation\.sigma_min: got 90\.0; accepted: below .*80\.0"
    ),
    **{
        f"too much held out ({command})": Case(
            f"{command} --set generation.count=10 --set training.validation=10",
            2,
            r"training\.validation: got 10; .*",
        )
        for command in ("config --check", "run --run-dir new")
    },
    "steps stored in the wrong order": configured(
        "generation.steps=40 --set 'generation.store_steps=[0, 20, 10, 40]'",
        r"generation\.store_steps: got \[0, 20, 10, 40\]; accepted: rising numbers, .* 40; or \[\], for all",
    ),
    "nothing stored in between": Case(
        f"{TRAIN.replace('archive-zarr', 'ends')} --set hkd.times=2",
        2,
        r"hkd\.times: got 2; accepted: 1, as ends holds no states in between",
        lambda: generate("teacher", Path("ends"), replace(GENERATION, store_steps=(0, 3)), **WORK),
    ),
    "churn for trajectories": generated(
        "generation.churn=40",
        r"generation\.churn: refused: trajectories must be deterministic; .* hkdpipe sample --teacher .*",
    ),
    "no such solver": generated(
        "generation.solver=rk4", r'generation\.solver: got "rk4"; accepted: one of "heun", "euler"'
    ),
    "more than the disk holds": Case(
        f"{GENERATE} --set generation.count=1000000000 --set generation.shard_size=1000000 "
        "--set generation.dtype=float32 --set generation.steps=10000",
        1,
        r"new: 1,000,000,000 trajectories x 10001 states x 256 B = 2,560\.\d TB are to be stored, "
        r".*B are free on /.*; take a smaller generation\.count, fewer generation\.store_steps, or .*",
    ),
    **{
        f"{key} too large": Case(
            f"config --set {key}={2**64}",
            2,
            rf"{key}: got {2**64}; accepted: an integer, at least 0, at most {2**64 - 1}",
        )
        for key in ("generation.seed", "training.seed", "evaluation.seed")
    },
    "teacher's seed too large": Case(
        f"train-teacher --data digits --out new --seed {2**64}",
        2,
        r"train-teacher\.seed: got .*; accepted: .*",
    ),
    "more shards than names": generated(
        "generation.count=10000001 --set generation.shard_size=1",
        r"generation\.shard_size: got 1; accepted: .*",
    ),
    "more trajectories than numbers": generated(
        "generation.count=10000000000", r"generation\.count: got 10000000000; accepted: .*"
    ),
    "levels that do not fall": generated(
        "generation.sigma_min=79.99999999999999",
        r"generation\.sigma_min, sigma_max, rho: got .*; accepted: values that give 3 falling noise levels",
    ),
    "levels out of all bounds": generated(
        "generation.rho=1e-4", r"generation\.sigma_min, .*; accepted: values that give .*"
    ),
    # Teachers
    "no teacher": Case(GENERATE.replace("teacher teacher", "teacher none"), 3, r"none: no such teacher; .*"),
    "not a teacher": Case(
        GENERATE.replace("teacher teacher", "teacher training"), 3, r"training/config\.json: .*"
    ),
    "truncated teacher": Case(
        GENERATE, 3, r"teacher/model\.safetensors: not a readable .*", truncate("teacher/model.safetensors")
    ),
    "wider teacher": Case(
        GENERATE,
        3,
        r"teacher/model\.safetensors: .* has shape .*, the network needs .*",
        architecture(model_channels=32),
    ),
    "impossible teacher": Case(
        GENERATE, 3, r"teacher/config\.json: architecture: .*", architecture(model_channels="wide")
    ),
    "unknown architecture": Case(
        GENERATE, 3, r"teacher/config\.json: architecture: .*'heads'", architecture(heads=3)
    ),
    "a width that is not grouped": Case(
        "train-teacher --data digits --out new --model-channels 9",
        2,
        r"train-teacher\.model_channels: got 9; .*",
    ),
    "no pictures": Case("train-teacher --data teacher --out new", 3, r"teacher: holds no pictures .*"),
    "pictures that cannot be halved": Case(
        "train-teacher --data pictures --out new", 3, r"pictures: pictures of 6x6; .*", picture((6, 6), "L")
    ),
    "another training of a teacher": Case(
        "train-teacher --data digits --out training --model-channels 16",
        2,
        r"training/checkpoints/step-00000012: of a training with other settings; choose another folder",
    ),
    # Classes
    "negative class": configured(
        "generation.classes=[-1]",
        r"generation\.classes: got \[-1\]; accepted: a list, each an integer, at least 0",
    ),
    "one class without a list": configured(
        "generation.classes=3", r"generation\.classes: got 3; accepted: a list, .*"
    ),
    "class of a teacher without any": generated(
        "generation.classes=[3]",
        r"generation\.classes: got \[3\]; accepted: none, as the teacher knows no classes",
    ),
    "class that the teacher does not know": generated(
        "generation.classes=[3,4]",
        r"generation\.classes: got \[3, 4\]; accepted: different classes from 0 to 3",
        conditional_teacher,
    ),
    "class given twice": generated(
        "generation.classes=[3,3]",
        r"generation\.classes: got \[3, 3\]; accepted: different .*",
        conditional_teacher,
    ),
    "sampling a class of a model without any": Case(
        f"{SAMPLE} training/checkpoints/step-00000012 --class 3",
        2,
        r"--class: got 3; accepted: none, as the model knows no classes",
    ),
    "evaluation with a teacher that knows classes": Case(
        EVALUATE,
        2,
        r"training/checkpoints/step-00000012: knows 0 classes, the teacher 4",
        conditional_teacher,
    ),
    "conditional on pictures without classes": Case(
        "train-teacher --data pictures --out new --conditional",
        3,
        r"pictures: no classes to train with --conditional; accepted: 'digits', a folder whose subfolders .*",
        picture((8, 8), "L"),
    ),
    "labels that are no classes": Case(
        "train-teacher --data images.npz --out new --conditional",
        3,
        r"images\.npz: labels: float64 \(4,\); accepted: a class number .*",
        npz(images=np.zeros((4, 8, 8), np.uint8), labels=np.arange(4.0)),
    ),
    "a label left out": Case(
        "train-teacher --data images.npz --out new --conditional",
        3,
        r"images\.npz: no image has label 1; accepted: labels from 0 to 3, .*",
        npz(images=np.zeros((4, 8, 8), np.uint8), labels=np.array([0, 2, 3, 3])),
    ),
    # Archives
    "no archive": Case(
        TRAIN.replace("archive-zarr", "none"), 3, r"none: no manifest\.json: not an archive, .*"
    ),
    "unfinished archive": Case(
        TRAIN, 3, r"archive-zarr: no manifest\.json: .*", remove("archive-zarr/manifest.json")
    ),
    "missing shard": Case(TRAIN, 3, r"archive-zarr: shard 1 \(.*\) is missing", remove(SHARD)),
    "truncated shard": Case(TRAIN, 3, r"archive-zarr: shard 1 \(.*\) is damaged: .*", truncate(SHARD)),
    "flipped bit": Case(TRAIN, 3, r"archive-zarr: shard 1 \(.*\) is damaged: its SHA-256 .*", flip(SHARD)),
    "flipped bit in a tar": Case(
        TRAIN.replace("zarr", "webdataset"),
        3,
        r"archive-webdataset: shard 1 \(.*\) is damaged: .*",
        flip(TAR),
    ),
    "evaluation of a flipped bit": Case(
        EVALUATE, 3, r"archive-zarr: shard 0 \(.*\) is damaged: .*", flip(SHARD.replace("c/1", "c/0"))
    ),
    "edited manifest": Case(
        TRAIN,
        3,
        r"archive-zarr/manifest\.json: changed since it was written: .*",
        edit("archive-zarr/manifest.json", lambda manifest: manifest["plan"].update(seed=1)),
    ),
    "manifest of nonsense": Case(
        TRAIN, 3, r"archive-zarr/manifest\.json: not JSON: .*", write("archive-zarr/manifest.json", "{")
    ),
    "another teacher's archive": Case(
        TRAIN, 2, r"archive-zarr: made with another teacher .*", another_teacher
    ),
    "evaluation with another teacher": Case(
        EVALUATE, 2, r"archive-zarr: made with another teacher .*", another_teacher
    ),
    "generation with another teacher": Case(
        REGENERATE, 2, r"archive-zarr: teacher\.sha256: this archive has .*", another_teacher
    ),
    "generation of other values": Case(
        REGENERATE + " --set generation.seed=1", 2, r"archive-zarr: seed: this archive has 0, now 1"
    ),
    "generation of fewer": Case(
        REGENERATE + " --set generation.count=10",
        2,
        r"archive-zarr: count: this archive has 20, now 10; it may only grow",
    ),
    "all held out": trained(
        "generation.count=40 --set training.validation=20",
        r"training\.validation: got 20; accepted: below the archive's 20",
    ),
    # Places
    "a file as run directory": Case("run --run-dir a", 2, r"--run-dir: a is not a folder", write("a", "")),
    "a file as output": Case(GENERATE.replace("new", "a"), 2, r".*a.*: .*", write("a", "")),
    "below a file": Case(TRAIN.replace("new", "a/b"), 2, r"a.*: .*", write("a", "")),
    "nowhere": Case(GENERATE.replace("new", "/proc/none"), 3, r"/proc/none: No such file or directory"),
    # Training
    "no backbone": Case(
        f"{TRAIN} --set training.perceptual=vgg --set training.perceptual_file=vgg.pth",
        3,
        r"vgg\.pth: missing; LPIPS needs torchvision's vgg16 weights .*",
    ),
    "not a backbone": Case(
        f"{TRAIN} --set training.perceptual=vgg --set training.perceptual_file=vgg.pth",
        3,
        r"vgg\.pth: not torchvision's vgg16 weights .*",
        write("vgg.pth", "vgg"),
    ),
    "other settings": Case(
        AGAIN + " --set training.learning_rate=0.5",
        2,
        r"training/checkpoints/step-00000012: of a training with other settings; choose another folder",
    ),
    "another network": Case(
        AGAIN + " --set koopman.hierarchy=none",
        2,
        r"training/checkpoints/step-00000012: of a training with other settings; choose another folder",
    ),
    "damaged checkpoints": Case(
        AGAIN, 3, r"training/checkpoints: every checkpoint is damaged; .*", flip_checkpoints
    ),
    "checkpoints that are gone": Case(
        AGAIN,
        3,
        r"training/checkpoints: no checkpoint, though training/metrics\.csv says .*; put one back, or .*",
        lambda: shutil.rmtree("training/checkpoints"),
    ),
    "metrics of something else": Case(
        TRAIN,
        3,
        r"new/checkpoints: no checkpoint, though new/metrics\.csv says .*",
        write("new/metrics.csv", "name,nfe\na,1\n"),
    ),
    "a batch for two": Case(
        f"{TRAIN} --set training.batch_size=5",
        2,
        r"training\.batch_size: got 5; accepted: a multiple of the 2 processes",
        variables=TWO,
    ),
    "streaming in no blocks": trained(
        "training.streaming=true",
        r'training\.streaming: got true; accepted: false, or training\.order = "blocks"',
    ),
    "streaming no tars": trained(
        "training.streaming=true --set training.order=blocks",
        r'training\.streaming: got true; accepted: false, as archive-zarr is of the form "zarr", not .*',
    ),
    "streaming past damage": trained(
        "training.streaming=true --set training.order=blocks --set training.on_damage=skip",
        r'training\.on_damage: got "skip"; accepted: "stop", as training\.streaming is on',
    ),
    "a URL of nothing": Case(
        "train --out new --teacher teacher --archive nothing://x", 3, r"nothing://x: cannot be read .*"
    ),
    "a URL to write to": Case(
        "generate-trajectories --out s3://bucket/archive --teacher teacher",
        2,
        r"Invalid value for '--out': got 's3://bucket/archive'; accepted: a folder or file .*",
    ),
    "a URL to verify": Case(
        "verify s3://bucket/archive",
        2,
        r"Invalid value for 'ARCHIVE': got 's3://bucket/archive'; accepted: .*",
    ),
    "two without a meeting place": Case(TRAIN, 2, r"environment of torchrun: .*MASTER_ADDR.*", variables=TWO),
    "the third of two": Case(
        TRAIN,
        2,
        r"hkdpipe: error \(rank 2\): environment of torchrun: RANK=2, .*",
        variables={**TWO, "RANK": "2"},
    ),
    "one of none": Case(TRAIN, 2, r"environment of torchrun: .*", variables={**TWO, "WORLD_SIZE": "0"}),
    "a rank of letters": Case(
        TRAIN, 2, r"environment of torchrun: .*", variables={**TWO, "LOCAL_RANK": "one"}
    ),
    # Evaluation and models
    "no checkpoint": Case(
        EVALUATE.replace("training/checkpoints", "teacher"), 3, r"teacher: no checkpoint; accepted: .*"
    ),
    "evaluation of damaged checkpoints": Case(
        EVALUATE, 3, r"training/checkpoints: every checkpoint is damaged; .*", flip_checkpoints
    ),
    "pictures of another size": evaluated(
        "evaluation.reference=pictures", r"evaluation\.reference: .*", picture((16, 16), "L")
    ),
    "pictures in colour": evaluated(
        "evaluation.reference=pictures", r"evaluation\.reference: .*", picture((8, 8), "RGB")
    ),
    "no reference, said before anything is generated": Case(
        "run --run-dir new --preset digits --set evaluation.reference=mine.npz",
        3,
        r"evaluation\.reference: mine\.npz: missing",
    ),
    "no channels": Case(
        "train-teacher --data digits --out new --channel-mult ''",
        2,
        r"train-teacher\.channel_mult: got \[\]; accepted: at least one integer",
    ),
    "a pickle of nothing": Case(
        "generate-trajectories --out new --teacher t.pt",
        3,
        r"t\.pt: not a state dict \(.*\)",
        lambda: Path("t.pt").write_bytes(b"\x80\x02."),
    ),
    "facts of a teacher that are no table": Case(
        GENERATE,
        3,
        r"teacher/config\.json: about: got \[1\]; accepted: a table",
        edit("teacher/config.json", lambda config: config.update(about=[1])),
    ),
    "an open quote in what starts a container": Case(
        "submit --run-dir run --cluster c.toml --dry-run",
        2,
        r"c\.toml: cluster\.container: not words of a shell: No closing quotation",
        write("c.toml", '[cluster]\ncontainer = "a \'b"'),
    ),
    "too few pictures": evaluated(
        "evaluation.reference=images.npz",
        r"evaluation\.reference: .*",
        npz(images=np.zeros((1, 8, 8), np.uint8)),
    ),
    "images under another name": Case(
        f"{EVALUATE} --set evaluation.reference=images.npz",
        3,
        r"images\.npz: holds no array named 'images'",
        npz(pictures=np.zeros((4, 8, 8), np.uint8)),
    ),
    "samples of no teacher": Case(
        "sample --out new --teacher none", 3, r"none: no such teacher; accepted: .*"
    ),
    "a solver that samples nothing": Case(
        "sample --out new --teacher teacher --solver rk4",
        2,
        r"Invalid value for '--solver': 'rk4' is not one of 'heun', 'euler'\. \(see hkdpipe sample --help\)",
    ),
    "a single step": Case(
        "sample --out new --teacher teacher --steps 1",
        2,
        r"Invalid value for '--steps': 1 is not in the range x>=2\. .*",
    ),
    "no model": Case(f"{SAMPLE} none", 3, r"none: no such model; accepted: .*"),
    "an empty folder": Case(f"{SAMPLE} empty", 3, r"empty: no such model; .*", lambda: Path("empty").mkdir()),
    "a teacher as model": Case(
        f"{SAMPLE} teacher", 3, r"teacher/config\.json: not the configuration of a model; methods: hkd.*"
    ),
    "a program of torch's": Case(
        f"{SAMPLE} model.pt2", 2, r"--model: got 'model\.pt2', for torch\.export\.load; accepted: an export.*"
    ),
    "not an ONNX model": Case(
        f"{SAMPLE} model.onnx", 3, r"model\.onnx: not a readable ONNX model .*", write("model.onnx", "onnx")
    ),
    "truncated checkpoint": Case(
        f"{SAMPLE} training/checkpoints/step-00000012",
        3,
        r"training/checkpoints/step-00000012/ema\.safetensors: damaged .*",
        truncate("training/checkpoints/step-00000012/ema.safetensors"),
    ),
}


@pytest.fixture
def folder(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a teacher, archives and a training to spoil."""
    shutil.copytree(inputs.folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def arguments(command: str) -> list[str]:
    """The words of a command; tiny settings before the given ones where the command takes any."""
    name, *others = shlex.split(command)
    takes = name in ("generate-trajectories", "train", "evaluate")
    return [name, *(SETTINGS if takes else []), *others]


def check_refused(ran: Ran, code: int, error: str) -> None:
    assert "Traceback" not in ran.err
    assert ran.code == code, ran.err
    assert len(ran.errors) == 1, ran.err
    assert re.fullmatch(error, ran.errors[0]), ran.errors[0]
    assert ran.err.splitlines()[-1].endswith(ran.errors[0])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_one_line_and_a_code(
    case: Case, folder: Path, called: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.prepare()
    for name, value in case.variables.items():
        monkeypatch.setenv(name, value)
    check_refused(called(*arguments(case.command)), case.code, case.error)


@pytest.mark.parametrize("name", ["unknown key", "flipped bit", "damaged checkpoints"])
def test_the_same_from_a_process_of_its_own(name: str, folder: Path) -> None:
    case = CASES[name]
    case.prepare()
    check_refused(hkdpipe(folder, *arguments(case.command)), case.code, case.error)


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (truncate("export/model.safetensors"), r"export/model\.safetensors: damaged \(its checksum .*\)"),
        (flip("export/model.safetensors"), r"export/model\.safetensors: damaged \(its checksum .*\)"),
        (remove("export/model.safetensors"), r"export/model\.safetensors: missing"),
        (truncate("export/config.json"), r"export/config\.json: not JSON: .*"),
        (
            edit("export/config.json", lambda config: config["architecture"].update(model_channels=32)),
            r"export/model\.safetensors: .* has shape .*",
        ),
        (
            edit("export/config.json", lambda config: config["koopman"].update(time="fast")),
            r"export/config\.json: not the configuration of a model of method 'hkd' .*",
        ),
    ],
)
def test_a_damaged_export(damage: Callable[[], None], error: str, folder: Path, called: Called) -> None:
    load_model("training/checkpoints/step-00000012").save(Path("export"), {})
    assert called(*shlex.split(f"{SAMPLE} export --count 2")).code == 0
    damage()
    check_refused(called(*shlex.split(f"{SAMPLE} export")), 3, error)


def test_one_damaged_checkpoint_is_passed_over(folder: Path, called: Called) -> None:
    """And the training goes on from the one before to the same end."""
    last = Path("training/checkpoints/step-00000012")
    before = {path.name: path.read_bytes() for path in last.iterdir()}
    flip(str(last / "ema.safetensors"))()
    ran = succeeded(called(*arguments(AGAIN)))
    assert f"checkpoint passed over: {last}/ema.safetensors: damaged" in ran.err
    assert {path.name: path.read_bytes() for path in last.iterdir()} == before


# Memory and disks


def gpu_is_full(*_: Any, **__: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines.")


def memory_is_full(*_: Any, **__: Any) -> None:
    torch.empty(2**55)


@pytest.mark.parametrize("allocate", [gpu_is_full, memory_is_full])
def test_out_of_memory(
    allocate: Callable[..., None], folder: Path, called: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HKD, "forward", allocate)
    ran = called(*arguments(TRAIN))
    check_refused(ran, 1, r"training: out of memory \(.*allocate.*\); take a smaller batch_size")


def test_more_samples_than_memory(folder: Path, called: Called) -> None:
    ran = called(*shlex.split(f"{SAMPLE} training/checkpoints/step-00000012 --count {10**13}"))
    check_refused(ran, 1, r"sample: out of memory \(.*\); .*")


class SmallDisk:
    """A file system of its own at `small`."""

    def mount(self, *options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "hkdpipe-test", "small"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"this machine lets nobody mount a small disk here: {done.stderr.strip()}")

    def __init__(self, *options: str) -> None:
        Path("small").mkdir()
        self.mount(*options)


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Callable[..., SmallDisk]]:
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("only root may mount a small disk")
    yield SmallDisk
    subprocess.run(["umount", str(folder / "small")], capture_output=True)


@pytest.mark.parametrize(
    ("command", "size", "result"),
    [
        (GENERATE, "24k", ""),
        (TRAIN, "1800k", "checkpoints/step-00000012"),
        (EVALUATE, "24k", "rows"),
        (EVALUATE, "300k", "export"),
    ],
)
def test_a_full_disk(
    command: str, size: str, result: str, small_disk: Callable[..., SmallDisk], called: Called
) -> None:
    """One line; with more space the same command goes on, to the same result."""
    disk = small_disk(f"size={size}")
    ran = called(*arguments(command.replace("new", "small/new")))
    check_refused(ran, 1, r"small/new.*: disk full \(No space left on device\); free some space and .*")
    disk.mount("remount", "size=64m")
    succeeded(called(*arguments(command.replace("new", "small/new"))))
    succeeded(called(*arguments(command)))
    expected, found = (
        {
            str(path.relative_to(folder)): path.read_bytes()
            for path in (folder / result).rglob("*")
            if path.is_file()
        }
        for folder in (Path("new"), Path("small/new"))
    )
    assert expected
    assert found == expected


def test_a_disk_that_two_workers_fill(
    folder: Path, small_disk: Callable[..., SmallDisk], called: Called
) -> None:
    """Who finds it full says so; with more space the archive is the one that had it from the beginning."""
    disk = small_disk("size=36k")
    command = arguments(f"{GENERATE.replace('new', 'small/new')} --set generation.steps=9")
    with (
        started(folder, *command, "--worker", "0/2") as one,
        started(folder, *command, "--worker", "1/2") as other,
    ):
        ends = [one.end(), other.end()]
    assert 1 in {ran.code for ran in ends}
    # One that begins when the other has filled it sees so beforehand.
    full = (
        r"small/new.*: (disk full \(No space left on device\); free some space and|.* are to be stored,) .*"
    )
    for ran in ends:
        if ran.code:
            check_refused(ran, 1, full)
    assert not list(Path("small").rglob("*.tmp"))
    disk.mount("remount", "size=64m")
    succeeded(called(*command))
    succeeded(called(*[word.replace("small/", "") for word in command]))
    found, expected = (
        {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        for out in (Path("small/new"), Path("new"))
    )
    assert found == expected


def test_a_read_only_disk(small_disk: Callable[..., SmallDisk], called: Called) -> None:
    small_disk("ro")
    ran = called(*arguments(GENERATE.replace("new", "small/new")))
    check_refused(ran, 2, r"small/new: Read-only file system")
