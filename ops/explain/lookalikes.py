"""Ids that a person may have taken for each other: nearly the same, or a part of the other."""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable
from string import ascii_letters, digits
from urllib.parse import unquote
from uuid import UUID

CHARACTERS = f"{ascii_letters}{digits}-_"  # of an identifier
LONGEST = 64
LEAST_PART = 4  # characters of a part that says something
ALIKE = str.maketrans("oil", "011")
BLANKS, CASE = "without the blanks", "in another case"
DASHES, LETTERS = "with other dashes, blanks or signs", "with letters or digits that look alike"
SAME_UUID = "in another form of the same UUID"
ZEROS, TURNED = "with more or fewer zeros", "with its parts in another order"
LONG = 8  # characters; of shorter ids many are the same without zeros, or turned round
ONE_EDIT, SWAPPED = "with one character changed", "with two characters swapped"
NEAREST_FIRST = (BLANKS, CASE, DASHES, SAME_UUID, LETTERS, SWAPPED, ONE_EDIT, ZEROS, TURNED)
NOT_SAID = re.compile("[^a-z0-9]")


def fold(given: str) -> str:
    """Return an id without what people mix up: case, blanks, `-` and `_`, O and 0, l, I and 1.

    Signs may be written as in an address: `%2D`.
    """
    return _said(given).translate(ALIKE)


def _said(given: str) -> str:
    return NOT_SAID.sub("", unquote(given).lower())


def variants(given: str) -> list[str]:
    """List every id that differs from this one in one character, or in two that are swapped."""
    given = bare(given)[: LONGEST + 1]
    cuts = [(given[:n], given[n:]) for n in range(len(given) + 1)]
    found = {given, *parts(given), *forms(given)}
    found |= {a + b[1:] for a, b in cuts if b}
    found |= {a + b[1] + b[0] + b[2:] for a, b in cuts if len(b) > 1}
    found |= {a + each + b[1:] for a, b in cuts if b for each in CHARACTERS}
    found |= {a + each + b for a, b in cuts for each in CHARACTERS}
    return sorted(each for each in found if 0 < len(each) <= LONGEST)


def bare(given: str) -> str:
    """Return an id without blanks, and without the dots where somebody has cut it."""
    return given.strip().removesuffix("...").strip("…").strip()


def parts(given: str) -> list[str]:
    """List the identifiers in a text that is none, such as an address, a path, or an id twice."""
    half = given[: len(given) // 2]
    twice = [half] if half * 2 == given else []
    return twice + re.findall(rf"[A-Za-z0-9_-]{{{LEAST_PART},{LONGEST}}}", given)[:10]


def forms(given: str) -> list[str]:
    """List how programs write a UUID: with dashes, in .NET's order of bytes, and in base64."""
    try:
        raw = urlsafe_b64decode(f"{given}==") if len(given) == 22 else UUID(given).bytes
    except ValueError:
        return []
    if len(raw) != 16:
        return []
    uuids = [UUID(bytes=raw), UUID(bytes_le=raw)]
    return [
        written
        for each in uuids
        for written in (str(each), urlsafe_b64encode(each.bytes).decode().rstrip("="))
    ]


def difference(given: str, other: str) -> str | None:
    """Say what makes an id of the given one, after "this id"; None: they are not alike."""
    one = bare(given)
    if one == other:
        return BLANKS if one != given else None
    if other in forms(one) and fold(one) != fold(other):
        return SAME_UUID
    return _mix_up(one, other) or _one_edit(one, other) or _part(one, other) or _moved(one, other)


def alike(given: str, others: Iterable[str]) -> dict[str, str]:
    """Choose the ids that are like the given one, the nearest first, each with its difference."""
    found = {each: how for each in others if (how := difference(given, each))}
    rank = {how: n for n, how in enumerate(NEAREST_FIRST)}
    return dict(sorted(found.items(), key=lambda item: (rank.get(item[1], len(rank)), item[0])))


def _mix_up(one: str, other: str) -> str | None:
    if one.lower() == other.lower():
        return CASE
    if not fold(one) or fold(one) != fold(other):
        return None
    return DASHES if _said(one) == _said(other) else LETTERS


def _one_edit(one: str, other: str) -> str | None:
    """Say which insertion, deletion, change or swap of neighbours makes one the other."""
    if len(one) > len(other):
        one, other = other, one
    if len(other) - len(one) > 1 or len(one) < LEAST_PART:
        return None
    at = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
    if len(one) < len(other):
        return ONE_EDIT if one[at:] == other[at + 1 :] else None
    if one[at : at + 2] == other[at : at + 2][::-1] and one[at + 2 :] == other[at + 2 :]:
        return SWAPPED
    return ONE_EDIT if one[at + 1 :] == other[at + 1 :] else None


def _moved(one: str, other: str) -> str | None:
    a, b = fold(one), fold(other)
    if min(len(a), len(b)) < LONG:
        return None
    if a.replace("0", "") == b.replace("0", ""):
        return ZEROS
    return TURNED if len(a) == len(b) and a in b * 2 else None


def _part(one: str, other: str) -> str | None:
    if len(one) >= LEAST_PART and (other.startswith(one) or other.endswith(one)):
        return "with more before or after it"
    return "without what stands around it" if other in parts(one) else None
