"""Hash of all settings that preprocessed files depend on."""

import hashlib
import json

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

#: Keys of a configuration that affect the content of the preprocessed files.
PREPROCESSING = (
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "preprocessor_name",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg",
    "resampling_fn_seg_kwargs",
)


def preprocessing_fingerprint(plans: PlansManager, configuration: ConfigurationManager) -> str:
    """SHA-256 of spacing, normalisation, resampling, axis order and intensity statistics.

    Two configurations with the same hash give the same preprocessed files.
    """
    entry = configuration.configuration
    depends = {
        "configuration": {key: entry[key] for key in PREPROCESSING if key in entry},
        "intensity": plans.plans.get("foreground_intensity_properties_per_channel"),
        "transpose": plans.plans.get("transpose_forward"),
    }
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
