"""A trained modality translator: predicts images of all modalities from the available ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from torch import Tensor

from nnunet_invariance.errors import UnsupportedConfigurationError, WeightsIncompatibleError, WeightsNotFoundError
from nnunet_invariance.modality_translation.intensities import Intensities, read_intensities
from nnunet_invariance.networks.architectures.puir import PUIRNet
from nnunet_invariance.networks.architectures.smooth_upsampling import smooth_upsampling
from nnunet_invariance.networks.planned import Architecture
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset, require_supported
from nnunet_invariance.nnunet.sliding_window import sliding_window
from nnunet_invariance.pretraining.engine.state import restore_module
from nnunet_invariance.pretraining.methods.puir_translation import PUIRTranslation
from nnunet_invariance.registry import get_method
from nnunet_invariance.weights.checkpoint import load_checkpoint
from nnunet_invariance.weights.locate import FINAL, pretraining_folder

#: nnU-Net's readers with the same axis order as SimpleITK, which writes the predicted images.
READERS = ("SimpleITKIO", "NibabelIO")


@dataclass(frozen=True)
class ModalityTranslator:
    """A trained network and the intensity scales of its modalities; see :func:`load_translator`.

    >>> from types import SimpleNamespace
    >>> planned, network = SimpleNamespace(patch_size=(4, 4, 4)), lambda images, present: images
    >>> translator = ModalityTranslator(planned, network, [], torch.device("cpu"))
    >>> translator.predict_normalised(torch.zeros(2, 4, 4, 6), torch.tensor([True, False])).shape
    torch.Size([2, 4, 4, 6])
    """

    planned: PlannedDataset
    network: PUIRNet
    intensities: list[Intensities]
    device: torch.device

    def predict(self, files: Mapping[int, Path]) -> np.ndarray:
        """Predict all modalities (C, *spatial) from the given images, in raw intensities on their grid.

        Args:
            files: image files by channel index, all on one grid.
        """
        plans, manager = self.planned.plans, self.planned.configuration
        raw, properties = plans.image_reader_writer_class().read_images([str(path) for path in files.values()])
        image = np.zeros((len(self.intensities), *raw.shape[1:]), np.float32)
        image[list(files)] = raw
        preprocessor = manager.preprocessor_class(verbose=False)
        data, _, properties = preprocessor.run_case_npy(
            image, None, properties, plans, manager, self.planned.dataset_json
        )
        present = torch.zeros(len(image), dtype=torch.bool)
        present[list(files)] = True
        predicted = self.predict_normalised(torch.from_numpy(np.ascontiguousarray(data, np.float32)), present).numpy()
        spacing = [properties["spacing"][i] for i in plans.transpose_forward]
        shape = properties["shape_after_cropping_and_before_resampling"]
        predicted = np.asarray(manager.resampling_fn_data(predicted, shape, manager.spacing, spacing))
        axes = [0, *(i + 1 for i in plans.transpose_forward)]
        _, inside, box = crop_to_nonzero(image.transpose(axes))
        whole = np.zeros((len(image), *properties["shape_before_cropping"]), np.float32)
        place = tuple(slice(low, high) for low, high in box)
        for channel, i in enumerate(self.intensities):
            values = predicted[channel] * i.scale + i.offset
            whole[channel] = i.background
            whole[channel][place] = np.where(inside[0] >= 0, values, i.background) if i.masked else values
        return whole.transpose([0, *(i + 1 for i in plans.transpose_backward)])

    @torch.inference_mode()
    def predict_normalised(self, data: Tensor, present: Tensor) -> Tensor:
        """Predict normalised images (C, *spatial) of all modalities.

        Args:
            data: normalised images (C, *spatial); images of missing modalities are ignored.
            present: which modalities are present, bool (C,).
        """
        patch = self.planned.patch_size
        padded, inner = pad_nd_image(data, patch, "constant", {"value": 0}, True, None)

        def compute(window: Tensor) -> list[Tensor]:
            with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
                return [self.network(window.to(self.device), present[None].to(self.device))]

        (images,) = sliding_window(compute, padded, patch, progress="translation")
        inside = (slice(None), *inner[1:])
        return images[inside]


def load_translator(
    planned: PlannedDataset, checkpoint: Path | None = None, device: str = "cuda"
) -> ModalityTranslator:
    """Load a trained translator.

    Args:
        planned: dataset and configuration.
        checkpoint: checkpoint file; default: the one that ``translate train`` wrote for this configuration.
        device: ``"cuda"``, ``"cpu"`` or ``"mps"``.

    Raises:
        WeightsNotFoundError: the checkpoint or its file of intensity scales does not exist.
        WeightsIncompatibleError: the checkpoint is from another method, network or set of modalities.
        UnsupportedConfigurationError: see :func:`require_translatable`.
    """
    require_translatable(planned)
    path = checkpoint_of(planned, checkpoint)
    loaded = load_checkpoint(path, ["network"])
    if (method := loaded.metadata["method"]) != PUIRTranslation.name:
        raise WeightsIncompatibleError(
            f"{path} contains {method!r}, expected {PUIRTranslation.name!r}. {_remedy(planned)}"
        )
    channels = planned.channel_names
    before = (loaded.metadata["channel_names"], loaded.metadata["plans"]["architecture"])
    if before != (channels, planned.configuration.configuration["architecture"]):
        raise WeightsIncompatibleError(
            f"{path} was trained for the channels {', '.join(before[0])} and its own plans; the dataset has "
            f"{', '.join(channels)}, or its plans name another network. Give the dataset and plans of the training."
        )
    options = loaded.metadata["options"]
    architecture = Architecture.from_plans(before[1], len(channels), len(channels))
    network = PUIRNet(architecture, planned.patch_size, options["tokens"], options["prior"], options["stem"])
    smooth_upsampling(network.decoder)
    restore_module(network, loaded.section("network"))
    return ModalityTranslator(planned, network.to(device).eval(), read_intensities(path.parent), torch.device(device))


def require_translatable(planned: PlannedDataset) -> None:
    """Check that modality translation supports the dataset and its plans.

    Raises:
        UnsupportedConfigurationError: the dataset has a single channel or duplicate channel names, the plans are 2-D,
            a cascade stage or for an unsupported network, or the image reader is not in :data:`READERS`.
    """
    entry = get_method(PUIRTranslation.name)
    require_supported(planned, "modality translation", entry.dimensions, entry.least_channels, entry.networks)
    if (reader := planned.plans.image_reader_writer_class.__name__) not in READERS:
        msg = f"{planned.name} is read by {reader}; modality translation supports only {' and '.join(READERS)}."
        raise UnsupportedConfigurationError(f"{msg} Plan with one of these readers.")


def checkpoint_of(planned: PlannedDataset, checkpoint: Path | None = None) -> Path:
    """Path of the given checkpoint, or of the one that ``translate train`` wrote for the dataset.

    Raises:
        WeightsNotFoundError: the file does not exist.
    """
    names = (planned.name, planned.plans.plans_name, planned.configuration_name)
    path = checkpoint or pretraining_folder(PUIRTranslation.name, *names) / FINAL
    if not path.is_file():
        raise WeightsNotFoundError(f"{path} does not exist, so no translator was trained. {_remedy(planned)}")
    return path


def _remedy(planned: PlannedDataset) -> str:
    arguments = f"{planned.name} {planned.configuration_name} -p {planned.plans.plans_name}"
    return f"Run `nnunet-invariance translate train {arguments}`, or give --checkpoint FILE."
