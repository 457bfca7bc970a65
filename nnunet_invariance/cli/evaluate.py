"""``nnunet-invariance evaluate``: compare trainers under one protocol, and report it."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_invariance.cli.arguments import at_least
from nnunet_invariance.cli.closing import finish
from nnunet_invariance.cli.help import ShowDefaults

if TYPE_CHECKING:
    from nnunet_invariance.evaluation.protocols.protocol import ProtocolOptions


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command, its protocols and their flags."""
    parser = subparsers.add_parser("evaluate", help="compare trainers under one protocol, and report it")
    protocols = parser.add_subparsers(dest="protocol", required=True)
    few_shot = protocols.add_parser(
        "few-shot",
        help="train on k labelled cases, test on the same held-out cases",
        description="Samples k labelled cases by seed, trains every trainer, its _scratch twin and the baselines on "
        "them with nnUNetv2_train, predicts the test cases with nnUNetv2_predict, writes scores, statistics, a page. "
        "The same command continues a run that was stopped; with more trainers, draws or shots it adds these.",
        formatter_class=ShowDefaults,
    )
    _add_what(few_shot)
    _add_drawn(few_shot)
    _add_how(few_shot)
    missing = protocols.add_parser(
        "missing-modality",
        help="as few-shot, tested on every subset of the modalities",
        description="Trains as few-shot does and predicts the test cases once for each subset of the modalities, with "
        "images of zeros for the others. A case that lacks a modality itself is left out of the subsets that contain "
        "it. Writes Dice per class and subset, statistics, and a page with a heat map.",
        formatter_class=ShowDefaults,
    )
    _add_what(missing, ["PUIRTrainer"], ["BaselineTrainer", "ChannelDropoutTrainer"])
    _add_drawn(missing, ["all"])
    _add_how(missing)
    missing.add_argument("--subsets", nargs="+", metavar="A+B", help="subsets of the channels by name (default: all)")
    cross = protocols.add_parser(
        "cross-modality",
        help="train on one data set, test on others of another modality",
        description="Trains every trainer on the source with nnUNetv2_train, predicts all labelled cases of the "
        "targets with nnUNetv2_predict, and scores the classes that both label maps have, matched by name. The same "
        "command continues a run that was stopped; with more trainers or draws it adds these.",
        formatter_class=ShowDefaults,
    )
    _add_what(cross)
    _add_targets(cross)
    _add_how(cross)
    report = protocols.add_parser("report", help="rebuild the page and the tables of a comparison from its folder")
    report.add_argument("folder", type=Path, metavar="DIR", help="folder of a comparison")


def _add_what(
    parser: argparse.ArgumentParser,
    trainers: Sequence[str] | None = None,
    baselines: Sequence[str] = (),
) -> None:
    """What is compared, with the defaults of a protocol."""
    add = parser.add_argument
    add("dataset", help="name or id of the dataset that is trained on")
    add("configuration", help="configuration of the plans, for example 3d_fullres")
    add(
        "--trainers",
        nargs="+",
        required=trainers is None,
        default=trainers,
        metavar="NAME",
        help="each is run with its _scratch twin if it loads weights; NAME@PLANS: options of another plans copy",
    )
    against = "trainers that every other one is compared with"
    add("--baselines", nargs="*", default=list(baselines), metavar="NAME", help=against)
    add("-p", dest="plans", default="nnUNetPlans", metavar="PLANS", help="plans identifier")
    add("--draws", type=int, default=1, metavar="N", help="independent draws of the training cases")
    add("--n-val", type=int, default=2, metavar="N", help="validation cases beside the training cases")
    add("--seed", type=int, default=0, help="seed of the draws and of the intervals")
    add("--tolerance", type=float, default=1.0, metavar="MM", help="tolerance of the normalised surface distance")
    add(
        "--pretrain",
        nargs="*",
        metavar="KEY=VALUE",
        help="run missing pre-trainings first, without the test cases; settings as for pretrain --set, prefixed with "
        "METHOD: if they are for one method",
    )
    add("--transductive", action="store_true", help="allow test cases that were seen without their labels")


def _add_drawn(parser: argparse.ArgumentParser, shots: Sequence[int | str] = (5,)) -> None:
    """Which cases of one dataset are trained on and tested."""
    add = parser.add_argument
    add("--shots", nargs="+", type=_shots, default=list(shots), metavar="K", help="numbers of training cases, or all")
    test = parser.add_mutually_exclusive_group()
    test.add_argument(
        "--n-test",
        type=int,
        default=20,
        metavar="N",
        help="number of sampled test cases",
    )
    test.add_argument("--test", nargs="+", metavar="CASE", help="test cases, or a folder with imagesTs and labelsTs")


