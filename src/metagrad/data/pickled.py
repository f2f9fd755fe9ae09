"""Pickled arrays, read without running anything: a pickle here may build numpy arrays, and nothing else.

Python's own reader allocates what a pickle asks for (an array of 10 GB, two billion places to remember things at, by a
few hundred bytes) and calls numpy's functions with what it is given. This one knows the few words that arrays and plain
containers are made of, and makes nothing that the data is not there for.
"""

from __future__ import annotations

import codecs
import io
import math
import pickletools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from metagrad.data.names import short
from metagrad.errors import MetagradError

_MOST_WORDS = 5_000_000  # of a pickle; mini-ImageNet's has a hundred thousand
_DTYPE = re.compile(r"[|<>=]?[biufcSU?][0-9]{0,9}")
_DIMENSIONS = 32


class _Refused(ValueError):
    """A pickle asks for what is not made here."""


class _Name:
    """Stands for a function or class that a pickle names; only what `call` does is ever done."""

    def __init__(self, call: Callable[..., Any] | None = None) -> None:
        self.call = call


class _DType:
    """A numpy dtype, which a pickle makes in two steps."""

    def __init__(self, code: Any, *_: Any) -> None:
        code = code.decode("latin1") if isinstance(code, bytes) else code
        if isinstance(code, str) and code[:1] == "O":
            raise _Refused("an array of Python objects")
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise _Refused("an array that is not of plain numbers")
        self.dtype = np.dtype(code)

    def set(self, state: Any) -> None:
        """Take numpy's state of a dtype: its byte order; what has parts or fields is refused."""
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if len(state) < 5 or any(part is not None for part in state[2:5]) or order not in ("<", ">", "|", "="):
            raise _Refused("an array that is not of plain numbers")
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder("<" if order == "<" else ">")


def _bytes(data: Any) -> bytes | bytearray:
    # What Python 2 wrote comes as text.
    data = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(data, bytes | bytearray):
        raise _Refused("an array whose numbers are not there")
    return data


def _fitting(data: Any, dtype: Any, shape: Any) -> tuple[bytes | bytearray, np.dtype, tuple[int, ...]]:
    """Return what an array is made of, if there are as many bytes as its shape and dtype need."""
    data = _bytes(data)
    shape = (shape,) if isinstance(shape, int) else shape
    if not isinstance(dtype, _DType) or not isinstance(shape, tuple) or len(shape) > _DIMENSIONS:
        raise _Refused("an array without a shape and a dtype")
    if not all(type(side) is int and 0 <= side < 2**48 for side in shape):
        raise _Refused("an array of an impossible shape")
    if not dtype.dtype.itemsize or math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise _Refused(f"an array of shape {shape} with {len(data)} bytes")
    return data, dtype.dtype, shape


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    data, plain, shape = _fitting(data, dtype, shape)
    return np.frombuffer(data, plain).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: Any, data: Any) -> Any:
    data, plain, _ = _fitting(data, dtype, ())
    return np.frombuffer(data, plain)[0]


def _empty_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    del kind, shape, code  # it gets its shape together with its numbers
    return np.empty(0, np.uint8)


def _set_array(array: np.ndarray, state: Any) -> None:
    """Fill an array in its place, as others may refer to it already."""
    _, shape, dtype, fortran, data = state
    data, plain, shape = _fitting(data, dtype, shape)
    array.__setstate__((1, shape, plain, bool(fortran), bytes(data)))  # type: ignore[arg-type]


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _Refused("bytes of an unusual encoding")
    return text.encode("latin1")


def _pairs(pairs: Any = ()) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, value in pairs:
        _put(found, key, value)
    return found


def _no_bytes() -> bytes:
    return b""


_NAMES = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Name(_empty_array) for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _Name(_scalar) for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _Name(_from_buffer) for core in ("core", "_core")},
    ("numpy", "ndarray"): _Name(),
    ("numpy", "dtype"): _Name(_DType),
    ("_codecs", "encode"): _Name(_encode),
    ("collections", "OrderedDict"): _Name(_pairs),
    ("builtins", "bytes"): _Name(_no_bytes),
    ("__builtin__", "bytes"): _Name(_no_bytes),
}


def read_arrays(data: bytes, where: str) -> Any:
    """Return what a pickle of plain containers, strings, numbers and numpy arrays holds.

    Parameters
    ----------
    where:
        names the file in an error.

    Raises
    ------
    MetagradError
        if it is no such pickle; nothing of it has been run then.
    """
    try:
        found = _Reader(data).read()
        _require_plain(found)
    except Exception as error:  # a damaged pickle raises nearly anything
        reason = short(" ".join(str(error).split())) or type(error).__name__
        raise MetagradError(
            f"{where} is not a pickle of plain arrays ({reason}): metagrad runs no code from data; get the file again"
        ) from error
    return found


def _put(into: Any, key: Any, value: Any) -> None:
    # Nothing else is a key in data, and to hash tuples nested a million deep ends the process.
    if not isinstance(into, dict) or not isinstance(key, str | bytes | int | float | np.generic | None):
        raise _Refused("a dictionary whose keys are not plain")
    into[key] = value


