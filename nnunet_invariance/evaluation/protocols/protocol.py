"""What all protocols share: their options, and the steps from the chosen cases to a finished comparison."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from nnunet_invariance.common.options import Options, choice, count, flag, is_int, option
from nnunet_invariance.evaluation.protocols.arms import Selection
from nnunet_invariance.evaluation.protocols.checkpoints import plans_of
from nnunet_invariance.evaluation.protocols.pretrainings import WeightRules, check_settings, provide_checkpoints
from nnunet_invariance.evaluation.protocols.splits import ALL, Subset
from nnunet_invariance.evaluation.protocols.unlabelled import (
    learned_test_cases,
    require_no_test_case,
    unlabelled_of,
)
from nnunet_invariance.evaluation.runner.comparison import Comparison, run_comparison
from nnunet_invariance.evaluation.runner.jobs import CaseSet
from nnunet_invariance.evaluation.runner.record import merged
from nnunet_invariance.evaluation.runner.running import require_submitit
from nnunet_invariance.evaluation.runner.stored import RECORD
from nnunet_invariance.evaluation.scoring.surfaces import require_monai
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset
from nnunet_invariance.plans.preflight import check_device, check_output, check_plan, parameters_of, warn_of_memory


def _is_distance(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and 0 <= value < math.inf)


def _are_shots(value: Any) -> bool:
    return bool(value) and not isinstance(value, str) and all(v == ALL or (is_int(v) and v >= 1) for v in value)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


@dataclass(frozen=True)
class ProtocolOptions(Options):
    """Options of every protocol.

    Raises:
        OptionError: a value is out of range, ``slurm`` has no time limit, or ``slurm`` and ``devices`` are both given.
        MissingPackageError: ``tolerance`` is given without MONAI.

    >>> ProtocolOptions(shots=(5, "all"), draws=3, device="cpu").n_val
    2
    """

    subject: ClassVar[str] = "--{name} is {value!r}"

    shots: Sequence[int | Literal["all"]] = option(
        (ALL,),
        "a list of whole numbers of at least 1, or 'all'",
        _are_shots,
        doc="Numbers of training cases, in the order in which they are run; 'all': every case that does not validate.",
    )
    draws: int = count(1, 1, doc="Independent draws of the training cases.")
    n_val: int = count(2, 1, doc="Validation cases, besides the training cases.")
    seed: int = count(0, 0, doc="Seed of the draws and of the bootstrap.")
    device: str = choice("cuda", "cpu", "mps", doc="Device for training and prediction.")
    mirroring: bool = flag(True, doc="Test-time augmentation by mirroring, nnU-Net's default.")
    tolerance: float | None = option(
        None, "a distance in mm, 0 or more", _is_distance, doc="Tolerance of NSD in mm; None computes Dice only."
    )
    pretraining: Sequence[str] | None = option(
        None,
        "a list of KEY=VALUE, or null",
        lambda value: value is None or _is_list(value),
        doc="Options of missing pre-trainings, which are then made without the test cases; None makes none.",
    )
    transductive: bool = flag(False, doc="Allow test cases that a pre-training or learning without labels has seen.")
    #: Folder of the comparison; None: a folder below nnUNet_results of the data set.
    out: Path | None = None
    #: The command line, for the record of the comparison; empty if it is run from Python.
    command: str = ""
    parallel: int = count(1, 1, doc="Number of trainings at a time.")
    devices: Sequence[str] = option((), "a list of GPU ids", _is_list, doc="GPUs that the trainings are assigned to.")
    slurm: Mapping[str, str | int] | None = option(
        None,
        "parameters of submitit, or null",
        lambda value: value is None or isinstance(value, Mapping),
        doc="Parameters of submitit; None runs the trainings on this machine.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tolerance is not None:
            require_monai()
        if self.slurm is None:
            return
        if not {"timeout_min", "slurm_time"} & self.slurm.keys():
            limit = "a time limit, timeout_min=MINUTES: without one, Slurm ends every training after 5 minutes"
            raise self.error("slurm", limit)
        if self.devices:
            raise self.error("devices", "none together with --submit, because no training runs on this machine")
        require_submitit()

    def folder(self, protocol: str, planned: PlannedDataset) -> Path:
        """The comparison's folder."""
        results = Path(os.environ["nnUNet_results"]) / planned.name
        name = f"{protocol}__{planned.plans.plans_name}__{planned.configuration_name}"
        return (self.out or results / "evaluation" / name).resolve()


