"""What preprocessed files depend on, as a hash."""

import hashlib
import json

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_invariance.plans.copies import PREPROCESSING


def preprocessing_hash(plans: PlansManager, configuration: ConfigurationManager) -> str:
    """Hash of spacing, normalisation, resampling, axes and intensity statistics: equal hashes, equal preprocessing."""
    entry = configuration.configuration
    depends = {
        "configuration": {key: entry[key] for key in PREPROCESSING if key in entry},
        "intensity": plans.plans.get("foreground_intensity_properties_per_channel"),
        "transpose": plans.plans.get("transpose_forward"),
    }
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
