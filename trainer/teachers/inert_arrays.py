"""What torch and numpy write into pickles, read without running it: storages, tensors, scalars.

A storage inside a pickle is a byte string that is a whole stream of `torch.save` (in the format before zip
files), which torch itself would unpickle freely; here it is read with a vocabulary of its own, the types of
storages.
"""

import codecs
import io
import math
import struct
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hkdpipe.trainer.teachers.inert_pickle import (
    Allowance,
    Bytes,
    Instance,
    LongText,
    Refused,
    Vocabulary,
    load,
)

# Not BoolStorage: bytes other than 0 and 1 in it have no meaning.
_STORAGE_TYPES: Vocabulary = {
    ("torch", "DoubleStorage"): torch.float64,
    ("torch", "FloatStorage"): torch.float32,
    ("torch", "HalfStorage"): torch.float16,
    ("torch", "BFloat16Storage"): torch.bfloat16,
    ("torch", "LongStorage"): torch.int64,
    ("torch", "IntStorage"): torch.int32,
    ("torch", "ShortStorage"): torch.int16,
    ("torch", "CharStorage"): torch.int8,
    ("torch", "ByteStorage"): torch.uint8,
}
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
_LONGEST_HEAD = 4096
"""Bytes before a storage's values; torch writes about 250."""
_MOST_DIMENSIONS = 8
_PIECE = 1 << 20
# Formats of `struct` for numpy's type codes, little-endian.
_SCALARS = {"f2": "<e", "f4": "<f", "f8": "<d", "b1": "<?", "i1": "<b", "i2": "<h", "i4": "<i", "i8": "<q"}
_SCALARS |= {"u1": "<B", "u2": "<H", "u4": "<I", "u8": "<Q"}


@dataclass(frozen=True, slots=True)
class Storage:
    """Values of one type, not yet read; `data` holds exactly `count` of them, little-endian."""

    data: Bytes
    dtype: torch.dtype
    count: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor inside its storage, not yet read; offset and strides in values, every size positive."""

    storage: Storage
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self, room: Allowance) -> Tensor:
        """The tensor, contiguous, on the CPU; spends the bytes that it takes. Raises Refused and OSError."""
        dtype, data = self.storage.dtype, self.storage.data
        length = _extent(self.sizes, self.strides) * dtype.itemsize
        room.spend(length)
        values = torch.empty(length, dtype=torch.uint8)
        data.read_into(self.offset * dtype.itemsize, values.numpy().data)
        return values.view(dtype).as_strided(self.sizes, self.strides).contiguous()


def array_vocabulary(size: int, allowance: Allowance) -> Vocabulary:
    """For one reading of a file of `size` bytes; `allowance` is that of the whole file's opcodes."""
    room = Allowance(size, "its texts decode to more than the file")
    return {
        ("_codecs", "encode"): partial(_encode, room),
        ("numpy", "dtype"): _dtype,
        ("numpy.core.multiarray", "scalar"): _scalar,
        ("numpy._core.multiarray", "scalar"): _scalar,
        ("torch.storage", "_load_from_bytes"): partial(_storage, allowance),
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    }


def _encode(room: Allowance, arguments: tuple[Any, ...]) -> Bytes:
    """How byte strings are written in protocol 2: as the text whose Latin-1 code they are."""
    encoded = io.BytesIO()
    try:
        match arguments:
            case (str() as text, "latin1"):
                room.spend(encoded.write(text.encode("latin1")))
            case (LongText() as text, "latin1"):
                # In pieces, since a text takes up to four times its bytes in memory.
                decoder = codecs.getincrementaldecoder("utf-8")()
                for offset in range(0, text.length, _PIECE):
                    piece = text.read(offset, _PIECE)
                    last = offset + _PIECE >= text.length
                    room.spend(encoded.write(decoder.decode(piece, last).encode("latin1")))
            case _:
                raise Refused("it encodes something else than a text as Latin-1")
    except UnicodeError:
        raise Refused("it holds a text for bytes that has no Latin-1 code") from None
    return Bytes(encoded, 0, encoded.tell())


def _dtype(arguments: tuple[Any, ...]) -> Instance:
    match arguments:
        case (str() as code, False, True) if code in _SCALARS:
            return Instance(code)
    raise Refused("it holds a numpy type that is no plain number")


