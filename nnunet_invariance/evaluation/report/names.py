"""Short names of arms, for tables and figures."""

from collections.abc import Sequence

from nnunet_invariance.registry import LENGTH_SUFFIX


def short_names(arms: Sequence[str], plans: str) -> dict[str, str]:
    """Names of arms without the parts that they share: the number of epochs, and ``plans`` at the start of ``@PLANS``.

    Names are returned as they are if they have different lengths or would not differ any more.

    >>> short_names(["AliceTrainer_20epochs@nnUNetPlans_rate1", "nnUNetTrainer_20epochs"], "nnUNetPlans")
    {'AliceTrainer_20epochs@nnUNetPlans_rate1': 'AliceTrainer@rate1', 'nnUNetTrainer_20epochs': 'nnUNetTrainer'}
    """
    split = {arm: arm.partition("@") for arm in arms}
    lengths = {found.group() if (found := LENGTH_SUFFIX.search(trainer)) else "" for trainer, _, _ in split.values()}
    short = {
        arm: (LENGTH_SUFFIX.sub("", trainer) if len(lengths) == 1 else trainer) + at + own.removeprefix(f"{plans}_")
        for arm, (trainer, at, own) in split.items()
    }
    return short if len(set(short.values())) == len(short) else {arm: arm for arm in arms}
