"""CSV files: atomic writing of dataclass instances, and reading with errors that name the damaged line."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from nnunet_invariance.common.json_files import write_text
from nnunet_invariance.errors import DamagedFileError

__all__ = ["read_csv", "read_csv_rows", "write_csv"]

Row = TypeVar("Row")
_REMEDY = "Restore the file from a copy, or delete it and repeat the command that wrote it."


def write_csv(path: Path, rows: Sequence[Any], kind: type) -> None:
    """Write instances of the dataclass ``kind`` as CSV, atomically; floats keep full precision, NaN becomes ``nan``.

    Raises:
        OutputError: the file could not be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=[f.name for f in fields(kind)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_text(path, text.getvalue())


def read_csv(path: Path, kind: type[Row], remedy: str = _REMEDY) -> list[Row]:
    """Read the dataclass instances that :func:`write_csv` wrote; their fields are str, int or float.

    >>> import dataclasses, tempfile
    >>> @dataclasses.dataclass
    ... class Score:
    ...     case: str
    ...     dice: float
    >>> path = Path(tempfile.mkdtemp()) / "scores.csv"
    >>> write_csv(path, [Score("a", 0.5)], Score)
    >>> read_csv(path, Score)
    [Score(case='a', dice=0.5)]

    Raises:
        DamagedFileError: the file is missing, empty or truncated, or a value has the wrong type; the message names
            the line.
    """
    types = get_type_hints(kind)
    names = [f.name for f in fields(kind)]  # type: ignore[arg-type]  # a TypeVar bound cannot express "dataclass"
    result = []
    for number, row in enumerate(read_csv_rows(path, names, remedy), start=2):
        try:
            result.append(kind(**{name: types[name](row[name]) for name in names}))
        except ValueError as error:
            raise DamagedFileError(f"{path}, line {number}: {error}. {remedy}") from error
    return result


def read_csv_rows(path: Path, columns: Sequence[str], remedy: str = _REMEDY) -> list[dict[str, str]]:
    """Read the rows of a CSV file as text, by column; it must have at least ``columns``.

    Raises:
        DamagedFileError: the file is missing, empty or truncated, or lacks a column; the message names the line.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            found = list(reader.fieldnames or [])
            if missing := [name for name in columns if name not in found]:
                has = f"it has {', '.join(found)}" if found else "it is empty"
                raise DamagedFileError(f"{path} has no column {', '.join(missing)}: {has}. {remedy}")
            rows = []
            for row in reader:
                if None in row or None in row.values():
                    msg = f"{path}, line {reader.line_num}: expected {len(found)} values. {remedy}"
                    raise DamagedFileError(msg)
                rows.append(row)
            return rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DamagedFileError(f"{path} cannot be read ({error}). {remedy}") from error