def _add_targets(parser: argparse.ArgumentParser) -> None:
    """Which cases cross-modality takes."""
    add = parser.add_argument
    add("--targets", nargs="+", required=True, metavar="DATASET", help="raw data sets to test on, by name or id")
    add("--names", type=Path, metavar="FILE", help="JSON file: classes with other names or numbers in a target")
    add("--shots", nargs="+", type=_shots, default=["all"], metavar="K", help="numbers of training cases, or all")
    add(
        "--n-source",
        type=int,
        default=0,
        metavar="N",
        help="number of source cases that are tested, too",
    )
    add("--parts", type=int, metavar="N", help="same case name, same patient: cross-validate over patients in N parts")


def _add_how(parser: argparse.ArgumentParser) -> None:
    """How it is run."""
    add = parser.add_argument
    add("-device", choices=["cuda", "cpu", "mps"], default="cuda", help="where to train and predict")
    add("--disable_tta", action="store_true", help="predict without mirroring")
    add("--jobs", type=at_least(1), default=1, metavar="N", help="trainings at a time")
    add("--devices", nargs="+", default=[], metavar="ID", help="GPUs that the trainings are assigned to")
    add("--submit", choices=["slurm"], help="submit the trainings to Slurm as an array, --jobs at a time")
    add(
        "--slurm",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="parameters of submitit; timeout_min=MINUTES is required",
    )
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="default: nnUNet_results/DATASET/evaluation/PROTOCOL__PLANS__CONFIGURATION",
    )


def _shots(word: str) -> int | str:
    return word if word == "all" else int(word)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    if args.protocol == "report":
        from nnunet_invariance.evaluation.report.page import write_report

        return _finish(write_report(args.folder))
    protocols = {"few-shot": _few_shot, "missing-modality": _missing_modality, "cross-modality": _cross_modality}
    out = protocols[args.protocol](args, baselines=args.baselines, plans=args.plans, options=_options(args))
    if args.submit:
        print(f"submitted: {out}\nnext: nnunet-invariance evaluate report {out}, when the jobs are done")
        return 0
    return _finish(out / "report.html")


def _finish(page: Path) -> int:
    return finish(page, f"open {page} in a browser")


def _options(args: argparse.Namespace) -> "ProtocolOptions":
    from nnunet_invariance.errors import OptionError
    from nnunet_invariance.evaluation.protocols.protocol import ProtocolOptions

    if args.slurm and not args.submit:
        raise OptionError(f"--slurm {' '.join(args.slurm)} without --submit: add --submit slurm, or leave out --slurm.")
    return ProtocolOptions(
        shots=args.shots,
        draws=args.draws,
        n_val=args.n_val,
        seed=args.seed,
        device=args.device,
        mirroring=not args.disable_tta,
        tolerance=args.tolerance,
        pretraining=args.pretrain,
        transductive=args.transductive,
        out=args.out,
        parallel=args.jobs,
        devices=args.devices,
        slurm=_parameters(args.slurm) if args.submit else None,
        command=args.command_line,
    )


def _few_shot(args: argparse.Namespace, **others: Any) -> Path:
    from nnunet_invariance.evaluation import few_shot

    cases = {"test": _test(args.test), "n_test": args.n_test}
    return few_shot(args.dataset, args.configuration, args.trainers, **cases, **others)


def _missing_modality(args: argparse.Namespace, **others: Any) -> Path:
    from nnunet_invariance.evaluation import missing_modality

    cases = {"test": _test(args.test), "n_test": args.n_test, "subsets": args.subsets}
    return missing_modality(args.dataset, args.configuration, args.trainers, **cases, **others)


def _cross_modality(args: argparse.Namespace, **others: Any) -> Path:
    from nnunet_invariance.evaluation import cross_modality
    from nnunet_invariance.evaluation.scoring.label_maps import read_names

    names = read_names(args.names) if args.names else None
    cases = {"names": names, "n_source": args.n_source, "parts": args.parts}
    return cross_modality(args.dataset, args.configuration, args.targets, args.trainers, **cases, **others)


def _test(words: Sequence[str] | None) -> Sequence[str] | Path | None:
    """One word that is a folder is one."""
    return Path(words[0]) if words and len(words) == 1 and Path(words[0]).is_dir() else words


def _parameters(words: Sequence[str]) -> dict[str, int | str]:
    pairs = (word.partition("=") for word in words)
    return {key: int(value) if value.isdigit() else value for key, _, value in pairs}
