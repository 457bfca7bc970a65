"""``run.json`` in the folder of a run: its commands and all its settings, with which ``--c`` continues it."""

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_invariance.common.json_files import read_json, write_json
from nnunet_invariance.common.json_forms import Maybe
from nnunet_invariance.common.wording import contradiction
from nnunet_invariance.errors import DamagedFileError, OptionError
from nnunet_invariance.pretraining.engine.method import Method
from nnunet_invariance.pretraining.engine.options import LoopOptions
from nnunet_invariance.pretraining.engine.resume import FREE
from nnunet_invariance.pretraining.engine.settings import PRESET, make_loop_options, make_method_options

logger = logging.getLogger(__name__)

RECORD = "run.json"
FORM = {
    "commands": [str],
    "method": str,
    "network": Maybe(str),
    "images": [str],
    "device": str,
    "probe": int,
    "tensorboard": bool,
    "loop": dict,
    "options": dict,
}


@dataclass(frozen=True)
class RunSettings:
    """The settings of a run; None, or a missing key, if a setting was not given.

    Attributes:
        network: name of the network of a run without a data set.
        images: folders of unlabelled scans.
        probe: epochs between two measurements of the monitor; 0: it never measures.
        tensorboard: whether the curves are also written for TensorBoard.
        loop: options of the loop by name.
        options: options of the method by name, and the name of a preset.

    >>> RunSettings(device="cpu").loop
    {}
    """

    network: str | None = None
    images: tuple[Path, ...] | None = None
    device: str | None = None
    probe: int | None = None
    tensorboard: bool | None = None
    loop: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def write_record(
    folder: Path, method: Method, loop: LoopOptions, settings: RunSettings, command: str, resume: bool
) -> None:
    """Write the record of a run with the options in force; a continued run keeps its earlier commands.

    Raises:
        DamagedFileError: the record of the run that is continued is damaged.
        OutputError: the file cannot be written.
    """
    earlier = _read(folder, type(method))["commands"] if resume and (folder / RECORD).is_file() else []
    content = {
        "commands": [line for line in (*earlier, command) if line],
        "method": method.name,
        "network": settings.network,
        "images": [str(path.absolute()) for path in settings.images or ()],
        "device": settings.device,
        "probe": settings.probe or 0,
        "tensorboard": bool(settings.tensorboard),
        "loop": loop.to_dict(),
        "options": method.options.to_dict(),
    }
    write_json(folder / RECORD, content)


def continued_settings(folder: Path, kind: type[Method], given: RunSettings) -> RunSettings:
    """The settings with which a run is continued: those of its record, and those given now that it may change.

    Device and measurements do not change the weights, and a folder of scans may have moved: the loop compares the data.

    Raises:
        OptionError: names a setting that differs from the record, both values, and the remedy.
        DamagedFileError: the record is damaged.
    """
    if not (folder / RECORD).is_file():
        if folder.is_dir():
            logger.warning("%s is missing: this run needs every flag that it was started with", folder / RECORD)
        return given
    stored = _read(folder, kind)
    if given.network not in (None, stored["network"]):
        raise _differs(folder, "--network", given.network, stored["network"])
    return RunSettings(
        network=stored["network"],
        images=given.images or tuple(map(Path, stored["images"])),
        device=given.device or stored["device"],
        probe=stored["probe"] if given.probe is None else given.probe,
        tensorboard=given.tensorboard or stored["tensorboard"],
        loop=_continued_loop(folder, kind, stored["loop"], given.loop),
        options=_continued_options(folder, kind, stored, given.options),
    )


def _read(folder: Path, kind: type[Method]) -> dict[str, Any]:
    path = folder / RECORD
    remedy = f"Restore it from a copy, or delete it and repeat --c with every flag that {kind.name} was started with."
    stored = read_json(path, remedy=remedy, form=FORM)
    if stored["method"] != kind.name:
        raise _differs(folder, "METHOD", kind.name, stored["method"])
    try:
        LoopOptions(**stored["loop"])
        kind.options_class(**stored["options"])
    except (OptionError, TypeError) as error:  # TypeError: an option that does not exist
        raise DamagedFileError(f"{path} does not have the expected content: {error} {remedy}") from error
    return stored


def _continued_loop(
    folder: Path, kind: type[Method], stored: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    now = make_loop_options(kind, {**stored, **given}).to_dict()
    _compare(folder, given, now, stored, FREE)
    return now


def _continued_options(
    folder: Path, kind: type[Method], stored: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    before, changes = stored["options"], dict(given)
    if preset := changes.pop(PRESET, ""):
        kind.options_class.from_preset(preset)  # names an unknown preset
        changes = {**kind.options_class.presets[preset], **changes}
    steps = LoopOptions(**stored["loop"]).steps
    now = make_method_options(kind, {**before, **changes}).resolve(steps).to_dict()
    _compare(folder, changes, now, before, kind.output_options)
    return now


def _compare(
    folder: Path, names: Iterable[str], now: Mapping[str, Any], before: Mapping[str, Any], free: Collection[str]
) -> None:
    for name in names:
        if now[name] != before.get(name) and name not in free:
            raise _differs(folder, name, now[name], before.get(name))


def _differs(folder: Path, name: str, now: Any, before: Any) -> OptionError:
    return OptionError(contradiction(folder, name, now, before))
