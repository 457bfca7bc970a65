"""Files that are not what their name says, told by their first bytes."""

from pathlib import Path


def mistaken_file_type(path: Path) -> str | None:
    """What a file is that should hold weights and does not, in words with the remedy; None where nothing is known."""
    with open(path, "rb") as file:
        start = file.read(512)
    if not start:
        return "it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself (run `git lfs pull` where it came from)"
    if start.lstrip().startswith(b"<"):
        return "it is a web page, not the file itself (download it again)"
    if start[257:262] == b"ustar":
        return "it is a tar archive, a format that PyTorch gave up (save it again with a PyTorch of today)"
    return None
