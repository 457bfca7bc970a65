"""The pre-training methods and the trainers of the package: the one place that names them. Standard library only.

The command line, nnU-Net's look-up of trainers, the folders of weights, the evaluation and the tables of the
documentation read this module; nothing that it describes is imported before it is asked for. A new method needs one
:class:`MethodEntry` in :data:`METHODS` (see docs/add-a-method.md). A method outside of the package is added by
:func:`register`, or by an entry point of the group ``nnunet_invariance_methods`` that names a :class:`MethodEntry`.
"""

from __future__ import annotations

import functools
import importlib
import logging
import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NamedTuple

from nnunet_invariance.errors import OptionError

#: Entry point group in which other packages offer a :class:`MethodEntry`.
ENTRY_POINTS = "nnunet_invariance_methods"
#: What :attr:`TrainerEntry.method` says if a trainer accepts weights of any method, but only those given by name.
ANY_METHOD = "transfer"
#: Class names of networks that nnU-Net's plans can name.
CONVOLUTIONAL = ("PlainConvUNet", "ResidualEncoderUNet")
PLANNED_NETWORKS = (*CONVOLUTIONAL, "NNFormerUNet")


def _import_class(module: str, name: str, owner: str) -> type:
    """Import what an entry names; an error inside of an existing module passes as it is.

    Raises:
        OptionError: there is no such module, or no such class in it.
    """
    try:
        loaded = importlib.import_module(module) if module else None
    except ModuleNotFoundError as error:
        if not error.name or not f"{module}.".startswith(f"{error.name}."):
            raise
        loaded = None
    if hasattr(loaded, name):
        return getattr(loaded, name)
    missing = f"the module has no {name!r}" if loaded else f"there is no module {module!r}"
    raise OptionError(f"The registry entry {owner} names {module}.{name}, but {missing}. Correct the entry.")


@dataclass(frozen=True)
class Flag:
    """A command-line flag of one method that sets a field of its options class.

    Attributes:
        name: with the leading dashes; the attribute of the parsed arguments is the name with underscores.
        field: field of the options class. A flag without ``choices`` and ``metavar`` is a switch that sets it to True.
        help: one phrase; the default comes last.
        choices: the accepted values; empty for free text.
        metavar: how the help calls a free text.
    """

    name: str
    field: str
    help: str
    choices: tuple[str, ...] = ()
    metavar: str = ""

    @property
    def is_switch(self) -> bool:
        """Whether the flag takes no value."""
        return not self.choices and not self.metavar


@dataclass(frozen=True)
class TrainerEntry:
    """A trainer that the stock nnU-Net commands find by name.

    Attributes:
        name: name of the class.
        module: dotted name of the module that defines it.
        has_scratch_twin: whether ``NAME_scratch`` exists, which trains from random weights.
        method: the pre-training whose weights the trainer loads; :data:`ANY_METHOD`, or None if it loads none.
    """

    name: str
    module: str
    has_scratch_twin: bool = True
    method: str | None = None

    def load(self) -> type:
        """Import the class; see :func:`_import_class`."""
        return _import_class(self.module, self.name, f"of the trainer {self.name!r}")


@dataclass(frozen=True)
class MethodEntry:
    """What must be known about a pre-training method before it is imported.

    Attributes:
        name: as on the command line and in the name of the weights' folder.
        module: dotted name of the module that defines the class.
        class_name: subclass of :class:`~nnunet_invariance.pretraining.engine.method.Method`.
        arxiv: arXiv id of the publication.
        trainer: name of the trainer that loads the weights; empty if there is none.
        trainer_module: dotted name of the module that defines the trainer.
        networks: class names of the planned networks that the method can pre-train.
        dimensions: numbers of spatial dimensions that it supports.
        least_channels: smallest number of input channels; above one, channels must have different names.
        reads_cases: False if the method makes its own one-channel images.
        flags: its own command-line flags.
        network_presets: names of the networks that it pre-trains without a data set.
        has_shipped_weights: whether the package may contain weights of this method.
        command: the command that runs it; ``pretrain`` offers only its own methods.
        next_command: the command that uses the weights if there is no trainer, with fields for its arguments.
    """

    name: str
    module: str
    class_name: str
    arxiv: str
    trainer: str = ""
    trainer_module: str = ""
    networks: tuple[str, ...] = PLANNED_NETWORKS
    dimensions: tuple[int, ...] = (3,)
    least_channels: int = 1
    reads_cases: bool = True
    flags: tuple[Flag, ...] = ()
    network_presets: tuple[str, ...] = ()
    has_shipped_weights: bool = False
    command: str = "pretrain"
    next_command: str = "weights plan {dataset} {file}"

    def load(self) -> type:
        """Import the class; see :func:`_import_class`."""
        return _import_class(self.module, self.class_name, f"of the method {self.name!r}")


