"""``nnunet-invariance probe``: a linear probe of pre-trained features."""

import argparse
from pathlib import Path

from nnunet_invariance.cli.closing import finish, train_command
from nnunet_invariance.cli.help import ShowDefaults
from nnunet_invariance.registry import trainer_for_weights


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command and its flags."""
    parser = subparsers.add_parser(
        "probe",
        help="measure pre-trained features with a linear probe, in minutes",
        description="Fits a linear classifier to the frozen features of all stages of a network, on few labelled "
        "cases, and scores it on held-out labelled cases, beside random networks of the same architecture. "
        "Use it as the first check after a pre-training, before a long training.",
        formatter_class=ShowDefaults,
    )
    add = parser.add_argument
    add("dataset", help="name or id of a data set with labels")
    add("configuration", help="configuration of the plans, for example 3d_fullres")
    add("-p", dest="plans", default="nnUNetPlans", metavar="PLANS", help="plans identifier")
    add("--weights", nargs="+", type=Path, default=[], metavar="FILE", help="checkpoints to probe")
    add("--methods", nargs="+", default=[], metavar="METHOD", help="finished pre-trainings of this data set to probe")
    add("--branch", choices=["teacher", "student", "both"], default="both", help="which network of a checkpoint")
    add("--shots", nargs="+", type=int, default=[1, 5], metavar="K", help="numbers of labelled cases")
    add("--draws", type=int, default=3, help="random choices of the labelled cases")
    add("--test-cases", type=int, default=20, metavar="N", help="held-out labelled cases")
    add("--random", type=int, default=5, metavar="N", help="networks with random weights to compare with")
    add("--seed", type=int, default=0, help="seed of all random choices")
    add("--out", type=Path, metavar="DIR", help="default: nnUNet_results/DATASET/probing/PLANS__CONFIGURATION")
    add("-device", choices=["cuda", "cpu", "mps"], default="cuda", help="where the networks run")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from nnunet_invariance.plans.preflight import check_device, check_output
    from nnunet_invariance.probing.protocol import ProbeOptions
    from nnunet_invariance.probing.report import summary, to_text
    from nnunet_invariance.probing.run import run_probe
    from nnunet_invariance.probing.verdict import best_method

    check_device(args.device)
    if args.out is not None:
        check_output(args.out)
    options = ProbeOptions(
        shots=tuple(args.shots),
        draws=args.draws,
        test_cases=args.test_cases,
        random_networks=args.random,
        seed=args.seed,
    )
    files, where = (args.weights, args.methods, args.branch), (args.device, args.out)
    result, folder = run_probe(*_where(args), *files, options, *where, args.command_line)
    print(to_text(result))
    return finish(f"{folder / 'probe.html'}, probe.json, scores.csv", next_command(args, best_method(summary(result))))


def next_command(args: argparse.Namespace, best: str | None) -> str:
    """The training with the best weights that were probed; a pre-training if no network beats the random ones."""
    if best is not None and best in args.methods:
        return train_command(trainer_for_weights(best), *_where(args))
    if best is None and (args.methods or args.weights):
        return "pre-train longer or with more scans, because no probed network beats the random ones"
    if args.weights:
        return f"nnunet-invariance weights plan {args.dataset} {args.weights[0]} -p {args.plans}"
    return f"nnunet-invariance pretrain METHOD {args.dataset} {args.configuration} -p {args.plans}"


def _where(args: argparse.Namespace) -> tuple[str, str, str]:
    return args.dataset, args.configuration, args.plans
