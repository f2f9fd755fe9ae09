"""One read-only view of a zip file and of the folder that somebody extracted from it; nothing is written to disk."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from metagrad.data.names import refuse_unsafe_name, short, unsafe
from metagrad.data.zips import ZipFile, refuse_overlaps, refuse_total
from metagrad.errors import MetagradError

DEFAULT_MAX_MEMBER_BYTES = 64 * 2**20

# What zipfile raises for a file that is not a zip, is cut short, encrypted or damaged.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError)


class Members(ABC):
    """Read-only view of named byte strings; made by `open_members`, best used in a ``with`` statement.

    Attributes
    ----------
    source:
        the zip file or folder behind the view.
    names:
        posix names, sorted; a folder's names begin with its own name, as they do in a zip made of it.
    max_member_bytes:
        no member above this size is read.
    """

    def __init__(self, source: Path, names: Iterable[str], max_member_bytes: int) -> None:
        self.source, self.names, self.max_member_bytes = source, tuple(sorted(names)), max_member_bytes

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return the bytes of one member, by one of ``names``.

        Raises
        ------
        KeyError
            if there is no such member.
        MetagradError
            if the member is damaged, cannot be read or is larger than ``max_member_bytes``.
        """

    def close(self) -> None:  # noqa: B027 (a folder has nothing to close)
        """Release the file behind the view."""

    def __enter__(self) -> Members:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _refuse_size(self, name: str, size: int) -> None:
        if size > self.max_member_bytes:
            raise MetagradError(
                f"{self.source}: member {short(name)!r} has {size} bytes or more, over the limit of "
                f"{self.max_member_bytes}; this is not the expected data, get the archive again"
            )


class _ZipMembers(Members):
    def __init__(
        self, file: ZipFile, source: Path, archive: zipfile.ZipFile, infos: dict[str, zipfile.ZipInfo], max_bytes: int
    ) -> None:
        super().__init__(source, infos, max_bytes)
        self._file, self._archive, self._infos = file, archive, infos

    def read(self, name: str) -> bytes:
        info = self._infos[name]
        self._refuse_size(name, info.file_size)
        if info.flag_bits & 1:
            raise MetagradError(f"{self.source}: member {short(name)!r} is encrypted: unpack it and name the folder")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # zipfile bounds how much it inflates at a time for these two methods only.
            raise MetagradError(
                f"{self.source}: member {short(name)!r} uses an unusual compression; zip it again with deflate"
            )
        try:
            with self._archive.open(info) as stream:
                # One byte more than declared: zipfile compares the checksum at the end, which also reveals a member
                # longer than declared.
                data = stream.read(info.file_size + 1)
        except _ZIP_ERRORS as error:
            raise _damaged(self.source, f"member {short(name)!r}: {error}") from error
        if len(data) != info.file_size:
            raise _damaged(self.source, f"member {short(name)!r} has {len(data)} of {info.file_size} bytes")
        return data

    def close(self) -> None:
        self._archive.close()
        self._file.close()  # zipfile closes only what it opened itself


class _FolderMembers(Members):
    def __init__(self, source: Path, files: dict[str, Path], max_bytes: int) -> None:
        super().__init__(source, files, max_bytes)
        self._files = files

    def read(self, name: str) -> bytes:
        path = self._files[name]
        try:
            with path.open("rb") as stream:
                data = stream.read(self.max_member_bytes + 1)
        except OSError as error:
            raise MetagradError(
                f"{short(str(path))} cannot be read ({_reason(error)}); check its permissions or extract it again"
            ) from error
        self._refuse_size(name, len(data))
        return data


def open_members(
    source: Path,
    *,
    keep: Callable[[str], bool] | None = None,
    max_member_bytes: int = DEFAULT_MAX_MEMBER_BYTES,
) -> Members:
    """Open a zip file or an extracted folder for reading; nothing is extracted to disk.

    Parameters
    ----------
    source:
        a zip file, or a folder, whose members are then named as if its parent were the archive:
        ``data/images`` has members ``images/...``.
    keep:
        which names to list; all if not given. Unsafe entries are refused whether kept or not.
    max_member_bytes:
        larger members are refused when they are read.

    Raises
    ------
    MetagradError
        if ``source`` is missing or not a whole zip, or has an entry that would escape its folder: an
        absolute name, ``..``, a backslash, a drive letter, a symbolic link.
    """
    if source.is_dir():
        files = {name: Path(entry.path) for name, entry in _walk(source) if keep is None or keep(name)}
        return _FolderMembers(source, files, max_member_bytes)
    if not source.exists():
        raise MetagradError(f"{source} does not exist; give a zip file or an extracted folder")
    if not source.is_file():  # a read of a pipe or device might never end
        raise MetagradError(f"{source} is not a plain file; give a zip file or an extracted folder")
    try:
        file = ZipFile(source)
        try:
            archive = zipfile.ZipFile(file)
            infos = _checked_infos(source, archive)
            refuse_overlaps(source, archive)
            if keep is not None:
                infos = {name: info for name, info in infos.items() if keep(name)}
            refuse_total(source, infos.values(), file.size)
        except BaseException:
            file.close()
            raise
        file.directory = False
    except _ZIP_ERRORS as error:
        raise _damaged(source, _reason(error)) from error
    return _ZipMembers(file, source, archive, infos, max_member_bytes)