_PACKAGE = "nnunet_invariance.pretraining.methods"
_TRAINERS = "nnunet_invariance.trainers"

_ALIGNMENT = Flag(
    "--alignment",
    "alignment",
    "how the two crops of a pair are aligned (default: coordinates); sam uses the weights of `pretrain sam`",
    choices=("coordinates", "sam", "same-volume", "random"),
)
_PATIENTS = Flag(
    "--patients",
    "patients",
    "regular expression whose first group is the patient in a case's name; pairs join different patients "
    "(default: every volume is a patient)",
    metavar="PATTERN",
)

_PREVIEW = Flag("--preview", "preview", "write preview.png, which shows points and their matches")

METHODS = (
    MethodEntry(
        "alice", f"{_PACKAGE}.alice", "Alice", "2302.05615", "AliceTrainer", f"{_TRAINERS}.alice",
        flags=(_ALIGNMENT, _PATIENTS),
    ),
    MethodEntry("mae", f"{_PACKAGE}.mae", "MAE", "2111.06377", "MAETrainer", f"{_TRAINERS}.mae"),
    MethodEntry(
        "dense", f"{_PACKAGE}.dense", "Dense", "2011.05499", "DenseTrainer", f"{_TRAINERS}.dense",
        networks=CONVOLUTIONAL,
    ),
    MethodEntry(
        "anatomix", f"{_PACKAGE}.anatomix", "Anatomix", "2411.02372", "AnatomixTrainer", f"{_TRAINERS}.anatomix",
        reads_cases=False, network_presets=("anatomix", "plain3", "plain4", "plain6", "resenc3"),
        has_shipped_weights=True,
    ),
    MethodEntry(
        "puir", f"{_PACKAGE}.puir", "PUIR", "2411.06106", "PUIRTrainer", f"{_TRAINERS}.puir",
        networks=CONVOLUTIONAL, least_channels=2,
    ),
    MethodEntry(
        "sam", f"{_PACKAGE}.sam", "SAM", "2012.02383", flags=(_PREVIEW,),
        next_command="pretrain alice {dataset} {configuration} -p {plans} --alignment sam",
    ),
    MethodEntry(
        "puir_translation", f"{_PACKAGE}.puir_translation", "PUIRTranslation", "2411.06106",
        networks=CONVOLUTIONAL, least_channels=2, command="translate train",
    ),
)  # fmt: skip

#: Trainers that no pre-training method of the package belongs to.
OTHER_TRAINERS = (
    TrainerEntry("ICMSegTrainer", f"{_TRAINERS}.icmseg"),
    TrainerEntry("MaskGenTrainer", f"{_TRAINERS}.maskgen"),
    TrainerEntry("TransferTrainer", f"{_TRAINERS}.transfer", method=ANY_METHOD),
    TrainerEntry("BaselineTrainer", f"{_TRAINERS}.baseline", has_scratch_twin=False),
    TrainerEntry("BaselineTrainerDA5", f"{_TRAINERS}.baseline_da5", has_scratch_twin=False),
    TrainerEntry("ChannelDropoutTrainer", f"{_TRAINERS}.channel_dropout", has_scratch_twin=False),
)

_methods: dict[str, MethodEntry] = {entry.name: entry for entry in METHODS}
#: Length at the end of a trainer's name, or of an arm ``TRAINER_5epochs@PLANS``; the group is the number of epochs.
LENGTH_SUFFIX = re.compile(r"_([1-9][0-9]*)epochs?(?=@|$)")
_TRAINER_NAME = re.compile(r"(?P<base>\w+?)(?P<scratch>_scratch)?(?:_(?P<length>[1-9][0-9]*)epochs?)?")


