"""The settings of a training, in a file beside its state and later in the folder of its network; ``--c`` reads them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_invariance.common.json_files import read_json, write_json
from nnunet_invariance.common.json_forms import Maybe
from nnunet_invariance.common.wording import contradiction
from nnunet_invariance.diffusion.options import TrainingOptions
from nnunet_invariance.errors import DamagedFileError, OptionError, StyleFolderError

#: File in the folder of a finished network: the settings of its training.
RECORD = "training.json"
FORM = {
    "commands": [str],
    "base": str,
    "base_folder": str,
    "prompt": str,
    "conditions": Maybe([str]),
    "device": str,
    "options": dict,
}
#: Settings that do not change the network, so that a continued training may have others.
FREE = frozenset({"commands", "base_folder", "device", "save_every"})


def new_record(
    base_folder: Path, prompt: str, size: int, dataset: str, options: TrainingOptions, device: str, command: str
) -> dict[str, Any]:
    """The settings of a training, as they are written.

    Args:
        base_folder: folder of the base model; its name belongs to the settings that must not change.
        size: pixels of the slices.
        dataset: name of the data set that the slices were cut from.
        command: the command line of the training; "" if it was not started by one.
    """
    return {
        "commands": [command] if command else [],
        "base": base_folder.absolute().name,
        "base_folder": str(base_folder.absolute()),
        "prompt": prompt,
        "size": size,
        "dataset": dataset,
        "device": device,
        "options": options.to_dict(),
    }


def read_record(folder: Path) -> dict[str, Any]:
    """The settings with which a finished network was trained.

    Raises:
        DamagedFileError: the file is missing or damaged.
    """
    return read_json(folder / RECORD, form=FORM)


def running_record(target: Path) -> Path:
    """The file with the settings of a training that is not finished, beside its network's folder ``target``."""
    return target.with_name(f"{target.name}_{RECORD}")


def start_record(target: Path, record: Mapping[str, Any], resume: bool) -> dict[str, Any]:
    """Write the record of a training that starts, and return it; one that is continued keeps its earlier commands.

    Raises:
        DamagedFileError: the record of the training that is continued is damaged.
        OutputError: the file cannot be written.
    """
    path = running_record(target)
    earlier = _read(path)["commands"] if resume and path.is_file() else []
    content = {**record, "commands": [*earlier, *record["commands"]]}
    write_json(path, content)
    return content


def fixed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a record that must not change while a training is continued."""
    options = {key: value for key, value in record["options"].items() if key not in FREE}
    return {**{key: value for key, value in record.items() if key not in FREE}, "options": options}


def continued_settings(target: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with which a training is continued: those of its record, and those given now that may change.

    Args:
        target: folder of the network; the record lies in it or, before the training is finished, beside it.
        given: values of the flags that were given, by the name of the setting.

    Returns:
        The folder ``base``, ``prompt``, ``conditions``, ``device`` and all fields of :class:`TrainingOptions`.

    Raises:
        StyleFolderError: there is no training to continue.
        OptionError: names a flag that differs from the record, both values, and the remedy.
        DamagedFileError: the record is damaged.
    """
    found = [path for path in (running_record(target), target / RECORD) if path.is_file()]
    if not found:
        msg = f"--c: there is nothing to continue, {running_record(target)} does not exist. Start without --c."
        raise StyleFolderError(msg)
    stored = _read(found[0])
    before = {
        "base": Path(stored["base_folder"]),
        "prompt": stored["prompt"],
        "conditions": stored.get("conditions") or [],
        "device": stored["device"],
        **stored["options"],
    }
    for name, value in given.items():
        if name not in FREE and _comparable(value) != _comparable(before[name]):
            raise OptionError(contradiction(target, f"--{name.replace('_', '-')}", _words(value), _words(before[name])))
    return {**before, **given}


def _comparable(value: Any) -> Any:
    """A folder by its name, because it may have been moved; a list without its order."""
    if isinstance(value, Path):
        return value.absolute().name
    return sorted(value) if isinstance(value, list) else value


def _words(value: Any) -> str:
    return " ".join(value) or "none" if isinstance(value, list) else str(value)


def _read(path: Path) -> dict[str, Any]:
    remedy = "Restore it from a copy, or move it and the state beside it away, and start without --c."
    stored = read_json(path, remedy=remedy, form=FORM)
    try:
        TrainingOptions(**stored["options"])
    except (OptionError, TypeError) as error:  # TypeError: an option that does not exist
        raise DamagedFileError(f"{path} does not have the expected content: {error} {remedy}") from error
    return stored
