"""Access to nnU-Net's files: planned data sets, preprocessed cases and unlabelled images."""