def _scalar(arguments: tuple[Any, ...]) -> int | float:
    """A numpy scalar as the Python number it equals."""
    match arguments:
        # numpy calls the order of single bytes "|".
        case (Instance(class_name=code, state=(_, "<" | "|", *_)), Bytes() as data) if code in _SCALARS:
            if data.length == struct.calcsize(_SCALARS[code]):
                number: int | float = struct.unpack(_SCALARS[code], data.read(0, data.length))[0]
                return number
    raise Refused("it holds a numpy scalar that is no plain number")


def _storage(allowance: Allowance, arguments: tuple[Any, ...]) -> Storage:
    """Five pickles (magic number, version, system, an id that describes the storage, the keys of all
    storages), the count as int64, the values. Where the values were (a GPU) is of no interest."""
    match arguments:
        case (Bytes() as data,):
            head = data.read(0, _LONGEST_HEAD)
        case _:
            raise Refused("it makes a storage of something else than bytes")
    stream = io.BytesIO(head)
    try:
        pickles = [load(stream, len(head), _STORAGE_TYPES, allowance, lambda given: given) for _ in range(5)]
    except Refused as error:
        raise Refused(f"in a storage: {error}") from None
    match pickles:
        case [
            int(magic),
            int(version),
            {"little_endian": True},
            ("storage", torch.dtype() as dtype, str() as key, str(), int(count), None),
            [str() as only],
        ] if (magic, version) == (_MAGIC, _PROTOCOL_VERSION) and only == key:
            start = stream.tell() + 8
        case _:
            raise Refused("it holds a storage that is not laid out as torch does")
    values = Bytes(data.stream, data.start + start, data.length - start)
    # In this order: only a count that fits is sure to be an int64.
    if values.length != count * dtype.itemsize or head[start - 8 : start] != struct.pack("<q", count):
        raise Refused(f"it holds a storage of {count} values that has {values.length} bytes of {dtype}")
    return Storage(values, dtype, count)


def _tensor(arguments: tuple[Any, ...]) -> StoredTensor:
    """`_rebuild_tensor_v2`: storage, offset, sizes, strides, requires_grad, hooks, perhaps metadata."""
    match arguments:
        case (Storage() as storage, offset, tuple(sizes), tuple(strides), bool(), dict(), *metadata):
            pass
        case _:
            raise Refused("it holds a tensor that is not laid out as torch does")
    if any(metadata):
        raise Refused("it holds a tensor that is conjugated or negated")
    if len(sizes) != len(strides) or len(sizes) > _MOST_DIMENSIONS:
        raise Refused(f"it holds a tensor of {len(sizes)} sizes and {len(strides)} strides")
    if any(type(number) is not int or number < 0 for number in (offset, *sizes, *strides)):
        raise Refused("it holds a tensor whose sizes, strides or offset are no numbers from 0")
    # A stride means nothing where there is nothing to step to; torch's own may be of any size there.
    strides = tuple(stride if size > 1 else 1 for size, stride in zip(sizes, strides, strict=True))
    if 0 in sizes or 0 in strides:
        raise Refused("it holds a tensor with a size or a stride of 0")
    # The second bound alone would let strides repeat a few values without end.
    if offset + _extent(sizes, strides) > storage.count or math.prod(sizes) > storage.count:
        raise Refused(f"it holds a tensor that does not fit into its storage of {storage.count} values")
    # EDM's tensors fill their storages; of a damaged offset or stride nothing else would tell.
    if offset or math.prod(sizes) != storage.count or not _dense(sizes, strides):
        raise Refused(f"it holds a tensor that is not all of its storage of {storage.count} values, once")
    return StoredTensor(storage, offset, sizes, strides)


def _dense(sizes: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the strides are those of a contiguous tensor, with its dimensions in some order."""
    expected = 1
    for size, stride in sorted(zip(sizes, strides, strict=True), key=lambda pair: (pair[1], pair[0])):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def _extent(sizes: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Values from the first to the last one of a tensor."""
    return 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))


def _parameter(arguments: tuple[Any, ...]) -> StoredTensor:
    """Tensor, requires_grad, hooks, perhaps a state (attributes of the parameter, which mean nothing)."""
    match arguments:
        case (StoredTensor() as tensor, bool(), dict()) | (StoredTensor() as tensor, bool(), dict(), _):
            return tensor
    raise Refused("it holds a parameter that is not laid out as torch does")
