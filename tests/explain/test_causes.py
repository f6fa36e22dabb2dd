"""Each cause is made for real; then `els explain` must name it, in time and with a right step."""

from contextlib import contextmanager
from importlib import import_module
from pkgutil import iter_modules

import pytest

from tests.explain import causes
from tests.explain.cause import ANSWER_S, CASES

for module in iter_modules(causes.__path__):
    import_module(f"{causes.__name__}.{module.name}")


@contextmanager
def made(generator):
    """Make a cause and give its batch; then undo it."""
    batch = next(generator)
    try:
        yield batch
    finally:
        next(generator, None)


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=case.marks) for case in CASES]
)
def test_the_cause_is_named(case, request, record_property):
    place = request.getfixturevalue(case.wants)

    with made(case.make(place)) as asked:
        batch, environ = asked if isinstance(asked, tuple) else (asked, {})
        told = place.explain(batch, place.start_s, **environ)
        if told.seconds > ANSWER_S:  # is it slow, or the machine?
            told = place.explain(batch, place.measure_start(), **environ)
        verdict, amiss = case.verdict(told)
        if case.ends and verdict == "right":
            place.execute(case.statements(told), **environ)
            after = place.explain(batch, place.start_s, **environ)
            if case.code in after.codes:
                verdict, amiss = "true symptom", ["its step does not end it", after.text]

    record_property("case", case.name)
    record_property("verdict", verdict)
    record_property("amiss", "; ".join(amiss))
    assert verdict == "right", "\n".join([*amiss, told.text])
