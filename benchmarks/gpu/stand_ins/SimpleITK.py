"""Stands in for SimpleITK where it is not installed: nnU-Net imports it, but no phase reads or writes an image file."""


def __getattr__(name: str) -> type:
    """Every name is an empty class, for annotations."""
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})
