"""Ids that people take for each other are recognized, and no others."""

import pytest

from ops.explain.lookalikes import (
    BLANKS,
    CASE,
    DASHES,
    LETTERS,
    ONE_EDIT,
    SAME_UUID,
    SWAPPED,
    alike,
    difference,
    variants,
)

PAIRS = [
    ("batch-7f3a ", "batch-7f3a", BLANKS),
    ("\tbatch-7f3a\n", "batch-7f3a", BLANKS),
    ("BATCH-7F3A", "batch-7f3a", CASE),
    ("Batch-7f3a", "batch-7f3a", CASE),
    ("batch_7f3a", "batch-7f3a", DASHES),
    ("batch 7f3a", "batch-7f3a", DASHES),
    ("batch\u20137f3a", "batch-7f3a", DASHES),
    ("BATCH_7F3A", "batch-7f3a", DASHES),
    ("0b0e7f3a-12ab-4c3d-8e9f-001122334455", "0b0e7f3a12ab4c3d8e9f001122334455", DASHES),
    ("0b0e7f3a-12ab-4c3d-8e9f-001122334455", "Cw5_OhKrTD2OnwARIjNEVQ", SAME_UUID),
    ("Cw5_OhKrTD2OnwARIjNEVQ", "0b0e7f3a-12ab-4c3d-8e9f-001122334455", SAME_UUID),
    ("0b0e7f3a-12ab-4c3d-8e9f-001122334455", "3a7f0e0b-ab12-3d4c-8e9f-001122334455", SAME_UUID),
    ("batch-O7", "batch-07", LETTERS),
    ("batch-l7", "batch-17", LETTERS),
    ("batch-I7", "batch-17", LETTERS),
    ("batch-7f3b", "batch-7f3a", ONE_EDIT),
    ("batch-7f3", "batch-7f3a", ONE_EDIT),
    ("batch-7f3aa", "batch-7f3a", ONE_EDIT),
    ("abatch-7f3a", "batch-7f3a", ONE_EDIT),
    ("batch-73fa", "batch-7f3a", SWAPPED),
    ("bacth-7f3a", "batch-7f3a", SWAPPED),
    ("7f3a", "batch-7f3a", "with more before or after it"),
    ("batch", "batch-7f3a", "with more before or after it"),
    ("http://els/batches/batch-7f3a?slot=1", "batch-7f3a", "without what stands around it"),
    ("batch-7f3a.", "batch-7f3a", DASHES),
    ("'batch-7f3a'", "batch-7f3a", DASHES),
    ("batch-7f3a", "batch-7f3a", None),
    ("batch-7f3a", "batch-9c1d", None),
    ("batch-7f3a", "batch-f73b", None),
    ("b1", "b2", None),
    ("", "batch-7f3a", None),
    ("--", "__", None),
]


@pytest.mark.parametrize(("given", "other", "how"), PAIRS)
def test_what_makes_one_id_the_other_is_said(given, other, how):
    assert difference(given, other) == how


def test_the_nearest_comes_first():
    others = ["batch-7f3b", "batch-x", "Batch-7f3a", "batch_7f3a"]

    assert list(alike("batch-7f3a", others)) == ["Batch-7f3a", "batch_7f3a", "batch-7f3b"]


@pytest.mark.parametrize(
    ("given", "other"), [(g, o) for g, o, how in PAIRS if how in (ONE_EDIT, SWAPPED, BLANKS)]
)
def test_an_id_one_step_away_is_looked_up(given, other):
    assert other in variants(given)


def test_what_is_looked_up_stays_few():
    assert len(variants("x" * 64)) < 10_000
    assert len(variants("x" * 1000)) < 10_000
    assert all(0 < len(each) <= 64 for each in variants("x" * 1000))
