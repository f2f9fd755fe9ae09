"""Pickled arrays, read without running anything: a pickle here may build numpy arrays, and nothing else.

Python's own reader allocates what a pickle asks for (an array of 10 GB, two billion places to remember things at, by a
few hundred bytes) and calls numpy's functions with the pickle's arguments. This one knows the few opcodes that arrays
and plain containers are made of, and allocates no more than the data fills.
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

_MOST_OPCODES = 5_000_000  # mini-ImageNet's has a hundred thousand
_DTYPE = re.compile(r"[|<>=]?[biufcSU?][0-9]{0,9}")
_DIMENSIONS = 32


class _Refused(ValueError):
    """A pickle asks for something that this reader does not make."""


class _Name:
    """Stands for a function or class that a pickle names; only `call` is ever called."""

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
        """Take the byte order from numpy's state of a dtype; refuse one with parts or fields."""
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
    result: dict[Any, Any] = {}
    for key, value in pairs:
        _put(result, key, value)
    return result


_NAMES = {
    # The array gets its shape together with its numbers.
    **{
        (f"numpy.{core}.multiarray", "_reconstruct"): _Name(lambda kind, shape, code: np.empty(0, np.uint8))
        for core in ("core", "_core")
    },
    **{(f"numpy.{core}.multiarray", "scalar"): _Name(_scalar) for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _Name(_from_buffer) for core in ("core", "_core")},
    ("numpy", "ndarray"): _Name(),
    ("numpy", "dtype"): _Name(_DType),
    ("_codecs", "encode"): _Name(_encode),
    ("collections", "OrderedDict"): _Name(_pairs),
    **{(module, "bytes"): _Name(lambda: b"") for module in ("builtins", "__builtin__")},
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
        value = _Reader(data).read()
        _require_plain(value)
    except Exception as error:  # a damaged pickle raises nearly anything
        reason = short(" ".join(str(error).split())) or type(error).__name__
        raise MetagradError(
            f"{where} is not a pickle of plain arrays ({reason}): metagrad runs no code from data; get the file again"
        ) from error
    return value


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
        self.below: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}

    def read(self) -> Any:
        """Return what the pickle holds."""
        for _ in range(_MOST_OPCODES):
            code = self.data.read(1).decode("latin-1")
            opcode = pickletools.code2op.get(code)  # type: ignore[attr-defined]
            if opcode is None:
                raise _Refused(f"{code!r} is no opcode of a pickle" if code else "it is cut short")
            argument: Any = None
            if opcode.name == "STRING":
                argument = self._line()
            elif opcode.arg is not None:
                argument = opcode.arg.reader(self.data)  # never more than the data has
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name in _LITERALS:
                self.stack.append(argument)
            else:
                self._do(opcode.name, argument)
        raise _Refused(f"it has more than {_MOST_OPCODES:,} opcodes")

    def _line(self) -> str:
        """Return a string of Python 2, as text of the same bytes; pickletools takes only ASCII."""
        line = self.data.readline().strip()
        if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
            raise _Refused("a string without an end")
        return codecs.escape_decode(line[1:-1])[0].decode("latin1")

    def _do(self, name: str, argument: Any) -> None:
        match name:
            case "PROTO" | "FRAME":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                self.stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_TUPLE":
                self.stack.append({"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}[name]())
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(tuple(self._taken(int(name[-1]))))
            case "MARK":
                self.below.append(self.stack)
                self.stack = []
            case "POP" if self.stack:
                self.stack.pop()
            case "POP" | "POP_MARK":
                self._marked()
            case "DUP":
                self.stack.append(self.stack[-1])
            case "LIST" | "TUPLE" | "DICT":
                items = self._marked()  # puts another stack in place
                self.stack.append(items if name == "LIST" else tuple(items) if name == "TUPLE" else _dict_of(items))
            case "APPEND" | "APPENDS":
                items = self._marked() if name == "APPENDS" else self._taken(1)
                if not isinstance(self.stack[-1], list):
                    raise _Refused("it adds to what is no list")
                self.stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = self._marked() if name == "SETITEMS" else self._taken(2)
                for key, value in zip(items[::2], items[1::2], strict=True):
                    _put(self.stack[-1], key, value)
            case "GLOBAL":
                self.stack.append(_named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                self.stack.append(_named(*self._taken(2)))
            case "REDUCE":
                self.stack.append(_called(*self._taken(2)))
            case "BUILD":
                (state,) = self._taken(1)
                _build(self.stack[-1], state)
            case _:
                raise _Refused(f"it uses {name}")

    def _taken(self, count: int) -> list[Any]:
        """Take so many values from the top of the stack."""
        if len(self.stack) < count:
            raise _Refused("it takes more than the stack holds")
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def _marked(self) -> list[Any]:
        """Take all values down to the last mark."""
        values, self.stack = self.stack, self.below.pop()
        return values


_LITERALS = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
})  # fmt: skip


def _dict_of(items: list[Any]) -> dict[Any, Any]:
    return _pairs(zip(items[::2], items[1::2], strict=True))


def _named(module: Any, name: Any) -> _Name:
    if not isinstance(module, str) or not isinstance(name, str) or (module, name) not in _NAMES:
        raise _Refused(f"it asks for {module}.{name}")
    return _NAMES[module, name]


def _called(function: Any, arguments: Any) -> Any:
    if not isinstance(function, _Name) or function.call is None or not isinstance(arguments, tuple):
        raise _Refused("it calls what is no function")
    return function.call(*arguments)


def _build(value: Any, state: Any) -> None:
    if not isinstance(state, tuple):
        raise _Refused("a state that is no tuple")
    if isinstance(value, _DType):
        value.set(state)
    elif isinstance(value, np.ndarray):
        _set_array(value, state)
    else:
        raise _Refused("it fills what is no array")


def _require_plain(whole: Any) -> None:
    pending, visited = [whole], set()
    while pending:
        value = pending.pop()
        if id(value) in visited:  # a container may hold itself
            continue
        visited.add(id(value))
        if isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list | tuple):
            pending += value
        elif not isinstance(value, str | bytes | bytearray | int | float | np.ndarray | np.generic | None):
            raise _Refused("it holds more than plain arrays")
