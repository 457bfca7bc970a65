"""Detection of files that do not contain weights, from their first bytes."""

from pathlib import Path


def mistaken_file_type(path: Path) -> str | None:
    """Describe why a file is not a weights file, with the remedy; None if its type is not recognised."""
    with open(path, "rb") as file:
        start = file.read(512)
    if not start:
        return "it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself (run `git lfs pull` where it came from)"
    if start.lstrip().startswith(b"<"):
        return "it is a web page, not the file itself (download it again)"
    if start[257:262] == b"ustar":
        return "it is a tar archive, a format that PyTorch no longer supports (save it again with a current PyTorch)"
    return None
