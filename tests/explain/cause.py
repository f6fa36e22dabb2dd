"""A cause made for real, and what `els explain` must then say of a batch.

A cause is a generator: it makes the cause, yields the batch, and undoes what the end of its place
does not. It may yield the batch with settings for `els explain` that replace those of the place.
Its argument names the place that it wants:

- `running`: a whole stack that many causes share; hurt nothing of it
- `place`: servers of one's own where nothing runs yet; stop Valkey, lock tables, as you like
- `rabbitmq`: as `place`, with a RabbitMQ node as the broker, which such causes share
- `alone`: as `place`, with a Postgres of one's own to freeze, fill or stop
"""

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

ANSWER_S = 3.0  # for the answer, without the time that Python takes to start
# What no explanation says: our own words for inner parts, and what a person cannot act on.
NEVER = ("chord", "claimed but not committed", "has class None", "Traceback")


@dataclass(frozen=True)
class Told:
    """What `els explain` said: as JSON, as text, and how long the slower of the two took."""

    json: dict
    text: str
    seconds: float

    @property
    def codes(self) -> list[str]:
        return [cause["code"] for cause in self.json.get("causes", [])]

    def cause(self, code: str) -> dict:
        return next((cause for cause in self.json["causes"] if cause["code"] == code), {})


@dataclass(frozen=True)
class Case:
    """A cause, and what must be said: its code among the first, words, and a step."""

    name: str
    make: Callable[..., Iterator[str]]
    code: str
    among: int  # it is one of so many first causes
    says: Sequence[str]
    never: Sequence[str]
    step: str | None  # words of its command
    ends: bool  # the SQL of its command ends it
    nothing: bool  # the batch has no cause at all, and that is right
    marks: Sequence[object]

    def statements(self, told: Told) -> list[str]:
        """The statements in the command of its cause, as a shell hands them to psql."""
        command = told.cause(self.code)["command"]
        return shlex.split(command.partition("# then psql DATABASE_URL ")[2])[1::2]

    @property
    def wants(self) -> str:
        """The name of the place that it is made in."""
        return self.make.__code__.co_varnames[0]

    def verdict(self, told: Told) -> tuple[str, list[str]]:
        """Judge what was said: `right`, `true symptom`, `wrong` or `empty`, and what is amiss."""
        amiss = [*self._amiss(told)]
        if not amiss:
            return "right", []
        if not told.codes and not self.nothing:
            return "empty", amiss
        says_untrue = any(word in told.text for word in (*NEVER, *self.never))
        true = self.code in told.codes and not says_untrue
        return ("true symptom" if true else "wrong"), amiss

    def _amiss(self, told: Told) -> Iterator[str]:
        if self.nothing:
            if told.codes:
                yield f"it names {told.codes}, and nothing is missing"
        elif self.code not in told.codes[: self.among]:
            yield f"{self.code} is not among the first {self.among} of {told.codes}"
        elif self.step and self.step not in told.cause(self.code)["command"]:
            yield f"the step is {told.cause(self.code)['command']!r}, without {self.step!r}"
        yield from (f"{word!r} is missing" for word in self.says if word not in told.text)
        yield from (f"{word!r} is said" for word in (*NEVER, *self.never) if word in told.text)
        if told.seconds > ANSWER_S:
            yield f"the answer took {told.seconds:.1f} s"


CASES: list[Case] = []


def cause(
    code: str,
    *,
    among: int = 1,
    says: Sequence[str] = (),
    never: Sequence[str] = (),
    step: str | None = None,
    ends: bool = False,
    nothing: bool = False,
    marks: Sequence[object] = (),
) -> Callable[[Callable[..., Iterator[str]]], Callable[..., Iterator[str]]]:
    """Enter a cause: `code` must be one of the `among` first that `els explain` names.

    `says` and `never` are words of the whole text, its blanks made single. `step`: words of the
    command of that cause; with `ends`, its SQL must end the cause. `nothing`: no cause at all is
    right, and `code` is for the summary.
    """

    def enter(make: Callable[..., Iterator[str]]) -> Callable[..., Iterator[str]]:
        name = f"{make.__module__.rpartition('.')[2]}-{make.__name__}"
        CASES.append(Case(name, make, code, among, says, never, step, ends, nothing, marks))
        return make

    return enter