def contents_digest(members: Members, progress: Callable[[int, int], None] | None = None) -> str:
    """Return a digest of the names and bytes of all members, however they are packed.

    It is the sha256 (hex) over the members in sorted order: the name in utf-8, a zero byte, then the 32 raw bytes of
    the sha256 of the member. ``progress`` is called with (members read, members in all) now and then.

    Raises
    ------
    MetagradError
        if a member cannot be read.
    """
    digest, total = hashlib.sha256(), len(members.names)
    for done, name in enumerate(members.names, start=1):
        digest.update(name.encode("utf-8") + b"\0" + hashlib.sha256(members.read(name)).digest())
        if progress is not None and (done % 256 == 0 or done == total):
            progress(done, total)
    return digest.hexdigest()


def fingerprint(source: Path, *, keep: Callable[[str], bool] | None = None) -> str:
    """Return the same string again unless a file was added, removed, renamed or written: no file is read.

    Of a folder, only the names that ``keep`` accepts count; all if it is not given.

    Raises
    ------
    MetagradError
        if the system says nothing of ``source``, or it is a folder with a symbolic link that leaves it.
    """
    try:
        if not source.is_dir():
            status = source.stat()
            return _state(status, status.st_ino)
        # A folder's own time does not change when a file deep inside does.
        lines = [
            f"{name}\0{_state(entry.stat(), entry.inode())}\n"
            for name, entry in _walk(source)
            if keep is None or keep(name)
        ]
    except OSError as error:
        raise MetagradError(f"{source} cannot be read ({_reason(error)}); check its permissions") from error
    return hashlib.sha256("".join(sorted(lines)).encode("utf-8")).hexdigest()


def _state(status: os.stat_result, number: int) -> str:
    # Size and time alone do not show that two files exchanged their names: an archive gives all its files one time.
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}:{number}"


def _checked_infos(source: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    infos: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        # orig_filename is the name as stored: zipfile cuts `filename` at a zero byte and, on Windows, turns
        # backslashes into slashes.
        name = info.orig_filename
        if stat.S_ISLNK(info.external_attr >> 16):
            raise unsafe(source, name, "is a symbolic link")
        refuse_unsafe_name(source, name.removesuffix("/"))
        if name.endswith("/"):
            continue
        if name in infos:
            raise unsafe(source, name, "is there twice")
        infos[name] = info
    return infos


def folder_name(folder: Path) -> str:
    """Return what the names of a folder's members begin with: its own name, where it can be one of a zip's."""
    # absolute() rather than resolve(): a link named "images" to a folder of another name is "images" here.
    name = folder.absolute().name
    try:
        refuse_unsafe_name(folder, name)
    except MetagradError:  # "..", or a name that only another system takes for an absolute one
        return "folder"
    return "folder" if name.startswith((".", "__MACOSX")) else name


def _walk(folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield (member name, entry) for every file below ``folder``; refuse what would lead out of it."""
    root = folder.resolve()
    pending = [(folder_name(folder), root)]
    while pending:
        prefix, path = pending.pop()
        try:
            with os.scandir(path) as scan:
                entries = list(scan)
        except OSError as error:
            shown = short(str(path))
            raise MetagradError(f"{shown} cannot be listed ({_reason(error)}); check its permissions") from error
        for entry in entries:
            if entry.name.startswith("."):  # a version control's, a system's, a virtual environment
                continue
            name = f"{prefix}/{entry.name}"
            refuse_unsafe_name(folder, name)
            if entry.is_symlink():
                _refuse_stray_link(folder, root, name, Path(entry.path))
            if entry.is_dir():
                pending.append((name, Path(entry.path)))
            elif entry.is_file():
                yield name, entry
            else:
                raise unsafe(folder, name, "is not a plain file")


def _refuse_stray_link(folder: Path, root: Path, name: str, link: Path) -> None:
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise unsafe(folder, name, "is a symbolic link to nothing") from error
    if not target.is_relative_to(root):
        raise unsafe(folder, name, "is a symbolic link out of the folder")
    if target.is_dir():
        # Following it could go round in circles or list files twice.
        raise unsafe(folder, name, "is a symbolic link to a folder")


def _damaged(source: Path, reason: str) -> MetagradError:
    return MetagradError(
        f"{source} is neither a folder nor a whole zip file ({reason}); if it is a zip, it is cut short or damaged: "
        "get it again"
    )


def _reason(error: BaseException) -> str:
    # The message of an OSError repeats the path, which the sentence around it already names.
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