def register(entry: MethodEntry) -> None:
    """Add a method, and its trainer if it has one, for this process.

    Raises:
        OptionError: another entry has the same name, or the same trainer.
    """
    known = _methods.get(entry.name)
    if known == entry:
        return
    if known is not None or (entry.trainer and entry.trainer in _trainers()):
        taken = entry.name if known is not None else entry.trainer
        msg = f"The name {taken!r} of the method {entry.name!r} ({entry.module}) is already registered."
        raise OptionError(f"{msg} Give the method and its trainer names of their own.")
    _methods[entry.name] = entry


@functools.cache
def _load_entry_points() -> None:
    """Register the methods that installed packages offer; a package that fails is named in a warning and left out."""
    from importlib.metadata import entry_points

    for point in entry_points(group=ENTRY_POINTS):
        try:
            register(point.load())
        except Exception as error:  # noqa: BLE001 - whatever another package does, ours must stay usable
            logging.getLogger(__name__).warning(
                "the method %r of the entry point group %s cannot be used (%r); repair or uninstall its package",
                point.name, ENTRY_POINTS, error,
            )  # fmt: skip


def methods() -> dict[str, MethodEntry]:
    """Every registered method by name, those of other packages last."""
    _load_entry_points()
    return dict(_methods)


def pretrain_methods() -> dict[str, MethodEntry]:
    """The methods that ``nnunet-invariance pretrain`` offers, by name."""
    return {name: entry for name, entry in methods().items() if entry.command == "pretrain"}


def get_method(name: str) -> MethodEntry:
    """The entry of a method.

    Raises:
        OptionError: no method has this name; names the nearest.

    >>> get_method("mae").trainer
    'MAETrainer'
    """
    known = methods()
    if name in known:
        return known[name]
    near = get_close_matches(name, known, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise OptionError(
        f"There is no pre-training method {name!r}; expected one of {', '.join(pretrain_methods())}.{hint}"
    )


def trainers() -> dict[str, TrainerEntry]:
    """Every trainer by the name of its class, without twins and lengths.

    >>> trainers()["MAETrainer"].method
    'mae'
    """
    _load_entry_points()
    return _trainers()


def _trainers() -> dict[str, TrainerEntry]:
    of_methods = [TrainerEntry(e.trainer, e.trainer_module, method=e.name) for e in _methods.values() if e.trainer]
    return {entry.name: entry for entry in (*of_methods, *OTHER_TRAINERS)}


class TrainerName(NamedTuple):
    """The parts of ``NAME[_scratch][_<N>epoch[s]]``; ``epochs`` is None if the name has no length."""

    entry: TrainerEntry
    scratch: bool
    epochs: int | None


def parse_trainer_name(name: str) -> TrainerName | None:
    """The parts of a trainer's name; None if the trainer is not ours, or has no such twin.

    >>> parse_trainer_name("MAETrainer_scratch_5epochs")[1:]
    (True, 5)
    """
    match = _TRAINER_NAME.fullmatch(name)
    entry = trainers().get(match["base"]) if match else None
    if match is None or entry is None or (match["scratch"] and not entry.has_scratch_twin):
        return None
    return TrainerName(entry, bool(match["scratch"]), int(match["length"]) if match["length"] else None)


def method_of_trainer(name: str) -> str | None:
    """The method whose weights a trainer starts from, :data:`ANY_METHOD`, or None if it starts from random weights.

    >>> method_of_trainer("MAETrainer_5epochs"), method_of_trainer("MAETrainer_scratch"), method_of_trainer("other")
    ('mae', None, None)
    """
    parsed = parse_trainer_name(name)
    return None if parsed is None or parsed.scratch else parsed.entry.method


def trainer_for_weights(method: str) -> str:
    """Name of the trainer that loads weights of ``method``; the trainer for any weights if the method has none.

    >>> trainer_for_weights("anatomix"), trainer_for_weights("voco")
    ('AnatomixTrainer', 'TransferTrainer')
    """
    of_method = {entry.method: name for name, entry in trainers().items()}
    return of_method.get(method, of_method[ANY_METHOD])
