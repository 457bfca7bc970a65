"""Whether the features of a network beat those of random networks, in words; from the content of ``probe.json``."""

from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_invariance.common.wording import counted

#: Name of the group of all networks with random weights.
RANDOM = "random"


def sentences(data: Mapping[str, Any]) -> list[str]:
    """One sentence for every network that is not random."""
    return [_sentence(data, name) for name in data["networks"] if name != RANDOM]


def headline(data: Mapping[str, Any]) -> str:
    """The verdict of the whole probe in one sentence."""
    networks, last = data["networks"], data["options"]["shots"][-1]
    own = [name for name in networks if name != RANDOM]
    if len(own) == 1:
        return _sentence(data, own[0])
    if not own:
        return f"No checkpoint was probed; {counted(networks[RANDOM]['networks'], 'random network')} can be compared."
    best = max(own, key=lambda name: networks[name][f"{last} shots"]["best"])
    numbers = f"{best} is the best: Dice {_dice(data, best, last)}"
    if RANDOM not in networks:
        return f"{numbers}; no random network was probed."
    winners = sum(won(data, name) == list(data["options"]["shots"]) for name in own)
    return f"{winners} of {len(own)} networks beat every random network; {numbers}."


def won(data: Mapping[str, Any], name: str) -> list[int]:
    """The numbers of labelled cases with which a network beats every random network."""
    ours, theirs = data["networks"][name], data["networks"].get(RANDOM)
    shots: Sequence[int] = data["options"]["shots"]
    return [k for k in shots if theirs and ours[f"{k} shots"]["best"] > theirs[f"{k} shots"]["best"]]


def best_method(data: Mapping[str, Any]) -> str | None:
    """The pre-training of the network with the best Dice; None if no network beats every random one."""
    own = [name for name in data["networks"] if name != RANDOM and (RANDOM not in data["networks"] or won(data, name))]
    last = data["options"]["shots"][-1]
    best = max(own, key=lambda name: data["networks"][name][f"{last} shots"]["best"], default=None)
    return best and best.partition(" (")[0]  # without the branch


def _sentence(data: Mapping[str, Any], name: str) -> str:
    shots = data["options"]["shots"]
    numbers = ", ".join(_dice(data, name, k) for k in shots)
    if RANDOM not in data["networks"]:
        return f"No random network was probed; {name}: Dice {numbers}."
    found = won(data, name)
    if found == list(shots):
        text = "beats every random network"
    elif found:
        cases = "labelled case" if found == [1] else "labelled cases"
        text = f"beats every random network with {' and '.join(map(str, found))} {cases} only"
    else:
        text = "does not beat the best random network"
    return f"{name} {text}: Dice {numbers}."


def _dice(data: Mapping[str, Any], name: str, shots: int) -> str:
    """The mean Dice of a network, and of the best random network where there is one."""
    networks, key = data["networks"], f"{shots} shots"
    best = f" (best random {networks[RANDOM][key]['best']:.3f})" if RANDOM in networks else ""
    return f"{networks[name][key]['best']:.3f} with {counted(shots, 'labelled case')}{best}"
