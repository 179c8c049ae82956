"""A pickle turned into plain data and notes of what it would have called, without calling anything.

This is a machine for pickle's opcodes (protocols 2 to 5) of its own: unlike the standard one it has no way
to import or call, allocates nothing that the file does not hold, and knows in advance what it cannot read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

MAX_OPCODES = (
    400_000  # a snapshot of 300 million parameters has 70,000; it bounds memory, at 216 bytes for a set
)
KEPT_BYTES = 64  # longer byte strings are left in the file
_MAX_INTEGER_BYTES = 16
_MAX_WIDE_TEXT = 16 << 20
_MAX_INTEGER_KEY = 1 << 16

Names = Collection[tuple[str, str]]


class Malformed(ValueError):
    """Not a pickle of the kind that is read; the message says what it has instead."""


@dataclass(frozen=True, slots=True, eq=False)
class Global:
    """A name that a pickle asks for."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Call:
    """A call that a pickle asks for, and the state that it would have given to what came back."""

    function: Global
    arguments: tuple[Any, ...]
    state: Any = None


@dataclass(frozen=True, slots=True, eq=False)
class Persistent:
    """A persistent id, which is for its reader to resolve."""

    id: Any


@dataclass(frozen=True, slots=True, eq=False)
class Blob:
    """A long byte string, left where it lies in the file."""

    offset: int
    length: int


_Mark: Any = object()
_CONTAINERS: dict[tuple[str, str], type] = {
    ("collections", "OrderedDict"): dict,
    ("dnnlib.util", "EasyDict"): dict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
}


def read_pickle(file: BinaryIO, end: int, allowed: Names) -> Any:
    """The data of the pickle at the file's position, which is left behind it.

    Globals must be among `allowed`; they come back as `Global`, calls as `Call`, byte strings of more than
    KEPT_BYTES as `Blob`; dictionaries, sets and lists of any kind as such. `end` is where the data end at
    the latest. Raises Malformed.
    """
    machine = _Machine(file, end, allowed)
    try:
        return machine.run()
    except (IndexError, struct.error):
        raise Malformed("a pickle that is cut off or out of order") from None


class _Machine:
    def __init__(self, file: BinaryIO, end: int, allowed: Names) -> None:
        self.file, self.allowed = file, allowed
        self.left = end - file.tell()
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.wide_text = 0

    def run(self) -> Any:
        operations, take = _OPERATIONS, self.take
        for _ in range(MAX_OPCODES):
            code = take(1)[0]
            if code == 0x2E:  # STOP
                value = self.stack.pop()
                if self.stack or value is _Mark:
                    raise IndexError
                return value
            operation = operations[code]
            if operation is None:
                raise Malformed(f"opcode {bytes([code])!r}, which such a file does not have")
            operation(self)
        raise Malformed(f"more than {MAX_OPCODES:,} opcodes")

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise Malformed(f"a part of {size:,} bytes where {self.left:,} are left")
        self.left -= size
        data = self.file.read(size)
        if len(data) != size:
            raise Malformed("it ends early")
        return data

    def number(self, form: str) -> int:
        return int(struct.unpack(form, self.take(struct.calcsize(form)))[0])

    def line(self) -> str:
        data = self.file.readline(min(1000, self.left))
        self.left -= len(data)
        if not data.endswith(b"\n"):
            raise Malformed("a line without an end")
        return self.decode(data[:-1])

    def decode(self, data: bytes) -> str:
        # A text takes one byte a character as long as none is beyond Latin-1, but up to four otherwise.
        if not data.isascii() and np.frombuffer(data, np.uint8).max() > 0xC3:
            self.wide_text += len(data)
            if self.wide_text > _MAX_WIDE_TEXT:
                raise Malformed("long texts beyond Latin-1")
        try:
            return data.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise Malformed("a text that is not UTF-8") from None

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _Mark:
            raise IndexError
        return value

    def top(self) -> Any:
        value = self.stack[-1]
        if value is _Mark:
            raise IndexError
        return value

    def pop_to_mark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _Mark:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise IndexError

    def text(self, form: str) -> None:
        self.push(self.decode(self.take(self.number(form))))

    def data(self, form: str) -> None:
        size = self.number(form)
        if size <= KEPT_BYTES:
            self.push(self.take(size))
            return
        if size > self.left:
            raise Malformed(f"a part of {size:,} bytes where {self.left:,} are left")
        self.push(Blob(self.file.tell(), size))
        self.file.seek(size, 1)
        self.left -= size

    def integer(self, form: str) -> None:
        size = self.number(form)
        if not 0 <= size <= _MAX_INTEGER_BYTES:
            raise Malformed(f"an integer of {size:,} bytes")
        self.push(int.from_bytes(self.take(size), "little", signed=True))

    def remember(self, index: int) -> None:
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise Malformed(f"a reference to object {index}, which is not there")
        self.push(self.memo[index])

    def tuple(self, size: int) -> None:
        items = tuple(self.pop() for _ in range(size))
        self.push(items[::-1])

    def append(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, list):
            raise Malformed("items for what is not a list")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, dict) or len(items) % 2:
            raise Malformed("keys and values for what is not a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def add_items(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, set):
            raise Malformed("items for what is not a set")
        target.update(map(_key, items))

    def name(self, module: Any, name: Any) -> Global:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Malformed("a name that is not a text")
        if (module, name) not in self.allowed:
            raise Malformed(f"it asks for {module[:100]}.{name[:100]}, which is not read")
        return Global(module, name)

    def call(self, function: Any, arguments: Any) -> None:
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise Malformed("a call of what cannot be called")
        kind = _CONTAINERS.get((function.module, function.name))
        if kind is None:
            self.push(Call(function, arguments))
            return
        items = arguments[0] if len(arguments) == 1 else [] if not arguments else None
        if not isinstance(items, list):
            raise Malformed(f"{function} of something else than a list")
        if kind is set:
            self.push(set(map(_key, items)))
        elif all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in items):
            self.push({_key(key): value for key, value in items})
        else:
            raise Malformed(f"{function} of something else than pairs")

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if not isinstance(target, Call) or target.state is not None:
            raise Malformed("a state for what has none")
        target.state = state

    def reduce(self) -> None:
        arguments = self.pop()
        self.call(self.pop(), arguments)

    def object(self) -> None:
        function, *arguments = self.pop_to_mark()
        self.call(function, tuple(arguments))

    def instance(self) -> None:
        function = self.name(self.line(), self.line())
        self.call(function, tuple(self.pop_to_mark()))

    def new_object_with_keywords(self) -> None:
        keywords = self.pop()
        if keywords != {}:
            raise Malformed("a call with keywords")
        self.reduce()

    def stack_global(self) -> None:
        name = self.pop()
        self.push(self.name(self.pop(), name))

    def dictionary(self) -> None:
        items = self.pop_to_mark()
        self.push({})
        self.set_items(items)


