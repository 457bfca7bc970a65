"""Short names of arms, for tables and figures."""

from collections.abc import Sequence

from nnunet_invariance.registry import LENGTH_SUFFIX


def short_names(arms: Sequence[str], plans: str) -> dict[str, str]:
    """Names of arms without the parts that they share: "Trainer", the number of epochs, and ``plans`` after "@".

    Names are returned as they are if they would not differ any more; the number of epochs stays where it differs.

    >>> short_names(["AliceTrainer_20epochs@nnUNetPlans_rate1", "nnUNetTrainer_20epochs"], "nnUNetPlans")
    {'AliceTrainer_20epochs@nnUNetPlans_rate1': 'Alice@rate1', 'nnUNetTrainer_20epochs': 'nnUNet'}
    """
    split = {arm: arm.partition("@") for arm in arms}
    lengths = {found.group() if (found := LENGTH_SUFFIX.search(trainer)) else "" for trainer, _, _ in split.values()}
    short = {
        arm: (LENGTH_SUFFIX.sub("", trainer) if len(lengths) == 1 else trainer).replace("Trainer", "", 1)
        + at
        + own.removeprefix(f"{plans}_")
        for arm, (trainer, at, own) in split.items()
    }
    return short if len(set(short.values())) == len(short) and all(short.values()) else {arm: arm for arm in arms}
