"""What preprocessed files depend on, as a hash."""

import hashlib
import json

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

#: Keys of a configuration that say what the preprocessed files hold.
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
    """Hash of spacing, normalisation, resampling, axes and intensity statistics: equal hashes, equal preprocessing."""
    entry = configuration.configuration
    depends = {
        "configuration": {key: entry[key] for key in PREPROCESSING if key in entry},
        "intensity": plans.plans.get("foreground_intensity_properties_per_channel"),
        "transpose": plans.plans.get("transpose_forward"),
    }
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