class _Reader:
    """A machine with a stack, as a pickle is written for."""

    def __init__(self, data: bytes) -> None:
        self.data = io.BytesIO(data)
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # what waits below each mark
        self.memo: dict[int, Any] = {}

    def read(self) -> Any:
        """Return what the pickle holds."""
        for _ in range(_MOST_WORDS):
            code = self.data.read(1).decode("latin-1")
            word = pickletools.code2op.get(code)  # type: ignore[attr-defined]
            if word is None:
                raise _Refused(f"{code!r} is no word of a pickle" if code else "it is cut short")
            argument: Any = None
            if word.name == "STRING":
                argument = self._line()
            elif word.arg is not None:
                argument = word.arg.reader(self.data)  # never more than the data has
            if word.name == "STOP":
                return self.stack.pop()
            self._do(word.name, argument)
        raise _Refused(f"it has more than {_MOST_WORDS:,} words")

    def _line(self) -> str:
        """Return a string of Python 2, as text of the same bytes; pickletools takes only ASCII."""
        line = self.data.readline().strip()
        if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
            raise _Refused("a string without an end")
        return codecs.escape_decode(line[1:-1])[0].decode("latin1")

    def _do(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _MADE:
            self.stack.append(_MADE[name]())
        elif name in _PUTS:
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.stack[-1]
        elif name in _GETS:
            self.stack.append(self.memo[argument])
        elif name in _TUPLES:
            count = _TUPLES[name]
            self.stack[len(self.stack) - count :] = [tuple(self._last(count))]
        elif name in ("PROTO", "FRAME"):
            pass
        else:
            act = _ACTS.get(name)
            if act is None:
                raise _Refused(f"it uses {name}")
            act(self, argument)

    def _last(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise _Refused("it takes what is not there")
        return self.stack[len(self.stack) - count :]

    def _marked(self) -> list[Any]:
        some, self.stack = self.stack, self.below.pop()
        return some

    def mark(self, _: None) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop(self, _: None) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._marked()

    def pop_mark(self, _: None) -> None:
        self._marked()

    def copy(self, _: None) -> None:
        self.stack.append(self.stack[-1])

    def make_list(self, _: None) -> None:
        some = self._marked()
        self.stack.append(some)

    def make_tuple(self, _: None) -> None:
        some = self._marked()
        self.stack.append(tuple(some))

    def make_dict(self, _: None) -> None:
        some = self._marked()
        self.stack.append(_pairs(zip(some[::2], some[1::2], strict=True)))

    def append(self, _: None) -> None:
        value = self.stack.pop()
        self._extend([value])

    def appends(self, _: None) -> None:
        self._extend(self._marked())

    def _extend(self, some: Any) -> None:
        if not isinstance(self.stack[-1], list):
            raise _Refused("it adds to what is no list")
        self.stack[-1].extend(some)

    def item(self, _: None) -> None:
        key, value = self._last(2)
        del self.stack[-2:]
        _put(self.stack[-1], key, value)

    def items(self, _: None) -> None:
        some = self._marked()
        for key, value in zip(some[::2], some[1::2], strict=True):
            _put(self.stack[-1], key, value)

    def name(self, argument: str) -> None:
        self._named(*argument.split(" ", 1))

    def name_from_stack(self, _: None) -> None:
        module, name = self._last(2)
        del self.stack[-2:]
        self._named(module, name)

    def _named(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str) or (module, name) not in _NAMES:
            raise _Refused(f"it asks for {module}.{name}")
        self.stack.append(_NAMES[module, name])

    def call(self, _: None) -> None:
        called, arguments = self._last(2)
        del self.stack[-2:]
        if not isinstance(called, _Name) or called.call is None or not isinstance(arguments, tuple):
            raise _Refused("it calls what is no function")
        self.stack.append(called.call(*arguments))

    def build(self, _: None) -> None:
        state = self.stack.pop()
        built = self.stack[-1]
        if not isinstance(state, tuple):
            raise _Refused("a state that is no tuple")
        if isinstance(built, _DType):
            built.set(state)
        elif isinstance(built, np.ndarray):
            _set_array(built, state)
        else:
            raise _Refused("it fills what is no array")


_LITERALS = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
})  # fmt: skip
_MADE: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple,
}  # fmt: skip
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
_GETS = ("GET", "BINGET", "LONG_BINGET")
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_ACTS: dict[str, Callable[[_Reader, Any], None]] = {
    "MARK": _Reader.mark, "POP": _Reader.pop, "POP_MARK": _Reader.pop_mark, "DUP": _Reader.copy,
    "LIST": _Reader.make_list, "TUPLE": _Reader.make_tuple, "DICT": _Reader.make_dict,
    "APPEND": _Reader.append, "APPENDS": _Reader.appends, "SETITEM": _Reader.item, "SETITEMS": _Reader.items,
    "GLOBAL": _Reader.name, "STACK_GLOBAL": _Reader.name_from_stack, "REDUCE": _Reader.call, "BUILD": _Reader.build,
}  # fmt: skip


def _require_plain(found: Any) -> None:
    pending, seen = [found], set()
    while pending:
        value = pending.pop()
        if id(value) in seen:  # a container may hold itself
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list | tuple):
            pending += value
        elif not isinstance(value, str | bytes | bytearray | int | float | np.ndarray | np.generic | None):
            raise _Refused("it holds more than plain arrays")
