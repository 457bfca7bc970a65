"""Importer of checkpoints in nnssl's format, whose adaptation plan describes the encoder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_invariance.errors import CheckpointCorruptError
from nnunet_invariance.networks.architectures.primus import SIZES, arch_kwargs
from nnunet_invariance.networks.stock import REQUIRES_IMPORT, unet_arguments
from nnunet_invariance.weights.importers.network import UNKNOWN_CITATION, ForeignNetwork, classes_of, without_wrappers
from nnunet_invariance.weights.transfer_report import ENCODER
from nnunet_invariance.weights.trusted_architecture import PRIMUS, architecture_of, plain

DESCRIPTION = "a checkpoint of nnssl"
KEYS = ("network_weights", "nnssl_adaptation_plan", "trainer_name")
PLAN = "nnssl_adaptation_plan"
ENCODER_KEY = "encoder.stages"
EVA, POSITIONS = "eva", "eva.pos_embed"
PRIMUS_ENCODER = ("eva.", "down_projection.")

#: Arguments of the network that nnssl names without arguments: nnU-Net's residual encoder preset L.
RESENC_L = unet_arguments(
    (32, 64, 128, 256, 320, 320), n_blocks_per_stage=[1, 3, 4, 6, 6, 6], n_conv_per_stage_decoder=[1] * 5
)


def recognises(content: Mapping[str, Any]) -> bool:
    """Whether this importer reads a file with this content."""
    return PLAN in content and "network_weights" in content


def read(path: Path, content: Mapping[str, Any], plans: Mapping[str, Any] | None, configuration: str) -> ForeignNetwork:
    """The network of the file; ``plans`` and ``configuration`` are ignored, because the file has its own.

    Raises:
        WeightsIncompatibleError: a network that none of our trainers can use. CheckpointCorruptError
    """
    plan = plain(path, content[PLAN])
    key = plan["key_to_encoder"]
    tensors = without_wrappers(content["network_weights"])
    state = _primus_names(tensors, key) if key.rsplit(".", 1)[-1] == EVA else _own_names(path, tensors, key)
    channels = int(plan["pretrain_num_input_channels"])
    architecture = architecture_of(path, _architecture(plan), channels, classes_of(state))
    notes = {
        "trainer": str(content.get("trainer_name")),
        "recommended_downstream_patchsize": plan.get("recommended_downstream_patchsize"),
    }
    epochs, citations = content.get("current_epoch"), plain(path, content.get("citations"))
    citation = UNKNOWN_CITATION if citations is None else _words(citations)
    epochs = epochs if isinstance(epochs, int) else None
    return ForeignNetwork(state, architecture, _facts(plan, channels), epochs, citation, notes=notes)


def _words(citations: Any) -> str:
    """The references of entries in nnssl's form; any other value as text."""
    entries = citations if isinstance(citations, list) else [citations]
    named = [e.get("apa_citations") or e.get("bibtex_citations") or [str(e)] if isinstance(e, Mapping) else [str(e)]
             for e in entries]  # fmt: skip
    return "; ".join(str(reference) for references in named for reference in references)


def _own_names(path: Path, state: Mapping[str, Any], key_to_encoder: str) -> dict[str, Any]:
    """Names without the path of the encoder in a method, such as ``student.encoder.stages``."""
    if not key_to_encoder.endswith(ENCODER_KEY):
        msg = f"{path} cannot be imported: its encoder is at {key_to_encoder!r}; expected ...{ENCODER_KEY}. "
        raise CheckpointCorruptError(msg + "Use it with the tool that wrote it.")
    prefix = key_to_encoder.removesuffix(ENCODER_KEY)
    return {key.removeprefix(prefix): value for key, value in state.items()} if prefix else dict(state)


def _primus_names(state: Mapping[str, Any], key_to_encoder: str) -> dict[str, Any]:
    """Transformer and patch embedding by our names, without the class token, as in nnssl's own fine-tuning."""
    prefix = key_to_encoder.removesuffix(EVA)
    inside = {key.removeprefix(prefix): value for key, value in state.items()} if prefix else dict(state)
    if f"{EVA}.cls_token" in inside:
        inside[POSITIONS] = inside[POSITIONS][:, 1:]
    return {f"{ENCODER}{key}" if key.startswith(PRIMUS_ENCODER) else key: value for key, value in inside.items()}


def _architecture(plan: Mapping[str, Any]) -> dict[str, Any]:
    plans = plan["architecture_plans"]
    name = plans["arch_class_name"]
    if name.removeprefix(PRIMUS) in SIZES:
        arguments = arch_kwargs(name.removeprefix(PRIMUS), _patch(plan))
        return {"network_class_name": PRIMUS, "arch_kwargs": arguments, "_kw_requires_import": ()}
    if name == "ResEncL":
        return {
            "network_class_name": "ResidualEncoderUNet",
            "arch_kwargs": RESENC_L,
            "_kw_requires_import": REQUIRES_IMPORT,
        }
    required = plans.get("arch_kwargs_requiring_import") or ()
    return {"network_class_name": name, "arch_kwargs": plans["arch_kwargs"] or {}, "_kw_requires_import": required}


def _patch(plan: Mapping[str, Any]) -> list[int]:
    """Patch size of the pre-training, which some methods store apart from the first configuration."""
    entry = next(iter(plan["pretrain_plan"]["configurations"].values()))
    return plan.get("pretrain_patch_size") or entry["patch_size"]


def _facts(plan: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """Facts from the first configuration, which is the one that was trained."""
    trained = plan["pretrain_plan"]
    name, entry = next(iter(trained["configurations"].items()))
    schemes = list(entry["normalization_schemes"])
    return {
        "dataset_name": trained["dataset_name"],
        "plans_name": trained["plans_name"],
        "configuration": name,
        "data_identifier": entry["data_identifier"],
        "spacing": entry["spacing"],
        "patch_size": _patch(plan),
        "normalization_schemes": schemes if len(schemes) == channels else schemes[:1] * channels,
        "channel_names": [f"channel {i}" for i in range(channels)],
        "plans": entry,
    }
