"""The commands that repeat the steps of a demo on the user's own data."""

from collections.abc import Sequence

#: Placeholder for the name of the user's data set, which is in nnU-Net's raw format.
OWN_DATASET = "Dataset123_Mine"
CONFIGURATION = "3d_fullres"


def next_steps(
    trainer: str,
    evaluate: Sequence[str],
    method: str | None = None,
    before_prediction: Sequence[str] = (),
    images: str = "imagesTs",
) -> list[str]:
    """List the commands from a raw data set to predictions and an evaluation, in order.

    Args:
        trainer: name for ``nnUNetv2_train -tr``.
        evaluate: arguments of ``nnunet-invariance evaluate``, without the data set and the configuration.
        method: pre-training method; None for a trainer without one.
        before_prediction: commands between training and prediction.
        images: folder with the images to predict.
    """
    what = f"{OWN_DATASET} {CONFIGURATION}"
    protocol, *words = evaluate
    return [
        f"nnUNetv2_plan_and_preprocess -d 123 -c {CONFIGURATION} --verify_dataset_integrity",
        "nnunet-invariance doctor",
        *([f"nnunet-invariance pretrain {method} {what}"] if method else []),
        f"nnUNetv2_train {what} 0 -tr {trainer}",
        *before_prediction,
        f"nnUNetv2_predict -i {images} -o predictions -d {OWN_DATASET} -c {CONFIGURATION} -f 0 -tr {trainer}",
        f"nnunet-invariance evaluate {protocol} {what} {' '.join(words)}",
    ]
