"""Reading pickles without running anything in them.

Python's unpickler cannot be made safe by `find_class` alone: BUILD changes whatever `find_class` hands out,
a memo index of four bytes allocates gigabytes, tuples nested deeply enough overflow the C stack when they
become keys, and every byte string is copied. This machine reads the same opcodes (protocols 2 to 5, those
that EDM snapshots and torch storages use) and makes only plain containers, `Instance`s and what a given
vocabulary makes of its arguments. Byte strings and long texts stay in the file, as spans; work and memory
are bounded by an allowance.

Source of the opcodes: the documentation in Python's own `pickletools`.
"""

import pickle
import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BufferedIOBase
from typing import Any

Vocabulary = Mapping[tuple[str, str], Any]
"""What a pickle may ask for, by exact module and name. What may be called, as a function or to make an object
of a class, is a function of the argument tuple that gives inert data; all else is inert and stands for
itself."""

LONGEST_TEXT = 4096
"""Bytes; longer texts stay in the file."""
LONGEST_NAME = 256
"""Bytes of a module's or object's name on a line of its own."""


class Refused(ValueError):
    """The pickle is damaged, or asks for something that is not read."""


class Allowance:
    """An amount that may be spent once; the rest of it is `left`."""

    def __init__(self, amount: int, exhausted: str) -> None:
        self.left = amount
        self.exhausted = exhausted

    def spend(self, amount: int) -> None:
        """Raises Refused, with the words `exhausted`, when less than `amount` is left."""
        self.left -= amount
        if self.left < 0:
            raise Refused(self.exhausted)


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of the pickle that have not been read."""

    stream: BufferedIOBase
    start: int
    length: int

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from `offset` of the span, at most `length`; the stream stays where it was."""
        position = self.stream.tell()
        self.stream.seek(self.start + offset)
        data = self.stream.read(min(length, self.length - offset))
        self.stream.seek(position)
        return data

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer with the bytes from `offset`, which the span must have; moves the stream."""
        self.stream.seek(self.start + offset)
        if self.stream.readinto(buffer) != len(buffer):
            raise Refused("it became shorter while it was read")


class Bytes(Span):
    """A byte string."""

    __slots__ = ()


class LongText(Span):
    """A text of more than LONGEST_TEXT bytes in UTF-8, not yet known to be that."""

    __slots__ = ()


@dataclass(slots=True)
class Instance:
    """What stands for an object: the name of its class, and the state that came with it or with BUILD."""

    class_name: str
    state: Any = None


def load(
    stream: BufferedIOBase,
    end: int,
    vocabulary: Vocabulary,
    allowance: Allowance,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """The object that the pickle at the stream's position describes; the stream is left after its last byte.

    end: where the stream ends, in bytes from its beginning. allowance: one unit for each opcode and each 32
    bytes of text, so that a unit stands for some 100 bytes of memory. persistent: answers persistent ids;
    without it they are refused. Sets are given as lists, since hashing what a file holds is not safe; keys of
    dicts must be texts.

    Raises Refused, in words that can follow the file's name.
    """
    machine = _Machine(stream, end, vocabulary, allowance, persistent)
    try:
        return machine.run()
    except IndexError:
        # From pop() of an empty stack or a memo's index: what vocabularies make is checked by themselves.
        raise Refused(f"its opcodes do not fit together at byte {stream.tell()}") from None


class _Machine:
    def __init__(
        self,
        stream: BufferedIOBase,
        end: int,
        vocabulary: Vocabulary,
        allowance: Allowance,
        persistent: Callable[[Any], Any] | None,
    ) -> None:
        self.stream = stream
        self.end = end
        self.vocabulary = vocabulary
        self.allowance = allowance
        self.persistent = persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        """The stacks below each mark."""
        self.memo: list[Any] = []

    def run(self) -> Any:
        head = self.stream.read(2)
        if head[:1] != pickle.PROTO or not 2 <= head[-1] <= 5:
            raise Refused("it is no pickle of protocol 2, 3, 4 or 5")
        read, spend, operations = self.stream.read, self.allowance.spend, _OPERATIONS
        while (code := read(1)) != pickle.STOP:
            spend(1)
            operation = operations.get(code)
            if operation is None:
                raise self.unread(code)
            operation(self)
        return self.stack.pop()

    def unread(self, code: bytes) -> Refused:
        if not code:
            return self.cut()
        name = _NAMES.get(code.decode("latin1"), f"0x{code.hex()}")
        return Refused(f"it uses the opcode {name} at byte {self.stream.tell() - 1}, which is not read")

    def cut(self) -> Refused:
        return Refused(f"it ends early, at byte {self.end}")

    def take(self, count: int) -> bytes:
        data = self.stream.read(count)
        if len(data) != count:
            raise self.cut()
        return data

    def number(self, form: struct.Struct) -> Any:
        return form.unpack(self.take(form.size))[0]

    def text(self, length: int) -> None:
        if length > LONGEST_TEXT:
            self.stack.append(self.span(LongText, length))
        else:
            self.allowance.spend(length >> 5)
            self.stack.append(self.decoded(self.take(length)))

    def decoded(self, data: bytes) -> str:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise Refused(f"it holds text that is not UTF-8 before byte {self.stream.tell()}") from None

    def span(self, kind: type[Span], length: int) -> Span:
        start = self.stream.tell()
        if length > self.end - start:
            raise self.cut()
        self.stream.seek(length, 1)
        return kind(self.stream, start, length)

    def line(self) -> str:
        data = self.stream.readline(LONGEST_NAME)
        if not data.endswith(b"\n"):
            raise Refused(f"it holds a name without an end at byte {self.stream.tell()}")
        return self.decoded(data[:-1])

    def find(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise Refused(f"it asks for an object whose name is no text at byte {self.stream.tell()}")
        if (module, name) not in self.vocabulary:
            raise Refused(f"it asks for {module}.{name}, which is not read")
        self.stack.append(self.vocabulary[module, name])

    def marked(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def container(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise Refused(f"it fills what is no {kind.__name__} at byte {self.stream.tell()}")
        return self.stack[-1]

    # The operations.

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def frame(self) -> None:
        # Only a hint for buffering, but one that points past the end shows a truncated file at once.
        if self.number(_UINT64) > self.end - self.stream.tell():
            raise self.cut()

    def global_(self) -> None:
        module = self.line()
        self.find(module, self.line())

    def stack_global(self) -> None:
        name = self.stack.pop()
        self.find(self.stack.pop(), name)

    def inst(self) -> None:
        # Never read, but what it asks for says more than the opcode's name.
        self.global_()
        raise Refused("it uses the opcode INST, which is not read")

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not callable(function) or type(arguments) is not tuple:
            raise Refused(f"it calls what cannot be called at byte {self.stream.tell()}")
        self.stack.append(function(arguments))

    def build(self) -> None:
        state, instance = self.stack.pop(), self.stack[-1]
        if type(instance) is not Instance:
            raise Refused(f"it sets the state of what has none at byte {self.stream.tell()}")
        instance.state = state

    def binpersid(self) -> None:
        if self.persistent is None:
            raise self.unread(pickle.BINPERSID)
        self.stack.append(self.persistent(self.stack.pop()))

    def tuple_(self) -> None:
        items = tuple(self.marked())
        self.stack.append(items)

    def tuple_of(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) != count:
            raise IndexError
        self.stack[-count:] = [items]

    def appends(self, items: list[Any]) -> None:
        self.container(list).extend(items)

    def setitems(self, items: list[Any]) -> None:
        target = self.container(dict)
        if len(items) % 2:
            raise IndexError
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str:
                raise Refused(f"it holds a dict with a key that is no text before byte {self.stream.tell()}")
            target[key] = value

    def put(self, index: int) -> None:
        # Picklers count up; anything else would let an index allocate memory.
        if index != len(self.memo):
            raise Refused(f"it numbers its objects out of order at byte {self.stream.tell()}")
        self.memo.append(self.stack[-1])

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])


_NAMES = {opcode.code: opcode.name for opcode in pickletools.opcodes}
_UINT8 = struct.Struct("<B")
_UINT16 = struct.Struct("<H")
_INT32 = struct.Struct("<i")
_UINT32 = struct.Struct("<I")
_UINT64 = struct.Struct("<Q")
_DOUBLE = struct.Struct(">d")

_OPERATIONS: dict[bytes, Callable[[_Machine], None]] = {
    pickle.FRAME: _Machine.frame,
    pickle.MARK: _Machine.mark,
    pickle.NONE: lambda m: m.stack.append(None),
    pickle.NEWTRUE: lambda m: m.stack.append(True),
    pickle.NEWFALSE: lambda m: m.stack.append(False),
    pickle.BININT: lambda m: m.stack.append(m.number(_INT32)),
    pickle.BININT1: lambda m: m.stack.append(m.number(_UINT8)),
    pickle.BININT2: lambda m: m.stack.append(m.number(_UINT16)),
    pickle.LONG1: lambda m: m.stack.append(int.from_bytes(m.take(m.number(_UINT8)), "little", signed=True)),
    pickle.BINFLOAT: lambda m: m.stack.append(m.number(_DOUBLE)),
    pickle.SHORT_BINUNICODE: lambda m: m.text(m.number(_UINT8)),
    pickle.BINUNICODE: lambda m: m.text(m.number(_UINT32)),
    pickle.BINUNICODE8: lambda m: m.text(m.number(_UINT64)),
    pickle.SHORT_BINBYTES: lambda m: m.stack.append(m.span(Bytes, m.number(_UINT8))),
    pickle.BINBYTES: lambda m: m.stack.append(m.span(Bytes, m.number(_UINT32))),
    pickle.BINBYTES8: lambda m: m.stack.append(m.span(Bytes, m.number(_UINT64))),
    pickle.EMPTY_TUPLE: lambda m: m.stack.append(()),
    pickle.EMPTY_LIST: lambda m: m.stack.append([]),
    pickle.EMPTY_DICT: lambda m: m.stack.append({}),
    pickle.EMPTY_SET: lambda m: m.stack.append([]),
    pickle.TUPLE1: lambda m: m.tuple_of(1),
    pickle.TUPLE2: lambda m: m.tuple_of(2),
    pickle.TUPLE3: lambda m: m.tuple_of(3),
    pickle.TUPLE: _Machine.tuple_,
    pickle.APPEND: lambda m: m.appends([m.stack.pop()]),
    pickle.APPENDS: lambda m: m.appends(m.marked()),
    pickle.ADDITEMS: lambda m: m.appends(m.marked()),
    pickle.SETITEM: lambda m: m.setitems([m.stack.pop(-2), m.stack.pop()]),
    pickle.SETITEMS: lambda m: m.setitems(m.marked()),
    pickle.GLOBAL: _Machine.global_,
    pickle.STACK_GLOBAL: _Machine.stack_global,
    pickle.INST: _Machine.inst,
    pickle.REDUCE: _Machine.reduce,
    pickle.NEWOBJ: _Machine.reduce,
    pickle.BUILD: _Machine.build,
    pickle.BINPERSID: _Machine.binpersid,
    pickle.BINPUT: lambda m: m.put(m.number(_UINT8)),
    pickle.LONG_BINPUT: lambda m: m.put(m.number(_UINT32)),
    pickle.MEMOIZE: lambda m: m.put(len(m.memo)),
    pickle.BINGET: lambda m: m.get(m.number(_UINT8)),
    pickle.LONG_BINGET: lambda m: m.get(m.number(_UINT32)),
}
