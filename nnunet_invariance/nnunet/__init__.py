"""Access to nnU-Net's files: planned datasets, preprocessed cases and unlabelled images."""

__all__: list[str] = []  # import from the modules
