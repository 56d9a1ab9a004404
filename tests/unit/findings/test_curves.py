"""The vocabulary of the findings fits that of the table."""

from mossa_jax.findings.curves import HEADLINE, REPORTED_ESTIMATORS
from mossa_jax.similarity.estimators import ESTIMATORS


def test_the_reported_estimators_are_those_of_the_table_headline_first():
    assert sorted(REPORTED_ESTIMATORS) == sorted(ESTIMATORS)
    assert REPORTED_ESTIMATORS[0] == HEADLINE
