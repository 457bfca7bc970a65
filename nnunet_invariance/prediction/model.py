"""Predict a folder of images with nnU-Net's own predictor."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor

from nnunet_invariance._discovery import find_trainer
from nnunet_invariance.common.progress import Progress
from nnunet_invariance.errors import ImagesFolderError, OutputError
from nnunet_invariance.nnunet.grids import READ_BY_SIMPLEITK, check_case
from nnunet_invariance.nnunet.missing_channels import find_cases
from nnunet_invariance.nnunet.missing_files import accept_missing_channels
from nnunet_invariance.nnunet.planned_dataset import channel_names_of

logger = logging.getLogger(__name__)


def predict_folder(
    predictor: nnUNetPredictor, images: Path, out: Path, save_probabilities: bool = False, workers: int = 3
) -> list[str]:
    """Predict the cases of a folder and write the segmentations as ``nnUNetv2_predict`` does; returns their names.

    Files may be missing. The result is that of images of zeros in their place, and in that of constant images.

    Args:
        predictor: a predictor with a model, see :func:`.open_model`.
        images: files ``CASE_0000`` and so on.
        out: output folder.
        save_probabilities: also write the probabilities of every voxel.
        workers: processes for preprocessing, and as many for the export; 0 works in this process.

    Raises:
        ImagesFolderError: the folder is missing or contains no image, the channels of a case have different grids, or a
            case lacks a channel and the plans have a preprocessor of their own.
        VolumeError: an image is damaged.
        OutputError: ``out`` cannot be made.
    """
    cases = checked_cases(predictor, images)
    lists = [list(map(str, files)) for files in cases.values()]
    outputs = [str(out / case) for case in cases]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out} cannot be made ({error.strerror}). Give a writable folder.") from error
    with Progress(total=len(cases), desc="predicting", unit="case") as bar, _counting(predictor, bar):
        if workers:
            predictor.predict_from_files(
                lists,
                outputs,
                save_probabilities,
                num_processes_preprocessing=workers,
                num_processes_segmentation_export=workers,
            )
        else:
            predictor.predict_from_files_sequential(lists, outputs, save_probabilities)
    return list(cases)


@contextmanager
def _counting(predictor: nnUNetPredictor, bar: Progress) -> Iterator[None]:
    """Move the bar after every case; nnU-Net calls this method of the predictor once for each."""
    name = "predict_logits_from_preprocessed_data"
    predict = getattr(predictor, name)

    def counted(data: Tensor) -> Tensor:
        logits = predict(data)
        bar.update()
        return logits

    setattr(predictor, name, counted)
    try:
        yield
    finally:
        delattr(predictor, name)


def checked_cases(predictor: nnUNetPredictor, images: Path) -> dict[str, list[Path]]:
    """Files of the channels that are present, by case, of a folder with ``CASE_0000`` and so on.

    Raises:
        ImagesFolderError, VolumeError: as :func:`predict_folder`.
    """
    names = channel_names_of(predictor.dataset_json)
    cases = find_cases(images, predictor.dataset_json["file_ending"], names)
    _check_cases(predictor, images, cases, names)
    return {case: [files[channel] for channel in sorted(files)] for case, files in cases.items()}


def _check_cases(
    predictor: nnUNetPredictor, images: Path, cases: Mapping[str, Mapping[int, Path]], names: Sequence[str]
) -> None:
    """Check the files, and what is known about missing channels; warn if the network was not trained for them."""
    accepts = accept_missing_channels(predictor.configuration_manager.configuration)
    if predictor.plans_manager.image_reader_writer_class.__name__ in READ_BY_SIMPLEITK:
        for files in Progress(cases.values(), desc="checking", unit="case"):
            check_case(list(files.values()), finite=not accepts)
    lacking = {case: [n for i, n in enumerate(names) if i not in files] for case, files in cases.items()}
    lacking = {case: missing for case, missing in lacking.items() if missing}
    if not lacking:
        return
    case, missing = next(iter(lacking.items()))
    if not accepts:
        raise ImagesFolderError(
            f"The case {case} in {images} has no image of {', '.join(missing)}, and the preprocessor "
            f"{predictor.configuration_manager.preprocessor_name} of the plans needs all. Add the file, or fill it "
            "with zeros: nnunet-invariance complete."
        )
    if not getattr(find_trainer(predictor.trainer_name), "accepts_missing_channels", False):
        logger.warning(
            "%d of %d cases lack channels (%s: %s), but %s did not train for that: expect poor segmentations of them",
            len(lacking), len(cases), case, ", ".join(missing), predictor.trainer_name,
        )  # fmt: skip
