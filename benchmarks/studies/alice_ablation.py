"""Which of Alice's options help? One option changed at a time, in few-shot segmentation of Hippocampus.

Data, test cases and network are those of few_shot.py: the whole hippocampus is one class. Every arm pre-trains Alice
with one option changed, and then trains AliceTrainer with plain fine-tuning (no auxiliary loss, one learning rate, no
warm-up) on the same labelled cases for the same number of iterations; BaselineTrainer is trained for comparison. The
lengths and the network are CPU-sized, far smaller than the defaults are meant for. All arms run with one seed, then
with the next. A seed determines the pre-training, the labelled cases and the fine-tuning; the test cases are always the
same. The arm `default-again` is the default with another seed of the pre-training and shows the differences that chance
makes. The same command continues an interrupted study. An arm that fails does not stop the others.

    python -m benchmarks.studies.alice_ablation --data DIR --work DIR [--arms NAME ...] [--seeds 3]
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Steps, study_parser, use_tree, write_file
from benchmarks.studies.few_shot import BASE_FEATURES, CONFIGURATION, ITERATIONS, PLANS, TASKS, lay_out, write_plans
from benchmarks.studies.hippocampus_alice import comparison_settings, measure, unseen_cases
from benchmarks.tables import interval, markdown, read_rows
from nnunet_invariance.common.csv_files import write_csv
from nnunet_invariance.common.json_files import read_json, write_json
from nnunet_invariance.errors import InvarianceError
from nnunet_invariance.evaluation.protocols.arms import Selection
from nnunet_invariance.evaluation.protocols.few_shot import run_few_shot
from nnunet_invariance.evaluation.runner.jobs import Arm
from nnunet_invariance.evaluation.runner.stored import state, stored_jobs
from nnunet_invariance.evaluation.scoring.scores import Score, read_scores
from nnunet_invariance.evaluation.statistics.effects import Contrast, Effect, paired_effects
from nnunet_invariance.evaluation.statistics.score_table import OVERALL, ScoreTable, nanmean
from nnunet_invariance.nnunet.planned_dataset import open_planned_dataset
from nnunet_invariance.plans.copies import write_plans_copy
from nnunet_invariance.weights.locate import FINAL

TASK = TASKS["hippocampus"]
DATASET, SHOTS = TASK.dataset, TASK.shots[0]
EPOCHS, PRETRAINING_EPOCHS, PRETRAINING_ITERATIONS = 10, 6, 50
#: The form of the loss, with CASA and class tokens, from which the arms deviate.
FORM = (
    *("casa=residual", "target_tokens=decoder", "collapse_guard=center", "weight_inter=1"),
    *("teacher_temperature=0.01", "teacher_temperature_start=0.008"),
)
SHORT_RUN = (*FORM, "lr=5e-4", "ema_start=0.98")
SAM_SETTINGS = ("lr=1e-3",)
FINE_TUNING = {"aux": False, "encoder_lr_factor": 1.0, "warmup": 0.0}
BASELINE, DEFAULT, AGAIN = "BaselineTrainer", "default", "default-again"
#: Added to the seed of the pre-training of ``default-again``.
OTHER_SEED = 1000

#: Settings of ``pretrain alice`` by arm, in the order in which they run.
ARMS = {
    DEFAULT: (),
    AGAIN: (),
    "pairs-sam": ("alignment=sam",),
    "pairs-same-volume": ("alignment=same-volume",),
    "pairs-random": ("alignment=random",),
    "casa-plain": ("casa=plain",),
    "target-kv-encoder": ("target_tokens=encoder",),
    "encoding-sparse": ("encoding=sparse",),
    "mask-tube": ("mask_mode=tube",),
    "mim-off": ("weight_mim=0",),
    "mim-all-voxels": ("mim_voxels=all",),
    "guard-sinkhorn": ("collapse_guard=sinkhorn",),
    "guard-none": ("collapse_guard=none",),
    "inter-off": ("weight_inter=0",),
    "intra-off": ("weight_intra=0",),
    "preset-a-code": ("preset=release",),
    "preset-a-paper": ("preset=paper",),
}
PROBES = ("retrieval_mm", "masked_error")
RESULTS = Path(__file__).parents[1] / "results" / "alice-ablation"


def main() -> int:
    """Run every cell that is not finished; returns the exit status."""
    parser = study_parser(__doc__, RESULTS)
    parser.add_argument("--arms", nargs="+", choices=[BASELINE, *ARMS], default=[BASELINE, *ARMS])
    parser.add_argument("--seeds", type=int, default=3, help="0 and the next ones: of all but the test cases")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of fine-tuning")
    parser.add_argument("--pretraining-epochs", type=int, default=PRETRAINING_EPOCHS)
    parser.add_argument("--pretraining-iterations", type=int, default=PRETRAINING_ITERATIONS, help="steps an epoch")
    parser.add_argument("-device", choices=["cpu", "cuda", "mps"], default="cpu", help="where to train")
    args = parser.parse_args()
    args.work, args.task, args.seed = args.work.resolve(), "hippocampus", 0
    use_tree(args.work)
    steps = Steps(args.work)
    try:
        lay_out(TASK, args)
        write_plans(TASK, steps, args)
        return run_arms(steps, args)
    except InvarianceError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        publish(args)


def run_arms(steps: Steps, args: argparse.Namespace) -> int:
    """Run every arm with one seed after the other; returns the exit status, 2 if an arm failed."""
    failed: dict[str, InvarianceError] = {}
    for seed in range(args.seeds):
        if seed:
            write_plans_copy(DATASET, PLANS, base_plans(seed), CONFIGURATION, {"seed": seed})
        for name in args.arms:
            if name in failed:
                continue
            try:
                if name in ARMS:
                    pretrain(name, seed, steps, args)
                    probe(name, seed, args)
                fine_tune(name, seed, args)
            except InvarianceError as error:
                print(f"{cell(name, seed)}: {error}", file=sys.stderr, flush=True)
                failed[name] = error
            publish(args)
    return 2 if failed else 0


def cell(name: str, seed: int) -> str:
    """Name of an arm with a seed, in files and records."""
    return f"{name}_seed{seed}" if seed else name


def base_plans(seed: int) -> str:
    """Name of the baseline's plans for a seed; the plans of the arms are copies of them."""
    return cell(PLANS, seed)


