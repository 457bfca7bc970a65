"""The pre-training of a shipped file: its options, and the method with random weights."""

import argparse
from typing import Any

from nnunet_invariance.pretraining.engine.options import LoopOptions
from nnunet_invariance.pretraining.engine.target import preset_target
from nnunet_invariance.pretraining.methods.anatomix import Anatomix, AnatomixPretrainingOptions


def options_of(arguments: argparse.Namespace) -> tuple[AnatomixPretrainingOptions, LoopOptions]:
    """The options of the method and of the loop."""
    options = AnatomixPretrainingOptions(
        batch_size=arguments.batch_size, patch=arguments.patch, cuts=arguments.cuts, **shapes_of(arguments)
    )
    loop = LoopOptions(
        epochs=arguments.epochs,
        iterations=arguments.iterations,
        lr=arguments.lr,
        seed=arguments.seed,
        precision=arguments.precision,
        workers=0,
    )
    return options, loop


def shapes_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that choose the shapes."""
    return {"templates": str(arguments.templates)} if arguments.templates else {"shapes": arguments.shapes}


def untrained_method(arguments: argparse.Namespace, patch: int) -> Anatomix:
    """The method with the shapes of the run, for pairs that it was not trained on; patch 0: that of the preset."""
    options = AnatomixPretrainingOptions(patch=patch, held_out=0, **shapes_of(arguments))
    return Anatomix(preset_target(Anatomix, arguments.network, arguments.work).setup, options).eval()
