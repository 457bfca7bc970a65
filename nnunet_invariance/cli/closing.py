"""The last lines of a command: what it wrote, and what to type next."""

import os


def finish(written: object, then: str, first: str | None = None) -> int:
    """Print both lines in the first process of ``torchrun``, or the only one; returns the exit status of success.

    Args:
        written: a path, or a phrase with one.
        then: a command, or what to look at.
        first: a command that must run before it, if there is one.

    >>> finish("OUT", "nnUNetv2_predict -i OUT ...")
    finished: OUT
    next: nnUNetv2_predict -i OUT ...
    0
    """
    if os.environ.get("RANK", "0") == "0":
        print(f"finished: {written}\nnext: {f'{first}, then ' if first else ''}{then}")
    return 0


def train_command(
    trainer: str, dataset: str = "DATASET", configuration: str = "CONFIGURATION", plans: str = "nnUNetPlans"
) -> str:
    """nnU-Net's command that trains fold 0.

    >>> train_command("AliceTrainer", "4", "3d_fullres")
    'nnUNetv2_train 4 3d_fullres 0 -tr AliceTrainer'
    """
    of_plans = "" if plans == "nnUNetPlans" else f" -p {plans}"
    return f"nnUNetv2_train {dataset} {configuration} 0{of_plans} -tr {trainer}"