def plans_of(name: str, seed: int) -> str:
    """Name of the plans copy of an arm with a seed; its pre-training has the same name."""
    return f"{base_plans(seed)}_{name}"


def comparison_of(seed: int, work: Path) -> Path:
    """Folder of the comparison of all arms with a seed."""
    return work / cell("comparison", seed)


def pretraining_of(name: str, seed: int, work: Path, method: str = "alice") -> Path:
    """Folder of an arm's pre-training."""
    return work / "nnUNet_results" / DATASET / "pretraining" / f"{method}__{plans_of(name, seed)}__{CONFIGURATION}"


def pretrain(name: str, seed: int, steps: Steps, args: argparse.Namespace) -> None:
    """Pre-train an arm without labels; trains the embedding first if the arm mines its pairs."""
    plans = plans_of(name, seed)
    write_plans_copy(DATASET, base_plans(seed), plans, CONFIGURATION, FINE_TUNING)
    runs = [("alice", (*SHORT_RUN, *ARMS[name]))]
    if "alignment=sam" in ARMS[name]:
        runs.insert(0, ("sam", SAM_SETTINGS))
    drawn = str(seed + OTHER_SEED if name == AGAIN else seed)
    for method, settings in runs:
        command = ["nnunet-invariance", "pretrain", method, DATASET, CONFIGURATION, "-p", plans]
        command += ["-device", args.device, "--epochs", str(args.pretraining_epochs)]
        command += ["--iterations", str(args.pretraining_iterations), "--seed", drawn, "--set", *settings]
        if any(pretraining_of(name, seed, args.work, method).glob("checkpoint_*.safetensors")):
            command.append("--c")
        steps.run(f"pretrain_{method}_{cell(name, seed)}", command)


def probe(name: str, seed: int, args: argparse.Namespace) -> None:
    """Probe an arm on the test images, and random networks once; stores the result in probes.json."""
    target, key = args.work / "probes.json", cell(name, seed)
    rows = read_json(target, default={})
    if key in rows:
        return
    planned = open_planned_dataset(DATASET, CONFIGURATION, PLANS)
    cases = unseen_cases(args.work, planned)
    if "random" not in rows:
        rows["random"] = [measure(f"random {i}", planned, cases, args.seed, random_seed=i) for i in range(3)]
    checkpoint = pretraining_of(name, seed, args.work) / FINAL
    rows[key] = [measure(kind, planned, cases, args.seed, checkpoint) for kind in ("student", "teacher")]
    write_json(target, rows)


def fine_tune(name: str, seed: int, args: argparse.Namespace) -> None:
    """Train, predict and score an arm, and compare it with the default and with the baseline."""
    if name == BASELINE:
        arm = Arm(name, f"{BASELINE}_{args.epochs}epochs")
    else:
        arm = Arm(name, f"AliceTrainer_{args.epochs}epochs", plans=plans_of(name, seed))
    run_few_shot(
        open_planned_dataset(DATASET, CONFIGURATION, base_plans(seed)),
        Selection((arm,), tuple(contrasts([name]))),
        comparison_settings(comparison_of(seed, args.work), seed, args.device),
        test=args.work / "nnUNet_raw" / DATASET,
    )


def contrasts(names: Iterable[str]) -> list[Contrast]:
    """Every arm against the default and the baseline."""
    pairs = [(name, reference) for reference in (DEFAULT, BASELINE) for name in names if name != BASELINE]
    return [Contrast(name, reference, reference) for name, reference in pairs if name != reference]


