"""The bytes of a source's files, wherever they lie: on this machine, in an object store, on the Hub; unpacked. No torch.

In goes a `File`, out comes a stream. Object stores are reached through pyarrow's file systems (s3, gs, hdfs) and fsspec's for
every other address; a file of the Hub is fetched into the cache of `huggingface_hub` and read there.
"""

from __future__ import annotations

import glob
import io
import re
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import quote, urlsplit

from argosy.data.document import File, Unreadable, printable
from argosy.errors import Refused

PACKED = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
ARROW = ("s3", "gs", "gcs", "hdfs", "viewfs", "file")  # what pyarrow reaches by itself; fsspec has the rest
BLOCK = 4 * 1024 * 1024  # bytes read at once from an object store


def scheme(address: str) -> str:
    """The part before "://" in small letters; "" for a path."""
    head, found, _ = address.partition("://")
    return head.lower() if found and head.isascii() and head.replace("+", "").replace("-", "").isalnum() else ""


def packed(path: Path) -> bool:
    """Whether the file must be read from its beginning."""
    return path.suffix.lower() in PACKED


def unpacked(file: File) -> BinaryIO:
    """The file's bytes from the beginning, unpacked. Raises OSError, Unreadable."""
    codec = PACKED.get(file.path.suffix.lower())
    stream = raw(file)
    if codec is None:
        return stream
    import pyarrow  # 0.2 s: only where a file is packed

    return cast(BinaryIO, pyarrow.CompressedInputStream(stream, codec))


def raw(file: File) -> BinaryIO:
    """The file's own bytes; can be read from any place. Raises OSError, Unreadable."""
    if not file.url:
        return file.path.open("rb")
    if scheme(file.url) == "hf":
        from argosy.data.sources import hub

        return hub.fetched(file).open("rb")
    system, path = connected(file.url)
    try:
        arrow = hasattr(system, "open_input_file")
        opened = system.open_input_file(path) if arrow else system.open(path, "rb", block_size=BLOCK)
        return io.BufferedReader(_Whole(opened), BLOCK)
    except Exception as error:  # a store's own, its HTTP client's and the system's
        raise Unreadable(f"cannot be read: {first_line(error)}") from error


class _Whole(io.RawIOBase):
    """A file of a store as Python's own kind: buffering and seeking are the same for all, and so is what goes wrong."""

    def __init__(self, file: Any):
        self._file = file

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, place: int, whence: int = 0) -> int:
        """Go to `place`; gives where that is."""
        self._file.seek(place, whence)
        return int(self._file.tell())

    def tell(self) -> int:
        """The place."""
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as the file goes. Raises OSError, whatever the store raises."""
        try:
            block = self._file.read(len(buffer))
        except OSError:
            raise
        except Exception as error:
            raise OSError(first_line(error)) from error
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        """Let go of it."""
        self._file.close()
        super().close()


def connected(address: str) -> tuple[Any, str]:
    """The file system of `address`, and the path on it. Refused where it is not known here."""
    if scheme(address) in ARROW:
        from pyarrow import fs

        try:
            found: tuple[Any, str] = fs.FileSystem.from_uri(address)
            return found
        except (OSError, ValueError, TypeError) as error:
            raise Refused("this address cannot be opened.", where=shown(address), found=first_line(error)) from None
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError, OSError) as error:
        raise Refused(
            f"addresses with {scheme(address)}:// are not known here.",
            where=shown(address),
            found=first_line(error),
            do="s3://, gs://, hdfs:// and hf:// need nothing more; for others install their fsspec package.",
        ) from None
    return system, str(path)


def listed(address: str) -> list[tuple[str, str, int, str]]:
    """(address, name below `address`, bytes, stamp) of each file at `address`: itself, those below it, or those of a pattern.

    Refused where there is none, or the store says no.
    """
    where = f'data.source = "{shown(address)}"'
    system, path = connected(address)
    try:
        entries = _arrow(system, path) if hasattr(system, "get_file_info") else _fsspec(system, path)
    except Exception as error:  # as above
        raise Refused("this address cannot be read.", where=where, found=first_line(error)) from None
    if not entries:
        raise Refused("there is no such file or folder.", where=where, found=f"nothing at {shown(address)}")
    root = fixed(path)
    return [(_address(place, address), _below(place, root), size, stamp) for place, size, stamp in sorted(entries)]


def shown(address: str) -> str:
    """`address` for people: without the name, secret and options that reach the store."""
    plain = re.sub(r"://[^/@]*@", "://", address)
    return printable(plain.partition("?")[0] if scheme(address) in ARROW else plain)


def _address(place: str, root: str) -> str:
    """The address of a file that a listing of `root` calls `place`."""
    if "://" in place or scheme(root) not in ARROW:
        return place if "://" in place else f"{scheme(root)}://{place}"
    parts = urlsplit(root)
    user, found, _ = parts.netloc.rpartition("@")
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{user}{found}{quote(place)}{query}"


def fixed(path: str) -> str:
    """The part of `path` before its first pattern, up to a "/"."""
    if not glob.has_magic(path):
        return path.rstrip("/")
    plain = []
    for part in path.split("/"):
        if glob.has_magic(part):
            break
        plain.append(part)
    return "/".join(plain)


def _below(place: str, root: str) -> str:
    inner = place.removeprefix(root).strip("/")
    return printable(inner or place.rsplit("/", 1)[-1])


def _arrow(system: Any, path: str) -> list[tuple[str, int, str]]:
    from fnmatch import fnmatchcase

    from pyarrow import fs

    root = fixed(path)
    info = system.get_file_info(root)
    if info.type == fs.FileType.File:
        found = [info]
    elif info.type == fs.FileType.NotFound:
        return []
    else:
        found = system.get_file_info(fs.FileSelector(root, recursive=True))
    wanted = path if glob.has_magic(path) else "*"
    return [
        (one.path, int(one.size), str(one.mtime_ns))
        for one in found
        if one.type == fs.FileType.File and fnmatchcase(one.path, wanted)
    ]


def _fsspec(system: Any, path: str) -> list[tuple[str, int, str]]:
    if glob.has_magic(path):
        found = system.glob(path, detail=True)
    else:
        found = system.find(path, detail=True)
    entries = found.values() if isinstance(found, dict) else []
    return [
        (str(one["name"]), int(one.get("size") or 0), _stamp(one)) for one in entries if one.get("type") != "directory"
    ]


def _stamp(entry: dict[str, Any]) -> str:
    """What tells another content of the same name: the store's tag, else the time of its last change."""
    for name in ("ETag", "etag", "md5Hash", "content_hash", "LastModified", "last_modified", "mtime", "created"):
        if entry.get(name):
            return str(entry[name])
    return ""


def first_line(error: BaseException) -> str:
    """What `error` says, on one line, without its type."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return printable(str(said).strip().splitlines()[0][:200]) if str(said).strip() else type(error).__name__