#: Of two checkpoints of a training, each with weights and momentum in float32.
BYTES_PER_PARAMETER = 2 * 2 * 4


@dataclass(frozen=True)
class Plan:
    """The cases that a protocol has chosen.

    Attributes:
        protocol: name of the protocol.
        subsets: training and validation cases of every training.
        tests: creates the test sets; may write images into the comparison's folder.
        names: test cases of the data set that is trained on; ``other_names``: of other data sets.

    >>> Plan("few-shot", subsets=[], tests=lambda: [], names=["case_1"]).other_names
    ()
    """

    protocol: str
    subsets: Sequence[Subset]
    tests: Callable[[], Sequence[CaseSet]]
    names: Sequence[str]
    other_names: Sequence[str] = ()


def check_before(planned: PlannedDataset, selection: Selection, options: ProtocolOptions, protocol: str) -> None:
    """Check everything that a later step needs and that is known now, before cases are read or anything is written.

    Raises:
        OptionError: the device is not available, or an option in the plans or in ``--pretrain`` is wrong.
        OutputError: the folder cannot be written or has too little space.
        MissingPackageError, UnsupportedConfigurationError: the network of an arm cannot be built.
    """
    if options.slurm is None:
        check_device(options.device)
    networks = [check_plan(plans_of(arm, planned)) for arm in selection.arms]
    out = options.folder(protocol, planned)
    trainings = 1 if (out / RECORD).is_file() else len(options.shots) * options.draws
    check_output(out, BYTES_PER_PARAMETER * trainings * sum(map(parameters_of, networks)))
    check_settings(planned, selection.arms, out, options.pretraining or ())
    warn_of_memory(planned, networks[0], options.device)


def run_protocol(planned: PlannedDataset, selection: Selection, options: ProtocolOptions, plan: Plan) -> Path:
    """Find or make the weights of the arms, and run the comparison; returns its folder.

    Raises:
        ComparisonError: an arm learns from test cases without their labels; otherwise see
            :func:`~nnunet_invariance.evaluation.runner.comparison.run_comparison`.
    """
    out = options.folder(plan.protocol, planned)
    comparison = Comparison(
        protocol=plan.protocol,
        planned=planned,
        arms=selection.arms,
        subsets=plan.subsets,
        tests=(),
        checkpoints={},
        seed=options.seed,
        device=options.device,
        mirroring=options.mirroring,
        tolerance=options.tolerance,
        contrasts=selection.contrasts,
        left_out=selection.left_out,
        unlabelled=unlabelled_of(selection.arms, planned, plan.names),
        command=options.command,
    )
    if (out / RECORD).is_file() or comparison.unlabelled:
        comparison = replace(comparison, tests=plan.tests())
    if (out / RECORD).is_file():  # a different comparison is refused before hours of pre-training
        merged(out / RECORD, comparison.describe())
    reader = planned.plans.image_reader_writer_class()
    tested = learned_test_cases(comparison.unlabelled, comparison.tests, plan.subsets, reader)
    if not options.transductive:
        require_no_test_case(tested)
    rules = WeightRules(
        test=plan.names,
        other_tests=plan.other_names,
        settings=options.pretraining,
        transductive=options.transductive,
        local=options.slurm is None,
    )
    checkpoints, seen = provide_checkpoints(planned, selection.arms, out, options.device, rules)
    tests = comparison.tests or plan.tests()
    seen = seen.union(*tested.values())
    comparison = replace(comparison, tests=tests, checkpoints=checkpoints, transductive=seen)
    return run_comparison(comparison, out, parallel=options.parallel, devices=options.devices, slurm=options.slurm)
