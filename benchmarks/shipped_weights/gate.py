"""May a file of anatomix weights be shipped? The gate, and the table of the file's model card.

    python -m benchmarks.shipped_weights.gate FILE --data DIR --work DIR [--parts probe] [--sets hippocampus] [--card]

The networks have the width and the blocks of FILE and a patch that fits a CPU; everything else, the depth among it, is
what nnU-Net plans for the data set. FILE fills the finest stages. The probe asks whether the Dice of a linear probe of
frozen features, at 1 and 5 labelled cases, is above that of the best of five random networks on every set. The few-shot
part asks whether AnatomixTrainer from FILE is better than its twin and than plain nnU-Net at 1 and 5 cases, with
intervals above 0, on at least two sets. The same command continues a run.
Writes WORK/gate/FILE.md and .json, and returns 1 if a condition fails; a part that was not run is reported as such.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from benchmarks.common import Steps, cpu_sized, environment, use_tree, write_file
from benchmarks.shipped_weights.card import write_checksums
from benchmarks.studies.few_labels.tasks import CONFIGURATION, EPOCHS, STOCK_PLANS, TASKS, Task, lay_out
from benchmarks.tables import markdown
from nnunet_invariance.common.hashing import sha256_of_file
from nnunet_invariance.common.json_files import read_json, write_json
from nnunet_invariance.errors import InvarianceError
from nnunet_invariance.evaluation.frames import compare
from nnunet_invariance.evaluation.protocols.arms import Selection
from nnunet_invariance.evaluation.protocols.few_shot import run_few_shot
from nnunet_invariance.evaluation.protocols.protocol import ProtocolOptions
from nnunet_invariance.evaluation.protocols.splits import Subset
from nnunet_invariance.evaluation.runner.jobs import Arm
from nnunet_invariance.evaluation.statistics.effects import Contrast
from nnunet_invariance.networks.stock import RESENC_BLOCKS
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset, open_planned_dataset
from nnunet_invariance.plans.copies import write_plans_copy
from nnunet_invariance.probing.protocol import (
    ALL_MAPS,
    ProbeOptions,
    load_probed_network,
    prepare_probe,
    random_network,
)
from nnunet_invariance.probing.report import mean_and_interval
from nnunet_invariance.probing.run import labelled_cases
from nnunet_invariance.weights.checkpoint import read_metadata

SETS = ("hippocampus", "acdc", "left_atrium", "openkbp")
PARTS = ("probe", "few-shot")
SHOTS = (1, 5)
RANDOM_NETWORKS = 5  # of which the probe must beat the best
LEAST_SETS = 2  # on which the few-shot part must show a gain
PRETRAINED, TWIN, PLAIN = "AnatomixTrainer", "AnatomixTrainer_scratch", "BaselineTrainer"
HEADING = "## Gate\n"
Record = dict[str, dict[str, Any]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts that are not finished, and write the table; returns 1 if a condition fails."""
    args = parse(argv)
    args.work, args.file = args.work.resolve(), args.file.resolve()
    use_tree(args.work)
    path = args.work / "gate" / f"{args.file.stem}.json"
    try:
        record = read_record(path, args)
        for part in args.parts:
            for name in args.sets:
                if name not in record[part]:
                    planned = prepare(TASKS[name], args)
                    record[part][name] = RUN[part](TASKS[name], planned, args)
                    write_json(path, record)
    except InvarianceError as error:
        print(error, file=sys.stderr)
        return 2
    found = conditions(record)
    text = f"{table(record)}\n\n{verdicts(found)}\n"
    write_file(path.with_suffix(".md"), text.encode())
    print(text)
    if args.card:
        update_card(args.file, text)
    return 1 if False in found.values() else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="weights of pretrain anatomix")
    add("--data", type=Path, required=True, help="folder of the raw data sets; only read")
    add("--work", type=Path, required=True, help="folder for everything the run makes")
    add("--sets", nargs="+", choices=SETS, default=list(SETS), help="data sets")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="which part of the gate")
    add("--draws", type=int, default=3, help="draws of the labelled cases")
    add("--test-cases", type=int, default=20, dest="test_cases", help="of the probe")
    add("--iterations", type=int, default=1000, help="of every training")
    add("--card", action="store_true", help="also write the tables into the model card beside FILE")
    add("-device", choices=["cpu", "cuda"], default="cpu", help="where to train and measure")
    return parser.parse_args(argv)


