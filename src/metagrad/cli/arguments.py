"""Fields of dataclasses as arguments of a command: what each is called and takes, read by argparse."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import functools
import inspect
import math
import shutil
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from metagrad.errors import MetagradError, in_short

_LEAST_COLUMNS = 40
_KINDS: dict[str, tuple[Callable[[str], Any], str]] = {
    "int": (int, "a whole number"),
    "float": (float, "a number"),
    "str": (str, "a text"),
    "path": (Path, "a path"),
}
Command = TypeVar("Command")


@dataclass(frozen=True, kw_only=True)
class Option:
    """One argument of a command.

    Attributes
    ----------
    name:
        the field that it fills.
    flag:
        the flag, such as ``--inner-lr``; for a positional argument, its name in the help.
    kind:
        ``"int"``, ``"float"``, ``"str"``, ``"path"`` or ``"bool"``; choices are texts.
    many:
        how many numbers or texts it takes: ``None`` one, 0 any number.
    least, most:
        ends of the range of a number; ``None``: no end.
    default:
        what the help shows; ``None``: the help text says it.
    """

    name: str
    flag: str
    kind: str
    choices: tuple[str, ...] = ()
    many: int | None = None
    least: int | None = None
    most: int | None = None
    default: Any = None
    help: str = ""
    metavar: str | None = None
    aliases: tuple[str, ...] = ()
    positional: bool = False
    repeated: bool = False
    required: bool = False

    @property
    def shown(self) -> str:
        """What stands for its value in the help."""
        if self.metavar is None and self.choices and self.many is None:
            return f"{{{','.join(self.choices)}}}"
        return self.metavar or ("NAME" if self.choices else self.kind.upper())

    def converted(self, text: str) -> Any:
        """Return the value of a word.

        Raises
        ------
        argparse.ArgumentTypeError
            for a word that is none.
        """
        if self.choices and text not in self.choices:
            message = f"is one of {', '.join(self.choices)}, got {in_short(repr(text), 40)}"
            raise argparse.ArgumentTypeError(message + did_you_mean(text, self.choices))
        convert, wanted = _KINDS[self.kind]
        try:
            value = convert(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be {wanted}, got {in_short(repr(text), 40)}") from None
        if self.least is not None and not self.least <= value <= (value if self.most is None else self.most):
            bounds = f"at least {self.least}" if self.most is None else f"from {self.least} to {self.most}"
            raise argparse.ArgumentTypeError(f"must be {bounds}, got {in_short(text, 40)}")
        return value

    def add_to(self, group: Any) -> None:
        """Add the option to a parser, or a group of one; nothing is set where it is not given."""
        obvious = self.default is None or self.default is False or self.default == ()
        text = self.help[:1].upper() + self.help[1:] + ("" if obvious else f" (default: {_shown(self.default)})")
        settings: dict[str, Any] = {"help": text.replace("%", "%%"), "default": argparse.SUPPRESS}
        if self.positional:
            group.add_argument(self.name, metavar=self.flag, **settings)
        elif self.kind == "bool":
            group.add_argument(self.flag, dest=self.name, action=argparse.BooleanOptionalAction, **settings)
        else:
            nargs: Any = "+" if self.many == 0 and not self.repeated else self.many or None
            action = "append" if self.repeated else "store"
            settings |= {"type": self.converted, "metavar": self.shown, "nargs": nargs, "action": action}
            group.add_argument(self.flag, *self.aliases, dest=self.name, **settings)


@dataclass(frozen=True)
class Section:
    """Options that stand together in the help; those without a title stand where argparse puts its own."""

    title: str
    options: Sequence[Option]
    about: str | None = None


class _Parser(argparse.ArgumentParser):
    """Errors are raised: nothing is printed, and the process goes on."""

    def error(self, message: str) -> NoReturn:
        raise MetagradError(f"{message}; see {self.prog} --help")


def parser(prog: str, about: str, sections: Sequence[Section], *, usage: str, positionals: bool = False) -> _Parser:
    """Return a parser of options; positional arguments are in it to be shown, and read by :func:`read`."""
    columns = max(_LEAST_COLUMNS, shutil.get_terminal_size().columns)

    def formatter(prog: str) -> argparse.HelpFormatter:
        return argparse.HelpFormatter(prog, width=columns - 2, max_help_position=min(28, columns // 3))

    made = _Parser(
        prog=prog, description=about, usage=f"{prog} {usage}".strip(), add_help=False, allow_abbrev=False,
        exit_on_error=False, formatter_class=formatter,
    )  # fmt: skip
    made.add_argument("-h", "--help", action="help", help="Show this help and exit.")
    for section in sections:
        group: Any = made.add_argument_group(section.title, section.about) if section.title else made
        for option in section.options:
            if positionals or not option.positional:
                option.add_to(group)
    return made


def read(
    prog: str,
    about: str,
    sections: Sequence[Section],
    words: Sequence[str],
    *,
    explain: Callable[[str], str | None] = lambda flag: None,
) -> dict[str, Any]:
    """Return the values of the options that are given, by their names.

    Parameters
    ----------
    explain:
        function of an unknown option's flag to a message that says which choice has it.

    Raises
    ------
    MetagradError
        naming the first word that is wrong.
    SystemExit
        once ``--help`` is printed.
    """
    options = [option for section in sections for option in section.options]
    placed = [option for option in options if option.positional]
    needed = [option for option in options if option.required and not option.positional]
    usage = " ".join(["[options]", *map(_usage, needed), *map(_usage, placed)])
    if {"-h", "--help"} & set(words):
        print(parser(prog, about, sections, usage=usage, positionals=True).format_help(), end="")
        raise SystemExit(0)
    made = parser(prog, about, sections, usage=usage)
    cut = words.index("--") if "--" in words else len(words)
    try:
        namespace, rest = made.parse_known_args([_hyphens(word) for word in words[:cut]])
    except argparse.ArgumentError as error:
        raise MetagradError(f"{(error.argument_name or '').split('/')[0]} {error.message}; see {prog} --help") from None
    for word in rest:
        if word.startswith("-") and word != "-":
            flag = word.split("=")[0]
            known = [name for option in options if not option.positional for name in (option.flag, *option.aliases)]
            message = explain(flag) or f"there is no option {in_short(flag, 60)}{did_you_mean(flag, known)}"
            made.error(message)
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in vars(namespace).items()}
    given |= _placed(made, placed, [*rest, *words[cut + 1 :]])
    missing = [_usage(option) for option in (*placed, *needed) if option.required and option.name not in given]
    if missing:
        order = [_usage(option) for option in (*placed, *needed) if option.required]
        whole = f" ({' '.join([prog, *order])})" if len(order) > 1 else ""
        raise MetagradError(f"{prog} needs {', '.join(dict.fromkeys(missing))}{whole}; see {prog} --help")
    return given


def _placed(made: _Parser, placed: Sequence[Option], words: list[str]) -> dict[str, Any]:
    """Return the values of positional arguments: one each, all that are left for one that takes many."""
    given: dict[str, Any] = {}
    for option in placed:
        try:
            if option.many is not None:
                given[option.name], words = tuple(map(option.converted, words)), []
            elif words:
                given[option.name], words = option.converted(words[0]), words[1:]
        except argparse.ArgumentTypeError as error:
            made.error(f"{option.flag} {error}")
    if words:
        made.error(f"unexpected argument {in_short(repr(words[0]), 60)}")
    return given


def parse(command: Callable[..., Command], words: Sequence[str], prog: str) -> Command:
    """Return a command, a frozen dataclass, as words give it.

    Raises
    ------
    MetagradError, SystemExit
        as :func:`read` does.
    """
    about = " ".join((command.__doc__ or "").split())
    return command(**read(prog, about, [Section("", options_of(command))], words))


def arg(
    default: Any = dataclasses.MISSING,
    *,
    positional: bool = False,
    metavar: str | None = None,
    aliases: tuple[str, ...] = (),
    least: int | None = None,
    most: int | None = None,
    repeated: bool = False,
    hidden: bool = False,
) -> Any:
    """Return a field of a command with settings of its :class:`Option`; a ``hidden`` field is not an option."""
    about = {"positional": positional, "metavar": metavar, "aliases": aliases, "least": least, "most": most,
             "repeated": repeated, "hidden": hidden}  # fmt: skip
    return dataclasses.field(default=default, metadata=about)


def options_of(command: Any) -> list[Option]:
    """Return the options of a command: its fields, explained by the texts below them."""
    hints, texts = get_type_hints(command), _texts(command)
    options = []
    for one in dataclasses.fields(command):
        if one.metadata.get("hidden"):
            continue
        required = one.default is dataclasses.MISSING
        default = None if required else one.default
        option = option_of(one.name, hints[one.name], default=default, help=texts.get(one.name, ""), required=required)
        assert option is not None, one.name
        about = {key: value for key, value in one.metadata.items() if value is not None and value is not False}
        flag = about.get("metavar") or option.shown if about.get("positional") else option.flag
        options.append(dataclasses.replace(option, flag=flag, **about))
    return options


def option_of(name: str, hint: Any, **about: Any) -> Option | None:
    """Return the option of a field of this type; ``None`` for a type that is not written on a command line."""
    form = _form(hint)
    return None if form is None else Option(name=name, flag=f"--{name.replace('_', '-')}", **form, **about)


def _form(hint: Any) -> dict[str, Any] | None:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return next((form for one in inner if (form := _form(one)) is not None), None)
    if origin is Literal and all(isinstance(one, str) for one in inner):
        return {"kind": "str", "choices": inner}
    if origin in (tuple, Sequence, list) and inner and (form := _form(inner[0])):
        return {**form, "many": len(inner) if origin is tuple and ... not in inner else 0}
    kinds = {bool: "bool", int: "int", float: "float", str: "str"}
    kind = "path" if isinstance(hint, type) and issubclass(hint, Path) else kinds.get(hint)
    return None if kind is None else {"kind": kind}


@functools.cache
def _texts(command: Any) -> dict[str, str]:
    """Return the text below each field of a class, its own and those it inherits, as one line."""
    found: dict[str, str] = {}
    known: list[Any] = [one for one in command.__mro__ if dataclasses.is_dataclass(one)]
    for one in reversed(known):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        assert isinstance(tree, ast.ClassDef)
        found |= {
            field.target.id: " ".join(text.value.value.split())
            for field, text in zip(tree.body, tree.body[1:], strict=False)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
        }
    return found


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return a suggestion for a misspelt word; an empty text if no known word is similar."""
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _hyphens(word: str) -> str:
    """Return an option with hyphens where it is typed with underscores."""
    flag, sign, value = word.partition("=")
    return f"{flag.replace('_', '-')}{sign}{value}" if word.startswith("--") else word


def _usage(option: Option) -> str:
    if option.positional:
        many = "..." if option.many is not None else ""
        return f"{option.flag}{many}" if option.required else f"[{option.flag}{many}]"
    return f"{option.flag} {option.shown}"


def _shown(default: Any) -> str:
    if default is True:
        return "yes"
    if isinstance(default, tuple | list):
        return " ".join(map(_shown, default))
    if isinstance(default, float) and math.isfinite(default):
        return f"{default:g}" if float(f"{default:g}") == default else repr(default)
    return str(default)
