"""Weights to ship with the package: a U-Net of nnU-Net, pre-trained on synthetic pairs only.

    python -m benchmarks.shipped_weights --work DIR [--network plain4] [--templates DIR] [--real DIR/DATASET]

The same command continues an interrupted pre-training (`pretrain anatomix --network`). After it the study measures the
label retrieval of the finest features on unseen synthetic pairs, and with --real on pairs of labelled images, and
compares it with networks that have random weights. It writes the weights only if they exceed the mean of the random
networks by more than the spread of those, on every kind of pair. The weights are in half precision and come with a
checksum, the training log and a model card. Labels of --real are used for the measurement only. --templates must not be
the labels of a data set that the weights are evaluated on.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import write_file
from benchmarks.shipped_weights.card import ship
from benchmarks.shipped_weights.method import options_of
from benchmarks.shipped_weights.retrieval import measure
from nnunet_invariance.errors import InvarianceError
from nnunet_invariance.pretraining.engine.run import pretrain_without_dataset
from nnunet_invariance.weights.checkpoint import load_checkpoint
from nnunet_invariance.weights.locate import FINAL, LATEST, SHIPPED


def main(argv: Sequence[str] | None = None) -> int:
    """Pre-train, measure, and write the weights if they are good enough; returns 1 if they are not."""
    arguments = parse(argv)
    run = arguments.work / "run"
    options, loop = options_of(arguments)
    try:
        resume = (run / LATEST).is_file() or (run / FINAL).is_file()
        path = pretrain_without_dataset(
            "anatomix", arguments.network, run, device=arguments.device, options=options, loop=loop, resume=resume
        )
        checkpoint = load_checkpoint(path, ["network", "heads"])
        record = measure(checkpoint, arguments)
    except InvarianceError as error:
        print(error, file=sys.stderr)
        return 2
    # without --work and other paths, because this text is published
    shapes = None if arguments.templates else arguments.shapes
    names = {"templates": arguments.templates, "shapes": shapes, "real": arguments.real}
    sources = [f"--{name} {Path(value).name}" for name, value in names.items() if value]
    own = [f"--{name} {getattr(arguments, name)}" for name in ("network", "patch", "epochs", "iterations", "precision")]
    own += [f"--{name} {getattr(arguments, name)}" for name in ("lr", "networks", "synthetic", "seed")]
    own += [f"--batch-size {arguments.batch_size}", f"--cuts {arguments.cuts}"]
    record["command"] = " ".join(["python -m benchmarks.shipped_weights --work DIR", *sources, *own])
    write_file(arguments.work / "record.json", f"{json.dumps(record, indent=1)}\n".encode())
    print(json.dumps(record, indent=1))
    if not all(kind["beats"] for kind in record["retrieval"].values()):
        print("The label retrieval does not beat random weights by more than they differ: no weights are written.")
        return 1
    ship(checkpoint, record, run / "metrics.csv", arguments)
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder of the run")
    add("--templates", type=Path, help="folder of label maps; without it, the shapes of --shapes")
    add("--real", type=Path, help="labelled data set in nnU-Net's raw layout, to be measured on only")
    add("--network", choices=["plain3", "plain4", "plain6", "resenc3"], default="plain4", help="a network of nnU-Net")
    add("--patch", type=int, default=32, help="side of the patches, voxels")
    add("--batch-size", type=int, default=1, dest="batch_size", help="pairs per step")
    add("--shapes", choices=["procedural", "formula", "mixed"], default="mixed", help="shapes without templates")
    add("--cuts", type=int, default=0, help="patches of each volume; 0: the default of the method")
    add("--epochs", type=int, default=250, help="of the pre-training")
    add("--iterations", type=int, default=100, help="steps an epoch")
    add("--lr", type=float, default=1e-3, help="highest learning rate, of a cosine")
    add("--precision", choices=["fp32", "bf16"], default="fp32", help="of the pre-training")
    add("--networks", type=int, default=5, help="random networks that are compared with")
    add("--synthetic", type=int, default=32, help="unseen synthetic pairs")
    add("--seed", type=int, default=0, help="of the run")
    add("-device", choices=["cpu", "cuda"], default="cpu", help="where to train and measure")
    add("--out", type=Path, default=SHIPPED, help="where the weights go")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
