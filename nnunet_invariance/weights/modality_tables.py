"""Tables with a row for each modality, brought into the order of another data set's channels."""

from collections.abc import Sequence
from dataclasses import replace

from nnunet_invariance.errors import WeightsIncompatibleError
from nnunet_invariance.weights.checkpoint import Checkpoint


def in_channel_order(checkpoint: Checkpoint, names: Sequence[str], table: str | tuple[str, ...]) -> Checkpoint:
    """The checkpoint with the rows of its tables in the order of ``names``; rows of other modalities are left out.

    Args:
        names: channels of the data set, as in dataset.json.
        table: how the names of the tables end, or several such ends.

    Raises:
        WeightsIncompatibleError: a channel was not there in pre-training, or two have one name.
    """
    known = list(checkpoint.metadata["channel_names"])
    strange = [name for name in names if name not in known]
    if strange or len(set(names)) < len(names) or len(set(known)) < len(known):
        what = f"does not know the channels {', '.join(strange)}" if strange else "cannot tell channels of one name"
        raise WeightsIncompatibleError(
            f"{checkpoint.path} {what}: it was pre-trained with {', '.join(known)}, and the data set has "
            f"{', '.join(names)}. Modalities are known by name: give each channel its own in dataset.json, the same in "
            "both data sets, or pre-train with these channels."
        )
    rows = [known.index(name) for name in names]
    tensors = {name: t[rows] if name.endswith(table) else t for name, t in checkpoint.tensors.items()}
    return replace(checkpoint, tensors=tensors)
