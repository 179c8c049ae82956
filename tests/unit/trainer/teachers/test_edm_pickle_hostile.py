"""Hostile and damaged snapshots: nothing in them runs, each gets one line, none takes much time or memory."""

import contextlib
import pickle
import random
import struct
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edm_fixtures import read_edm
from edm_snapshots import Call, persistent, snapshot
from process_memory import growth
from torch import nn

from hkdpipe.manifests.ground.errors import InputError
from hkdpipe.trainer.teachers.snapshots import Snapshot

MEGABYTE = 1_000_000


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as raised:
        read_edm(path)
    begin, cause = str(raised.value).split(": not an EDM snapshot: ")
    assert begin == str(path)
    assert cause.isprintable()
    assert len(cause) < 240
    return cause


# A small assembler of pickles.


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def blob(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def named(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


ENCODE = named("_codecs", "encode")
MODULE_DICT = named("torch.nn.modules.container", "ModuleDict")
PERSISTENT = named("torch_utils.persistence", "_reconstruct_persistent_obj")
PARAMETER = named("torch._utils", "_rebuild_parameter")
TENSOR = named("torch._utils", "_rebuild_tensor_v2")
STORAGE = named("torch.storage", "_load_from_bytes")
SCALAR = named("numpy.core.multiarray", "scalar")


def called(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


def kept(index: int) -> bytes:
    """What was memoized before."""
    return b"j" + struct.pack("<I", index)


def top(value: bytes, protocol: int = 4) -> bytes:
    return b"\x80" + bytes([protocol]) + b"}" + text("ema") + value + b"s."


def network(*attributes: bytes) -> bytes:
    """An `ema` with these attributes, that is, texts and values in turn."""
    state = b"}(" + b"".join(attributes) + text("_init_kwargs") + b"}u"
    meta = b"}(" + text("type") + text("class") + text("class_name") + text("EDMPrecond")
    return called(PERSISTENT, meta + text("state") + state + b"u")


def stored(*pickles: bytes, count: int = 0, values: bytes = b"") -> bytes:
    """A call of torch's reader of storages."""
    stream = b"".join(pickles) + struct.pack("<q", count) + values
    return called(STORAGE, blob(stream))


MAKE = b"os\nmkdir\n"
# Each makes the folder `proof` when Python's unpickler reads it, and is refused in words naming the offender.
RUNS_CODE: dict[str, tuple[Callable[[str], bytes], str]] = {
    "GLOBAL and REDUCE": (lambda proof: top(called(b"c" + MAKE, text(proof))), "it asks for os.mkdir, "),
    "protocol 2": (lambda proof: top(called(b"c" + MAKE, text(proof)), 2), "it asks for os.mkdir, "),
    "STACK_GLOBAL": (lambda proof: top(called(named("os", "mkdir"), text(proof))), "it asks for os.mkdir, "),
    "INST": (lambda proof: top(b"(" + text(proof) + b"i" + MAKE), "it asks for os.mkdir, "),
    "OBJ": (lambda proof: top(b"(c" + MAKE + text(proof) + b"o"), "it asks for os.mkdir, "),
    "posix": (lambda proof: top(called(named("posix", "mkdir"), text(proof))), "it asks for posix.mkdir, "),
    "dotted": (
        lambda proof: top(called(named("torch._utils", "logging.os.mkdir"), text(proof))),
        "it asks for torch._utils.logging.os.mkdir, ",
    ),
    "a name that the allowed one begins": (
        lambda proof: top(
            called(named("collections", "OrderedDict.fromkeys"), called(b"c" + MAKE, text(proof)))
        ),
        "it asks for collections.OrderedDict.fromkeys, ",
    ),
    "getattr": (
        lambda proof: top(
            called(called(named("builtins", "getattr"), named("shutil", "os"), text("mkdir")), text(proof))
        ),
        "it asks for builtins.getattr, ",
    ),
    "eval": (
        lambda proof: top(called(named("builtins", "eval"), text(f"__import__('os').mkdir({proof!r})"))),
        "it asks for builtins.eval, ",
    ),
    "exec": (
        lambda proof: top(called(b"c__builtin__\nexec\n", text(f"import os; os.mkdir({proof!r})")), 2),
        "it asks for __builtin__.exec, ",
    ),
    "beside the network": (
        lambda proof: (
            b"\x80\x04}(" + text("ema") + b"N" + text("x") + called(b"c" + MAKE, text(proof)) + b"u."
        ),
        "it asks for os.mkdir, ",
    ),
    "first pickle of a storage": (
        lambda proof: top(stored(b"\x80\x02" + called(b"c" + MAKE, text(proof)) + b".")),
        "in a storage: it asks for os.mkdir, ",
    ),
    "last pickle of a storage": (
        lambda proof: top(
            stored(
                pickle.dumps(0x1950A86A20F9469CFC6C, 2),
                pickle.dumps(1001, 2),
                pickle.dumps({"little_endian": True}, 2),
                b"\x80\x02" + called(b"c" + MAKE, text(proof)) + b".",
            )
        ),
        "in a storage: it asks for os.mkdir, ",
    ),
}


@pytest.mark.parametrize("name", RUNS_CODE)
def test_code_is_not_run(tmp_path: Path, name: str) -> None:
    make, cause = RUNS_CODE[name]
    path, proof = tmp_path / "hostile.pkl", tmp_path / "executed"
    path.write_bytes(make(str(proof)))
    with contextlib.suppress(Exception):
        pickle.loads(path.read_bytes())
    assert proof.exists(), "harmless even to Python's unpickler, so this tests nothing"
    proof.rmdir()
    assert refusal(path) == f"{cause}which is not read"
    assert not proof.exists()


ORDERED = b"ccollections\nOrderedDict\n"
DOUBLE = called(named("numpy", "dtype"), text("f8"), b"\x89", b"\x88") + b"K\x03" + text("<") + b"\x86b"


@pytest.mark.parametrize(
    ("ema", "cause"),
    [
        (b"csubprocess\nPopen\n)\x81", "it asks for subprocess.Popen, which is not read"),
        (
            named("torch.nn.modules.container", "Moduledict"),
            "it asks for torch.nn.modules.container.Moduledict",
        ),
        (text("os") + b"K\x01\x93", "it asks for an object whose name is no text"),
        (b"cos\n" + b"x" * 300, "it holds a name without an end"),
        (b"cos\nmk\xffdir\n", "it holds text that is not UTF-8"),
        (named("os\n\x1b[31m", "x" * 3000), "it asks for os\\n\\x1b[31m.xxx"),
        (ORDERED + b"}b", "it sets the state of what has none"),
        (b"}}b", "it sets the state of what has none"),
        (ORDERED + b"K\x01R", "it calls what cannot be called"),
        (text("os.system") + b")R", "it calls what cannot be called"),
        (called(ORDERED, b"]"), "it makes an OrderedDict or EasyDict with arguments"),
        (called(MODULE_DICT, b"}"), "it makes a ModuleDict with arguments"),
        (called(named("builtins", "set"), text("abc")), "it makes a set of something else than a list"),
        (called(ENCODE, text("a"), text("utf-7")), "it encodes something else than a text"),
        (called(ENCODE, text("\u0100"), text("latin1")), "it holds a text for bytes that has"),
        (b"K\x01Q", "it uses the opcode BINPERSID at byte"),
        (b"Pid\n", "it uses the opcode PERSID at byte"),
        (b"\x82\x01", "it uses the opcode EXT1 at byte"),
        (b"\x83\x01\x00", "it uses the opcode EXT2 at byte"),
        (ORDERED + b")}\x92", "it uses the opcode NEWOBJ_EX at byte"),
        (b"\xff", "it uses the opcode 0xff at byte"),
        (b"\x80\x04N", "it uses the opcode PROTO at byte"),
        (b"(iposix\nsystem\n", "it asks for posix.system, which is not read"),
        (b"(icollections\nOrderedDict\n", "it uses the opcode INST, which is not read"),
        (b"j\x00\x00\x00\x00", "its opcodes do not fit together at byte"),
        (b"0", "it uses the opcode POP at byte"),
        (b"t", "its opcodes do not fit together at byte"),
        (b"(", "its opcodes do not fit together at byte"),
        (b"\x87", "its opcodes do not fit together at byte"),
        (b"}(Nu", "its opcodes do not fit together at byte"),
        (b"}N]s", "it holds a dict with a key that is no text"),
        (b"NNa", "it fills what is no list at byte"),
        (b"NNNs", "it fills what is no dict at byte"),
        (b")(Ne", "it fills what is no list at byte"),
        (called(SCALAR, DOUBLE, blob(bytes(7))), "it holds a numpy scalar that"),
        (stored(b"\x80\x02N."), "in a storage: it is no pickle of protocol"),
        (stored(b"\x80\x02ctorch\nFloatStorage\n)R."), "in a storage: it calls what cannot be called"),
        (stored(b"\x80\x02ctorch\nFloatStorage\n}b."), "in a storage: it sets the state of what has none"),
        (stored(b"\x80\x02" + ORDERED + b"."), "in a storage: it asks for collections.OrderedDict, which"),
        (stored(*[b"\x80\x02N."] * 5), "it holds a storage that is not laid out as torch does"),
        (stored(b"\x80\x02" + blob(b"x" * 5000) + b"."), "in a storage: it ends early"),
        (called(STORAGE, text("a")), "it makes a storage of something else"),
        (called(TENSOR, b"N"), "it holds a tensor that is not laid out"),
        (called(PARAMETER, b"N\x88}"), "it holds a parameter that is not laid"),
        (called(PERSISTENT, b"}"), "it holds a persistent"),
    ],
)
def test_what_no_snapshot_needs_is_refused(tmp_path: Path, ema: bytes, cause: str) -> None:
    path = tmp_path / "hostile.pkl"
    path.write_bytes(top(ema))
    assert refusal(path).startswith(cause)


# Storages and tensors that are not what they say.


def storage(
    *, dtype: str = "FloatStorage", count: int = 6, counted: int = 6, values: int = 24, **other: Any
) -> bytes:
    """The stream of a storage in which something may be wrong."""
    system = {"little_endian": other.get("little_endian", True)}
    described = text("storage") + f"ctorch\n{dtype}\n".encode() + text("key") + text("cpu")
    number = b"\x8a\xff" + (count.to_bytes(255, "little", signed=True))
    return stored(
        pickle.dumps(other.get("magic", 0x1950A86A20F9469CFC6C), 2),
        pickle.dumps(other.get("version", 1001), 2),
        pickle.dumps(system, 2),
        b"\x80\x02(" + described + number + other.get("view", b"N") + b"tQ.",
        b"\x80\x02]" + text(other.get("key", "key")) + b"a.",
        count=counted,
        values=bytes(values),
    )


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        ({"magic": 1}, "it holds a storage that is not laid out as torch does"),
        ({"version": 1002}, "it holds a storage that is not laid out as torch does"),
        ({"little_endian": False}, "it holds a storage that is not laid out as torch does"),
        ({"key": "other"}, "it holds a storage that is not laid out as torch does"),
        ({"view": b")"}, "it holds a storage that is not laid out as torch does"),
        ({"count": 5}, "it holds a storage of 5 values that has 24 bytes of torch.float32"),
        ({"counted": 5}, "it holds a storage of 6 values that has 24 bytes of torch.float32"),
        ({"values": 28}, "it holds a storage of 6 values that has 28 bytes of torch.float32"),
        ({"values": 23}, "it holds a storage of 6 values that has 23 bytes of torch.float32"),
        ({"count": -6}, "it holds a storage of -6 values that has 24 bytes of torch.float32"),
        ({"count": 2**2000}, "it holds a storage of 1148"),
        ({"dtype": "DoubleStorage"}, "it holds a storage of 6 values that has 24 bytes of torch.float64"),
        ({"dtype": "ComplexFloatStorage"}, "in a storage: it asks for torch.ComplexFloatStorage, which"),
        ({"dtype": "BoolStorage"}, "in a storage: it asks for torch.BoolStorage, which is not read"),
    ],
)
def test_storage_that_is_not_what_it_says(tmp_path: Path, given: dict[str, Any], cause: str) -> None:
    path = tmp_path / "hostile.pkl"
    path.write_bytes(top(storage(**given)))
    assert refusal(path).startswith(cause)


def test_storage_that_is_what_it_says(tmp_path: Path) -> None:
    """Else the test above would show nothing."""
    path = tmp_path / "good.pkl"
    path.write_bytes(top(network(text("_unused"), storage())))
    assert read_edm(path).class_name == "EDMPrecond"


def tensor(storage: torch.TypedStorage, *layout: Any) -> Call:
    """A tensor over the storage, pickled with any offset, sizes and strides (and metadata)."""
    offset, sizes, strides, *metadata = layout
    return Call(
        torch._utils._rebuild_tensor_v2, storage, offset, sizes, strides, False, OrderedDict(), *metadata
    )


OUTSIDE = "it holds a tensor that does not fit into its storage of 12 values"
NUMBERS = "it holds a tensor whose sizes, strides or offset are no numbers from 0"
ZERO = "it holds a tensor with a size or a stride of 0"


@pytest.mark.parametrize(
    ("layout", "cause"),
    [
        ((0, (3, 5), (5, 1)), OUTSIDE),
        ((1, (3, 4), (4, 1)), OUTSIDE),
        ((0, (3, 4), (5, 1)), OUTSIDE),
        ((12, (), ()), OUTSIDE),
        ((2**64, (1,), (1,)), OUTSIDE),
        ((0, (2**64,), (1,)), OUTSIDE),
        ((0, (5, 5), (1, 1)), OUTSIDE),
        ((0, (2**40,), (0,)), ZERO),
        ((0, (2, 2), (0, 1)), ZERO),
        ((0, (0, 2**64), (1, 1)), ZERO),
        ((0, (2,), (-1,)), NUMBERS),
        ((11, (2,), (-1,)), NUMBERS),
        ((0, (-1,), (1,)), NUMBERS),
        ((-1, (1,), (1,)), NUMBERS),
        ((0, (2.0,), (1,)), NUMBERS),
        ((0, (True,), (1,)), NUMBERS),
        ((0, ("2",), (1,)), NUMBERS),
        ((0, ([2],), (1,)), NUMBERS),
        ((0, (2, 2), (1,)), "it holds a tensor of 2 sizes and 1 strides"),
        ((0, (1,) * 9, (1,) * 9), "it holds a tensor of 9 sizes and 9 strides"),
        ((0, (1,), (1,), {"conj": True}), "it holds a tensor that is conjugated or negated"),
    ],
)
def test_tensor_outside_of_its_storage(tmp_path: Path, layout: tuple[Any, ...], cause: str) -> None:
    path = tmp_path / "hostile.pkl"
    path.write_bytes(
        snapshot(
            persistent("EDMPrecond", {"_buffers": {"u": tensor(torch.zeros(12)._typed_storage(), *layout)}})
        )
    )
    assert refusal(path) == cause


def test_tensor_that_fills_its_storage(tmp_path: Path) -> None:
    """Else the test above would show nothing. The stride of the single row means nothing, as in torch."""
    path, base = tmp_path / "good.pkl", torch.arange(12.0)
    whole = tensor(base._typed_storage(), 0, (1, 3, 4), (2**64, 4, 1), {})
    state = {"_init_kwargs": {}, "_buffers": {"u": whole}}
    path.write_bytes(snapshot(persistent("EDMPrecond", state)))
    assert torch.equal(read_edm(path).state_dict["u"], base.view(1, 3, 4))


# Files that would take much more time or memory than their size lets expect.


def list_of(*values: bytes) -> bytes:
    return b"](" + b"".join(values) + b"e"


def laughs() -> bytes:
    """A list whose last item is ten times the one before it, which is ten times the one before it, ..."""
    return list_of(b"N\x94", *(list_of(kept(level) * 10) + b"\x94" for level in range(12)))


def many_times(module: Any) -> Any:
    """A network that reaches the same module under 1,000 names."""
    return persistent("EDMPrecond", {"_modules": {str(index): module for index in range(1000)}})


def modules_within_modules() -> bytes:
    module = nn.ModuleDict()
    for _ in range(12):
        module = nn.ModuleDict({str(index): module for index in range(10)})
    return snapshot(many_times(module))


def module_within_itself() -> bytes:
    module = nn.ModuleDict()
    module.update({"first": module, "second": module})
    return snapshot(many_times(module))


def long_names() -> bytes:
    one = nn.Parameter(torch.zeros(1))
    module = nn.ParameterDict()
    module._parameters = dict.fromkeys(map(str, range(10_000)), one)
    inner = persistent("Inner", {"_parameters": module._parameters})
    for _ in range(12):
        inner = persistent("Outer", {"_modules": {"x" * 4000: inner}})
    return snapshot(persistent("EDMPrecond", {"_modules": {"model": inner}}))


def one_storage_in_many_tensors() -> bytes:
    storage = torch.zeros(MEGABYTE)._typed_storage()
    tensors = {str(index): tensor(storage, index, (MEGABYTE // 2,), (1,)) for index in range(1000)}
    return snapshot(persistent("EDMPrecond", {"_init_kwargs": {}, "_buffers": tensors}))


def one_text_in_many_strings() -> bytes:
    encode, long = ENCODE + b"\x94", text("x" * MEGABYTE) + b"\x94"
    return top(list_of(encode, long, *[called(kept(0), kept(1), text("latin1"))] * 1000))


def wide_text() -> bytes:
    """Its one wide character would make each of the others take four bytes."""
    return top(called(ENCODE, text("x" * 60 * MEGABYTE + "\U0001f600"), text("latin1")))


def tensors_of_one_value() -> bytes:
    """Each takes ten times the memory of what describes it here."""
    rebuild = TENSOR + b"\x94"
    layout = b"(" + storage() + b"K\x00))\x89}t\x94"
    tensors = b"".join(text(f"{index:x}") + kept(0) + kept(1) + b"R" for index in range(60_000))
    first = text("first") + list_of(rebuild, layout)
    return b"\x80\x04}(" + first + text("ema") + network(text("_buffers"), b"}(" + tensors + b"u") + b"u."


MANY = "it holds more objects than any EDM snapshot"
DEEP = "attribute 'a' is nested more than 16 deep"
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "memo index": (lambda: top(b"Nr\xff\xff\xff\x7f"), "it numbers its objects out of order at byte"),
    "bytes of 4 GiB": (lambda: top(b"B\xff\xff\xff\xff"), "it ends early"),
    "bytes of 4 EiB": (lambda: top(b"\x8e" + struct.pack("<Q", 2**62)), "it ends early"),
    "bytes of -1": (lambda: top(b"\x8e" + struct.pack("<q", -1)), "it ends early"),
    "bytearray of 4 EiB": (lambda: top(b"\x96" + struct.pack("<Q", 2**62)), "it uses the opcode BYTEARRAY8"),
    "text of 4 GiB": (lambda: top(b"X\xff\xff\xff\xff"), "it ends early"),
    "text of 4 EiB": (lambda: top(b"\x8d" + struct.pack("<Q", 2**62)), "it ends early"),
    "frame of 4 EiB": (lambda: top(b"\x95" + struct.pack("<Q", 2**62)), "it ends early"),
    "number of 2 GiB": (lambda: top(b"\x8b\xff\xff\xff\x7f"), "it uses the opcode LONG4"),
    "dicts": (lambda: top(list_of(b"}" * 5 * MEGABYTE)), MANY),
    "lists of one": (lambda: top(list_of(b"]Na" * 5 * MEGABYTE)), MANY),
    "dicts of one": (lambda: top(list_of(text("a") + b"\x94", (b"}" + kept(0) + b"Ns") * MEGABYTE)), MANY),
    "marks": (lambda: top(b"(" * 5 * MEGABYTE), MANY),
    "memo": (lambda: top(b"N" + b"\x94" * 5 * MEGABYTE), MANY),
    "texts": (lambda: top(list_of(text("\U0001f600" + "x" * 4000) * 5000)), MANY),
    "tuples as a key": (
        lambda: top(b"})" + b"\x85" * 200_000 + b"Ns"),
        "it holds a dict with a key that is no",
    ),
    "tuples": (lambda: top(network(text("a"), b")" + b"\x85" * 200_000)), DEEP),
    "lists": (lambda: top(network(text("a"), b"]" * 100_000 + b"a" * 99_999)), DEEP),
    "list within itself": (lambda: top(network(text("a"), b"]\x94" + kept(0) + b"a")), DEEP),
    "laughs": (lambda: top(network(text("a"), laughs())), MANY),
    "modules within modules": (modules_within_modules, MANY),
    "module within itself": (module_within_itself, "its modules are nested more than 16 deep"),
    "module with many private attributes": (
        lambda: snapshot(many_times(persistent("Linear", dict.fromkeys(map("_{}".format, range(10_000)))))),
        MANY,
    ),
    "module with many buffers left out": (
        lambda: snapshot(
            many_times(persistent("Linear", {"_non_persistent_buffers_set": list(map(str, range(10_000)))}))
        ),
        MANY,
    ),
    "long names": (long_names, MANY),
    "one storage in many tensors": (
        one_storage_in_many_tensors,
        "it holds a tensor that is not all of its storage",
    ),
    "tensors of one value": (tensors_of_one_value, "it holds a tensor that is not all of its storage"),
    "one text in many strings": (one_text_in_many_strings, "its texts decode to more than the file"),
    "wide text": (wide_text, "it holds a text for bytes that has no Latin-1 code"),
}
# In a process of its own, which has no freed memory at hand that would hide a growth.
MEASURE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from process_memory import growth
from hkdpipe.manifests.ground.errors import InputError
from edm_fixtures import read_edm

def said(path):
    try:
        read_edm(path)
    except InputError as error:
        return words.append(str(error))

for path in map(Path, sys.argv[2:]):
    words = []
    print(growth(lambda: said(path)), *words)
"""


@pytest.fixture(scope="module")
def defused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, int, str]]:
    """For each bomb its size, the growth of memory while it was read, and what was said."""
    folder = tmp_path_factory.mktemp("bombs")
    paths = []
    for name, (make, _) in BOMBS.items():
        path = folder / f"{name}.pkl"
        path.write_bytes(make())
        paths.append(path)
    command = [sys.executable, "-c", MEASURE, Path(__file__).parents[3] / "support", *paths]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = {}
    for path, line in zip(paths, done.stdout.splitlines(), strict=True):
        grown, said = line.split(" ", 1)
        found[path.stem] = (
            path.stat().st_size,
            int(grown),
            said.removeprefix(f"{path}: not an EDM snapshot: "),
        )
    return found


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_within_allowance(defused: dict[str, tuple[int, int, str]], name: str) -> None:
    size, grown, said = defused[name]
    assert said.startswith(BOMBS[name][1])
    assert grown < 100 * MEGABYTE + 2 * size


# Random damage.


class EDMPrecond(nn.Module):
    """The name counts."""

    def __init__(self) -> None:
        super().__init__()
        self.sigma_min, self.sigma_max, self._init_kwargs = 0.002, 80.0, {"channel_mult": [1, 2]}
        self.model = nn.ModuleDict({"enc": nn.Conv2d(2, 3, 3), "dec": nn.Linear(3, 2, bias=False)})
        self.register_buffer("freqs", torch.randn(4))


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One to three changes: a bit or byte changed, a span cut out, inserted or repeated, the rest cut off."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        place, length = rng.randrange(len(changed)), rng.choice([1, 1, 2, 4, 8, 40, 400])
        match rng.randrange(7):
            case 0 | 1:
                changed[place] ^= 1 << rng.randrange(8)
            case 2:
                changed[place] = rng.randrange(256)
            case 3:
                del changed[place : place + length]
            case 4:
                changed[place:place] = rng.randbytes(length)
            case 5:
                other = rng.randrange(len(changed))
                changed[other:other] = changed[place : place + length]
            case 6:
                del changed[max(place, 1) :]
    return bytes(changed)


def assert_whole(found: Snapshot, size: int) -> None:
    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(type(key) is str and plain(item) for key, item in value.items())
        if isinstance(value, list | tuple):
            return all(map(plain, value))
        return type(value) in (int, float, bool, str, type(None))

    assert all(map(plain, (found.class_name, found.init_kwargs, found.attributes, found.modules)))
    assert all(value.is_contiguous() and value.device.type == "cpu" for value in found.state_dict.values())
    assert sum(value.nbytes for value in found.state_dict.values()) <= size


def assert_survives(data: bytes, path: Path, rounds: int, seed: int) -> None:
    rng = random.Random(seed)
    refusals = []
    for _ in range(rounds):
        changed = damaged(data, rng)
        path.write_bytes(changed)
        try:
            assert_whole(read_edm(path), len(changed))
        except InputError as error:
            refusals.append(str(error))
    assert 0 < len(refusals) < rounds
    assert all(said.startswith(f"{path}: not an EDM snapshot: ") and said.isprintable() for said in refusals)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("rounds", [150, pytest.param(4750, marks=pytest.mark.slow)])
def test_random_damage_is_refused_or_harmless(tmp_path: Path, protocol: int, rounds: int) -> None:
    data, path = snapshot(EDMPrecond(), protocol), tmp_path / "damaged.pkl"
    assert growth(lambda: assert_survives(data, path, rounds, seed=protocol)) < 100 * MEGABYTE


@pytest.mark.slow
def test_random_damage_to_a_snapshot_of_edm(fixtures: Path, tmp_path: Path) -> None:
    data = (fixtures / "ddpmpp-grey-8px.pkl").read_bytes()
    assert_survives(data, tmp_path / "damaged.pkl", rounds=500, seed=0)


@pytest.mark.parametrize("protocol", [3, 4])
def test_damaged_weight_changes_that_weight_alone(tmp_path: Path, protocol: int) -> None:
    network = EDMPrecond()
    data, path, rng = snapshot(network, protocol), tmp_path / "damaged.pkl", random.Random(0)
    expected = {name: value.numpy().tobytes() for name, value in network.state_dict().items()}
    for name, stored_bytes in expected.items():
        assert data.count(stored_bytes) == 1
        place = rng.randrange(len(stored_bytes))
        changed = bytearray(data)
        changed[data.index(stored_bytes) + place] ^= 0x41
        path.write_bytes(changed)
        found = {key: value.numpy().tobytes() for key, value in read_edm(path).state_dict.items()}
        damaged_bytes = bytearray(stored_bytes)
        damaged_bytes[place] ^= 0x41
        assert found == expected | {name: bytes(damaged_bytes)}