def read_record(path: Path, args: argparse.Namespace) -> Record:
    """What earlier calls measured on this file; another file of the same name starts anew."""
    file = {"name": args.file.name, "sha256": sha256_of_file(args.file)}
    record = read_json(path, default={})
    if record.get("file") == file:
        return record
    return {"file": file, "environment": environment(args.device, torch.get_num_threads()), "probe": {}, "few-shot": {}}


# ---- running -------------------------------------------------------------------------------------------------------


def prepare(task: Task, args: argparse.Namespace) -> PlannedDataset:
    """Plan and preprocess a data set once, and write plans with the width and the blocks of the file."""
    lay_out(task, args.data.resolve(), args.work, seed=0)
    stock = Steps(args.work / "steps" / task.dataset).plan(task.dataset, CONFIGURATION)
    file = read_metadata(args.file)["architecture"]
    changes = cpu_sized(stock, task.patch_size, file["arch_kwargs"]["features_per_stage"][0], stock["batch_size"])
    changes["architecture"] = as_planned_for(file, changes["architecture"])
    least = file["arch_kwargs"]["n_stages"] / changes["architecture"]["arch_kwargs"]["n_stages"]
    block = {"iterations_per_epoch": args.iterations // EPOCHS, "seed": 0, "precision": task.precision}
    write_plans_copy(task.dataset, STOCK_PLANS, plans_name(args), CONFIGURATION, block, changes)
    start = {"checkpoint": str(args.file), "min_coverage": min(1.0, least)}
    write_plans_copy(task.dataset, plans_name(args), f"{plans_name(args)}_file", CONFIGURATION, start)
    return open_planned_dataset(task.dataset, CONFIGURATION, plans_name(args))


def as_planned_for(file: Mapping[str, Any], planned: dict[str, Any]) -> dict[str, Any]:
    """The planned architecture with the network class of the file, as nnU-Net's planner for this class fills it.

    >>> from nnunet_invariance.networks.stock import plain_conv_unet, residual_encoder_unet
    >>> file = residual_encoder_unet((8,), (1,))
    >>> as_planned_for(file, plain_conv_unet((8, 16)))["arch_kwargs"]["n_blocks_per_stage"]
    [1, 3]
    """
    if file["network_class_name"] == planned["network_class_name"]:
        return planned
    arguments = {key: value for key, value in planned["arch_kwargs"].items() if key != "n_conv_per_stage"}
    stages = arguments["n_stages"]
    arguments |= {"n_blocks_per_stage": list(RESENC_BLOCKS[:stages]), "n_conv_per_stage_decoder": [1] * (stages - 1)}
    return {**planned, "network_class_name": file["network_class_name"], "arch_kwargs": arguments}


def plans_name(args: argparse.Namespace) -> str:
    """Plans of the networks that are compared; the copy that names the file has ``_file`` appended."""
    return f"gate_{args.file.stem}"


def run_probe(task: Task, planned: PlannedDataset, args: argparse.Namespace) -> dict[str, Any]:
    """Dice of the probe of the file and of the random networks, at every number of cases; one case of each person."""
    persons = {task.person(case): case for case in reversed(labelled_cases(planned))}
    options = ProbeOptions(shots=SHOTS, draws=args.draws, test_cases=args.test_cases)
    run = prepare_probe(planned, sorted(persons.values()), options, args.device, each_map=False)
    networks = {args.file.stem: load_probed_network(planned, args.file)}
    networks |= {f"random {seed}": random_network(planned, 1000 + seed) for seed in range(RANDOM_NETWORKS)}
    bar = tqdm(networks.items(), desc=f"probe of {task.dataset}", unit="network")
    own, *random = [run.score(name, network.to(args.device)) for name, network in bar]
    shots = {}
    for k in SHOTS:
        interval = mean_and_interval(np.nanmean(own.dice[k, ALL_MAPS], axis=2))
        file = dict(zip(("mean", "low", "high"), interval, strict=True))
        shots[str(k)] = {"file": file, "random": [scores.mean(k) for scores in random]}
    return {"test_cases": len(run.test), "draws": args.draws, "shots": shots}


def run_few_shot_part(task: Task, planned: PlannedDataset, args: argparse.Namespace) -> dict[str, Any]:
    """Differences of the mean Dice between AnatomixTrainer from the file and both controls."""
    length = f"_{EPOCHS}epochs"
    arms = (
        Arm(PRETRAINED, PRETRAINED + length, plans=f"{plans_name(args)}_file"),
        Arm(TWIN, TWIN + length),
        Arm(PLAIN, PLAIN + length),
    )
    contrasts = tuple(Contrast(PRETRAINED, control, control) for control in (TWIN, PLAIN))
    out = args.work / "gate" / f"{args.file.stem}_{task.dataset}"
    options = ProtocolOptions(shots=SHOTS, draws=args.draws, n_val=1, device=args.device, mirroring=False, out=out)
    run_few_shot(planned, Selection(arms, contrasts), options, test=args.work / "nnUNet_raw" / task.dataset)
    return few_shot_record(pd.read_csv(out / "scores.csv"))


def few_shot_record(scores: pd.DataFrame) -> dict[str, Any]:
    """Differences with their intervals, by number of cases and control."""
    record: dict[str, Any] = {"shots": {}}
    shots_of = {Subset(shots, 0, (), ()).condition: str(shots) for shots in SHOTS}
    for control in (TWIN, PLAIN):
        rows = compare(scores, control, arms=[PRETRAINED])
        for row in rows[(rows.metric == "dice") & (rows["class"] == "all classes")].to_dict("records"):
            found = {key: row[key] for key in ("mean", "low", "high", "draws", "cases")}
            record["shots"].setdefault(shots_of[row["condition"]], {})[control] = found
    return record


RUN = {"probe": run_probe, "few-shot": run_few_shot_part}


# ---- judging -------------------------------------------------------------------------------------------------------


def conditions(record: Record) -> dict[str, bool | None]:
    """Whether each condition holds; None: a set that it needs was not run."""
    found: dict[str, bool | None] = {}
    for name in SETS:
        measured = record["probe"].get(name)
        for shots in SHOTS:
            cell = measured and measured["shots"][str(shots)]
            met = cell["file"]["mean"] > max(cell["random"]) if cell else None
            found[f"probe, {name}, {_cases(shots)}: above the best random network"] = met
    gains = {name: _gains(entry) for name, entry in record["few-shot"].items()}
    enough, undecided = sum(gains.values()) >= LEAST_SETS, len(gains) < len(SETS)
    text = f"few-shot: better than the twin and plain nnU-Net at {SHOTS[0]} and {SHOTS[1]} cases on {LEAST_SETS} sets"
    found[text] = True if enough else None if undecided else False
    return found


def _gains(entry: Mapping[str, Any]) -> bool:
    return all(entry["shots"][str(shots)][control]["low"] > 0 for shots in SHOTS for control in (TWIN, PLAIN))


def table(record: Record) -> str:
    """Both tables of the model card, as Markdown; a set that was not run has a row that says so."""
    probed, trained = [], []
    for name in SETS:
        for shots in SHOTS:
            probed.append([name, str(shots), *_probe_cells(record["probe"].get(name), shots)])
            trained.append([name, str(shots), *_few_shot_cells(record["few-shot"].get(name), shots)])
    heads = (
        ["probe", "cases", "Dice, these weights", "random networks: mean (best)", "draws x test cases"],
        ["few-shot", "cases", "against the twin", "against plain nnU-Net", "draws x test cases"],
    )
    return "\n\n".join(markdown(head, rows) for head, rows in zip(heads, (probed, trained), strict=True))


def _probe_cells(entry: Mapping[str, Any] | None, shots: int) -> list[str]:
    if entry is None:
        return ["not run", "", ""]
    own, random = entry["shots"][str(shots)]["file"], entry["shots"][str(shots)]["random"]
    mean = f"{sum(random) / len(random):.3f} ({max(random):.3f} of {len(random)})"
    return [
        f"{own['mean']:.3f} [{own['low']:.3f}, {own['high']:.3f}]",
        mean,
        f"{entry['draws']} x {entry['test_cases']}",
    ]


def _few_shot_cells(entry: Mapping[str, Any] | None, shots: int) -> list[str]:
    if entry is None:
        return ["not run", "", ""]
    found = [entry["shots"][str(shots)][control] for control in (TWIN, PLAIN)]
    differences = [f"{one['mean']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]" for one in found]
    return [*differences, f"{found[0]['draws']} x {found[0]['cases']}"]


def verdicts(found: Mapping[str, bool | None]) -> str:
    """One line per condition."""
    words = {True: "met", False: "NOT MET", None: "not run"}
    return "\n".join(f"- {name}: {words[met]}" for name, met in found.items())


def update_card(file: Path, text: str) -> None:
    """Replace what the card beside the weights says below its heading "Gate", and write the checksums again."""
    card = file.with_suffix(".md")
    before, heading, _ = card.read_text(encoding="utf-8").partition(HEADING)
    write_file(card, f"{before.rstrip()}\n\n{heading or HEADING}\n{text}".encode())
    write_checksums(file)


def _cases(shots: int) -> str:
    return f"{shots} case{'' if shots == 1 else 's'}"


if __name__ == "__main__":
    sys.exit(main())
