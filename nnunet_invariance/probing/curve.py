"""The linear probe during a pre-training: its Dice every few epochs."""

from nnunet_invariance.common.wording import counted
from nnunet_invariance.errors import UnsupportedConfigurationError
from nnunet_invariance.networks.hypercolumns import require_stages
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset
from nnunet_invariance.pretraining.engine.method import Method
from nnunet_invariance.probing.protocol import ProbeOptions, ProbeRun, prepare_probe
from nnunet_invariance.probing.run import labelled_cases


class ProbeCurve:
    """Measure the probe of a network that is being pre-trained; the training and its random numbers do not change.

    The cases are labelled training cases of the data set. The pre-training sees their images if they are among its
    cases, but never their labels.

    Args:
        every: number of epochs between two measurements; the start and the last epoch are measured as well.
        options: of the probe. Default: one labelled case, three choices of it, ten test cases.

    >>> ProbeCurve(every=10).options.shots
    (1,)
    """

    def __init__(self, every: int, options: ProbeOptions | None = None) -> None:
        self.every = every
        self.options = options or ProbeOptions(shots=(1,), test_cases=10, random_networks=0)
        self._run: ProbeRun | None = None

    def start(self, planned: PlannedDataset, method: Method, device: str) -> None:
        """Read the cases.

        Raises:
            ComparisonError: the data set has too few labelled cases.
            UnsupportedConfigurationError: the network has another number of channels than the data set, or no stages
                that a probe can read.
        """
        require_stages(method.network)
        channels, expected = method.architecture.input_channels, len(planned.channel_names)
        if channels != expected:
            msg = f"--probe: {method.name} trains a network of {counted(channels, 'channel')}, {planned.name} has "
            raise UnsupportedConfigurationError(f"{msg}{expected}; expected the same number. Omit --probe.")
        self._run = prepare_probe(planned, labelled_cases(planned), self.options, device, each_map=False)

    def measure(self, method: Method) -> dict[str, float]:
        """Mean Dice of the student, and of the teacher if there is one; both are in evaluation mode afterwards."""
        if self._run is None:
            raise RuntimeError("start() was not called")
        networks = {"probe_dice": method.network, "probe_dice_teacher": method.teacher}
        shots = self.options.shots[0]
        return {
            name: self._run.score(name, network).mean(shots)
            for name, network in networks.items()
            if network is not None
        }