def publish(args: argparse.Namespace) -> None:
    """Write tables of the finished cells, and a list of the cells that did not run."""
    kept = {args.work / file: file for file in ("probes.json", "steps.json")}
    for seed in range(args.seeds):
        kept[comparison_of(seed, args.work) / "comparison.json"] = f"{cell('comparison', seed)}.json"
        for name in ARMS:
            log = pretraining_of(name, seed, args.work) / "metrics.csv"
            kept[log] = f"pretraining_{cell(name, seed)}.csv"
    for source, file in kept.items():
        if source.is_file():
            write_file(args.out / file, source.read_bytes())
    parts = [described(args)]
    if scores := joined_scores(args):
        effects = paired_effects(scores, contrasts(dict.fromkeys(score.arm for score in scores)))
        write_csv(args.out / "scores.csv", scores, Score)
        write_csv(args.out / "effects.csv", effects, Effect)
        parts += ["## Segmentation", segmentation_table(scores, effects)]
    parts += ["## Pre-training", pretraining_table(args), "## Not run", "\n".join(not_run(args))]
    write_file(args.out / "tables.md", "\n\n".join([*parts, ""]).encode())


def joined_scores(args: argparse.Namespace) -> list[Score]:
    """Scores of all seeds; the seed is the draw."""
    files = [(seed, comparison_of(seed, args.work) / "scores.csv") for seed in range(args.seeds)]
    return [replace(score, draw=seed) for seed, file in files if file.is_file() for score in read_scores(file)]


def described(args: argparse.Namespace) -> str:
    """The lengths of the runs, as text."""
    return (
        f"{DATASET}, {BASE_FEATURES} base features. Pre-training: {args.pretraining_epochs} x "
        f"{args.pretraining_iterations} steps with {' '.join(SHORT_RUN)}. Fine-tuning: "
        f"{args.epochs} x {ITERATIONS} iterations on {SHOTS} cases. {TASK.n_test} test cases, the same for all seeds."
    )


def segmentation_table(scores: Sequence[Score], effects: Sequence[Effect]) -> str:
    """Mean Dice per seed, and the differences from the default and the baseline: per seed, and over all seeds."""
    table, lines = ScoreTable(scores), []
    (condition,) = table.conditions
    dice = {arm: nanmean(nanmean(table.matrices("dice", condition, arm), 0), 1) for arm in table.arms}
    found = {(e.arm, e.reference): e for e in effects if e.metric == "dice" and e.label == OVERALL}
    for arm in (name for name in (BASELINE, *ARMS) if name in dice):
        line = [arm, f"`{' '.join(ARMS[arm])}`" if ARMS.get(arm) else "-", by_seed(dice[arm], "{:.3f}")]
        for reference in (DEFAULT, BASELINE):
            effect = found.get((arm, reference))
            line.append(
                f"{by_seed(dice[arm] - dice[reference], '{:+.3f}')}: {interval(asdict(effect), '{:+.3f}')}"
                if effect
                else "-"
            )
        lines.append(line)
    head = ["arm", "settings", f"Dice at seeds {', '.join(map(str, table.draws))}"]
    return markdown([*head, f"minus {DEFAULT}", f"minus {BASELINE}"], lines)


def by_seed(values: np.ndarray, form: str) -> str:
    """One number per seed; a dash if the cell did not run."""
    return ", ".join(form.format(value) if np.isfinite(value) else "-" for value in values)


def pretraining_table(args: argparse.Namespace) -> str:
    """Probes on unseen images, and the diagnostics of the last epoch."""
    probes, lines = read_json(args.work / "probes.json", default={}), []
    for name, seed in (("random", 0), *((name, seed) for name in ARMS for seed in range(args.seeds))):
        rows: list[dict[str, Any]] = probes.get(cell(name, seed), [])
        if not rows:
            continue
        line = [name, str(seed), *(", ".join(f"{row[key]:.3g}" for row in rows) for key in PROBES)]
        log = pretraining_of(name, seed, args.work) / "metrics.csv"
        epochs = read_rows(log) if log.is_file() else []
        for key in ("target_entropy", "mean_target_entropy", "effective_rank", "confident_pairs"):
            line.append(f"{float(epochs[-1][key]):.3g}" if epochs else "-")
        line.append(f"{sum(float(row['seconds']) for row in epochs):.0f}" if epochs else "-")
        lines.append(line)
    head = ["arm", "seed", "retrieval, mm", "masked error", "target entropy", "mean-target entropy", "effective rank"]
    note = (
        "Retrieval and masked error: student, teacher (random: three networks), on the test images. Entropies are "
        "shares of log K. The probe hides by zeros, which a sparse encoder has not seen in training."
    )
    return f"{note}\n\n{markdown([*head, 'sure pairs', 'seconds'], lines)}"


def not_run(args: argparse.Namespace) -> list[str]:
    """The cells of all arms and the requested seeds that have no score."""
    lines = []
    for seed in range(args.seeds):
        out = comparison_of(seed, args.work)
        jobs = stored_jobs(out) if (out / "comparison.json").is_file() else []
        found = {job.arm.name: job for job in jobs}
        for name in (BASELINE, *ARMS):
            job = found.get(name)
            if job is None or not job.finished:
                lines.append(f"- seed {seed}, {name}: {state(job) if job else 'not run'}")
    return lines or ["- nothing is missing"]


if __name__ == "__main__":
    sys.exit(main())
