"""Every public intervention keeps the contract of tests/helpers/intervention_contract.py."""

import pytest

from nnunet_invariance.augmentation import interventions
from nnunet_invariance.augmentation.interventions import (
    GIN,
    GMM,
    INTERVENTIONS,
    IPA,
    Clusters,
    Intervention,
    Mixed,
    RandConv,
    SLAug,
    TissueIntervention,
)
from nnunet_invariance.errors import OptionError
from tests.helpers.intervention_contract import InterventionContract


class TestGIN(InterventionContract):
    intervention = GIN()


class TestIPA(InterventionContract):
    intervention = IPA()


class TestRandConv(InterventionContract):
    intervention = RandConv()


class TestClusters(InterventionContract):
    intervention = Clusters()


class TestClustersOfTheImage(InterventionContract):
    intervention = Clusters(tissues="image")


class TestGMM(InterventionContract):
    intervention = GMM()
    noise = True


class TestGMMOfTheImage(InterventionContract):
    intervention = GMM(tissues="image")
    noise = True


class TestSLAug(InterventionContract):
    intervention = SLAug()


class TestSLAugOfTheImage(InterventionContract):
    intervention = SLAug(tissues="image")


class TestMixed(InterventionContract):
    intervention = Mixed()


class TestMixedOfTheImage(InterventionContract):
    intervention = Mixed(tissues="image")


def covered() -> list[Intervention]:
    return [contract.intervention for contract in InterventionContract.__subclasses__()]


def test_every_public_intervention_is_covered():
    public = [getattr(interventions, name) for name in interventions.__all__]
    kinds = {kind for kind in public if isinstance(kind, type) and issubclass(kind, Intervention)}
    kinds -= {Intervention, TissueIntervention}
    assert set(INTERVENTIONS.values()) == kinds == {type(one) for one in covered()}
    for kind in kinds:
        if issubclass(kind, TissueIntervention):
            assert {one.tissues for one in covered() if type(one) is kind} == {"labels", "image"}, kind


@pytest.mark.parametrize("kind", [kind for kind in INTERVENTIONS.values() if issubclass(kind, TissueIntervention)])
def test_a_misspelt_choice_is_an_error(kind):
    with pytest.raises(OptionError, match=r"'tissues' of the intervention is 'label'; expected one of 'labels'"):
        kind(tissues="label")
