"""Text and JSON files: atomic writing, and reading with errors that name the damaged line."""

import json
import os
import re
from pathlib import Path
from typing import Any

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.json_forms import difference
from nnunet_invariance.errors import DamagedFileError, OutputError

__all__ = ["claim_folder", "read_json", "write_json", "write_text"]

_REQUIRED: Any = object()
#: Half of a pair of UTF-16 units, which no file in UTF-8 can hold.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_REMEDY = "Restore the file from a copy, or delete it and repeat the command that wrote it."


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, atomically.

    Raises:
        OutputError: the file could not be written.
    """
    atomic_write(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Write JSON, atomically.

    Raises:
        OutputError: the file could not be written.
    """
    write_text(path, json.dumps(content, indent=indent))


def read_json(path: Path, default: Any = _REQUIRED, remedy: str = _REMEDY, form: Any = (dict, list)) -> Any:
    """Read a JSON file and check its form.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.json"
    >>> write_json(path, {"seed": 1})
    >>> read_json(path)
    {'seed': 1}
    >>> read_json(path.with_name("b.json"), default={})
    {}

    Args:
        path: the file.
        default: returned if there is no such file; without a default, a missing file is an error.
        remedy: last sentence of the error message.
        form: see :mod:`~nnunet_invariance.common.json_forms`; default: an object or a list.

    Raises:
        DamagedFileError: the file is missing, unreadable, truncated, not JSON or of another form; the message has line
            and column, or the key.
    """
    if default is not _REQUIRED and not os.path.exists(path):  # Path.exists raises if the name is too long
        return default
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(content, ensure_ascii=False).encode()
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read ({error.strerror or error}). {remedy}") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        size = "it is empty" if not error.doc else f"{error.msg} at {where} of {error.doc.count(chr(10)) + 1} lines"
        raise DamagedFileError(f"{path} is not a valid JSON file: {size}. {remedy}") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, a number with too many digits, or nested too deeply
        raise DamagedFileError(f"{path} is not a valid JSON file: {str(error).splitlines()[0]}. {remedy}") from error
    if found := difference(content, form):
        raise DamagedFileError(f"{path} does not have the expected content: {found}. {remedy}")
    return content


def claim_folder(path: Path, record: dict[str, Any], made: str) -> None:
    """Record the settings of a folder in ``path``, or check that they equal the recorded settings.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "record.json"
    >>> claim_folder(path, {"seed": 1}, "these pairs")
    >>> claim_folder(path, {"seed": 1}, "these pairs")

    Args:
        path: JSON file in the folder.
        record: settings that determine the content of the folder.
        made: subject of the error message, for example ``"these slices"``.

    Raises:
        OutputError: the folder was created with other settings; the message names them.
        DamagedFileError: the record cannot be read.
    """
    record = json.loads(json.dumps(record))  # tuples become lists, as in the file
    if not path.is_file():
        write_json(path, record)
        return
    before = read_json(path, form=dict)
    if changed := [key for key in {**before, **record} if before.get(key) != record.get(key)]:
        was = ", ".join(f"{key} was {_short(before.get(key))}, is now {_short(record.get(key))}" for key in changed)
        msg = f"{path}: {made} were made with other settings ({was}). Give the same settings, or choose another folder."
        raise OutputError(msg)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
