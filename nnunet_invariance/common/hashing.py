"""SHA-256 of files and of settings."""

import hashlib
import json
import os
from typing import Any

__all__ = ["sha256_of_file", "sha256_of_json"]

_BLOCK = 2**20  # bytes


def sha256_of_file(path: str | os.PathLike) -> str:
    """SHA-256 of the content of a file, in hexadecimal.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "a"
    >>> _ = path.write_bytes(b"abc")
    >>> sha256_of_file(path)[:8]
    'ba7816bf'
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_json(content: Any, sort_keys: bool = False) -> str:
    """SHA-256 of a value's JSON text, in hexadecimal.

    >>> sha256_of_json({"a": 1})[:8]
    'f9d86028'
    """
    return hashlib.sha256(json.dumps(content, sort_keys=sort_keys).encode()).hexdigest()