def _key(key: Any) -> Any:
    """What may be a key or in a set: to hash nested tuples takes stack, to hash chosen numbers takes time."""
    if isinstance(key, str) or (isinstance(key, int) and 0 <= key < _MAX_INTEGER_KEY):
        return key
    raise Malformed("a key that is not a text")


def _operations() -> list[Callable[[_Machine], None] | None]:
    table: dict[bytes, Callable[[_Machine], Any]] = {
        b"\x80": lambda m: _protocol(m.take(1)[0]),
        b"\x95": lambda m: m.take(8),  # FRAME: a hint for readers
        b"(": lambda m: m.push(_Mark),
        b"0": lambda m: m.stack.pop(),
        b"1": lambda m: m.pop_to_mark(),
        b"2": lambda m: m.push(m.top()),
        b"N": lambda m: m.push(None),
        b"\x88": lambda m: m.push(True),
        b"\x89": lambda m: m.push(False),
        b"J": lambda m: m.push(m.number("<i")),
        b"K": lambda m: m.push(m.take(1)[0]),
        b"M": lambda m: m.push(m.number("<H")),
        b"\x8a": lambda m: m.integer("<B"),
        b"\x8b": lambda m: m.integer("<i"),
        b"G": lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
        b"\x8c": lambda m: m.text("<B"),
        b"X": lambda m: m.text("<I"),
        b"\x8d": lambda m: m.text("<Q"),
        b"C": lambda m: m.data("<B"),
        b"B": lambda m: m.data("<I"),
        b"\x8e": lambda m: m.data("<Q"),
        b"]": lambda m: m.push([]),
        b"a": lambda m: m.append([m.pop()]),
        b"e": lambda m: m.append(m.pop_to_mark()),
        b"l": lambda m: m.push(m.pop_to_mark()),
        b")": lambda m: m.push(()),
        b"\x85": lambda m: m.tuple(1),
        b"\x86": lambda m: m.tuple(2),
        b"\x87": lambda m: m.tuple(3),
        b"t": lambda m: m.push(tuple(m.pop_to_mark())),
        b"}": lambda m: m.push({}),
        b"s": lambda m: m.set_items([m.pop(), m.pop()][::-1]),
        b"u": lambda m: m.set_items(m.pop_to_mark()),
        b"d": _Machine.dictionary,
        b"\x8f": lambda m: m.push(set()),
        b"\x90": lambda m: m.add_items(m.pop_to_mark()),
        b"q": lambda m: m.remember(m.take(1)[0]),
        b"r": lambda m: m.remember(m.number("<I")),
        b"\x94": lambda m: m.remember(len(m.memo)),
        b"h": lambda m: m.recall(m.take(1)[0]),
        b"j": lambda m: m.recall(m.number("<I")),
        b"c": lambda m: m.push(m.name(m.line(), m.line())),
        b"\x93": _Machine.stack_global,
        b"R": _Machine.reduce,
        b"\x81": _Machine.reduce,  # NEWOBJ
        b"\x92": _Machine.new_object_with_keywords,
        b"o": _Machine.object,
        b"i": _Machine.instance,
        b"b": _Machine.build,
        b"Q": lambda m: m.push(Persistent(m.pop())),
    }
    return [table.get(bytes([code])) for code in range(256)]


def _protocol(number: int) -> None:
    if not 2 <= number <= 5:
        raise Malformed(f"pickle protocol {number}; accepted: 2 to 5")


_OPERATIONS = _operations()
