"""The files that the demo uploads, checked as a file service checks them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import examples
from core.errors import StackError

ESSAYS = Path(examples.__file__).parent / "essays"
SHORTEST, LONGEST = 50, 200_000  # characters of an essay that the demo's file service accepts


@dataclass(frozen=True)
class File:
    """A file of the upload; `error_code` says why the file service rejects it."""

    name: str
    size: int
    md5: str
    error_code: str | None = None


def read_folder(folder: Path) -> list[File]:
    """Check every visible file of a folder. Raises StackError when there is nothing to upload."""
    try:
        paths = sorted(f for f in folder.iterdir() if f.is_file() and not f.name.startswith("."))
    except OSError as error:
        raise StackError(f"cannot read the folder {folder}: {error.strerror}") from error
    if not paths:
        raise StackError(f"{folder} holds no files; give a folder of text files")
    return [checked(path.name, path.read_bytes()) for path in paths]


def checked(name: str, body: bytes) -> File:
    """Check a file as it was uploaded."""
    md5 = hashlib.md5(body).hexdigest()  # noqa: S324 - the contract's checksum
    return File(name, len(body), md5, _error_code(body))


def _error_code(body: bytes) -> str | None:
    try:
        length = len(body.decode("utf-8").strip())
    except UnicodeDecodeError:
        return "TEXT_EXTRACTION_FAILED"
    if length == 0:
        return "EMPTY_CONTENT"
    if length < SHORTEST:
        return "CONTENT_TOO_SHORT"
    return "CONTENT_TOO_LONG" if length > LONGEST else None
