"""Parameter tables with one row per modality, reordered for the channels of another data set."""

from collections.abc import Sequence
from dataclasses import replace

from nnunet_invariance.errors import WeightsIncompatibleError
from nnunet_invariance.weights.checkpoint import Checkpoint


def in_channel_order(checkpoint: Checkpoint, names: Sequence[str], table: str | tuple[str, ...]) -> Checkpoint:
    """The checkpoint with the rows of its tables in the order of ``names``; rows of other modalities are removed.

    Args:
        names: channels of the data set, as in dataset.json.
        table: suffix of the names of the tables, or several suffixes.

    Raises:
        WeightsIncompatibleError: a channel was not part of the pre-training, or two channels have the same name.
    """
    known = list(checkpoint.metadata["channel_names"])
    strange = [name for name in names if name not in known]
    if strange or len(set(names)) < len(names) or len(set(known)) < len(known):
        what = (
            f"does not know the channels {', '.join(strange)}"
            if strange
            else "cannot distinguish channels with the same name"
        )
        raise WeightsIncompatibleError(
            f"{checkpoint.path} {what}: it was pre-trained with {', '.join(known)}, and the data set has "
            f"{', '.join(names)}. Modalities are matched by name: give each channel a name of its own in dataset.json, "
            "the same in both data sets, or pre-train with these channels."
        )
    rows = [known.index(name) for name in names]
    tensors = {name: t[rows] if name.endswith(table) else t for name, t in checkpoint.tensors.items()}
    return replace(checkpoint, tensors=tensors)
