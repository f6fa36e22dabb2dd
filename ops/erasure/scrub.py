"""Who is erased, and what becomes of a value that names the person: `erased` stands instead."""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from uuid import uuid4

MARKER = "erased"
KINDS = {"user": {"user_id", "validated_by"}, "student": {"student_id"}}
# What goes with the person where these stand side by side: a batch of the user, a student's file.
WITH_PERSON = {"user": {"metadata"}, "student": {"original_file_name"}}
PEOPLE = frozenset().union(*KINDS.values())
# Ids of things, which others know: the service needs them, and the manifest is made of them.
KEPT = frozenset(
    {
        *("batch_id", "essay_id", "text_storage_id", "file_upload_id", "raw_file_storage_id"),
        *("essay_file_id", "event_id", "correlation_id", "manifest_sha256", "content_md5_hash"),
        *("class_id", "org_id", "type", "generation", "status", "current_status", "task", "code"),
        *("rule", "kind", "traceparent", "replay_task_id", "on_deadline", "outcome", "sqlstate"),
    }
)
IS_ID = re.compile(r"[A-Za-z0-9_-]+")
JsonAny = Any  # a JSON value


@dataclass(frozen=True)
class Person:
    """Whom to erase: the id of a user (a teacher) or of a student."""

    kind: Literal["user", "student"]
    id: str

    @property
    def forms(self) -> list[str]:
        """How the id may be written in text or JSON, ASCII in lower case as Postgres has it."""
        quoted = {json.dumps(self.id)[1:-1], json.dumps(self.id, ensure_ascii=False)[1:-1]}
        return sorted({_lower(each) for each in {self.id, *quoted}})

    @property
    def word(self) -> re.Pattern[str]:
        """The id as a word of its own: `user-1` is in `user-1.docx`, and not in `user-10`."""
        return re.compile(rf"(?<![^\W_]){re.escape(self.id)}(?![^\W_])")

    def within(self, text: str) -> bool:
        """Tell whether a text, or JSON as text, names the person."""
        forms = "|".join(map(re.escape, self.forms))
        return bool(re.search(rf"(?<![^\W_])(?:{forms})(?![^\W_])", _lower(text)))


class Scrub:
    """Writes the marker over a person in a row or a JSON value."""

    def __init__(self, person: Person, contents: Mapping[str, set[str]]) -> None:
        """`contents` has the student's texts and essays, by batch."""
        self.person, self.contents = person, contents
        self.own, self.private = KINDS[person.kind], WITH_PERSON[person.kind]

    def value(self, value: JsonAny, name: str = "", batch_id: str = "") -> JsonAny:
        match value:
            case dict():
                return self._mapping(value, batch_id)
            case list():
                return [self.value(each, name, batch_id) for each in value]
            case str() if name in self.own:
                return MARKER if value == self.person.id else value
            case str() if name in KEPT or name in PEOPLE:
                return value
            case str():
                return self._text(value, name)
        return value

    def _mapping(self, value: Mapping[str, JsonAny], batch_id: str) -> dict[str, JsonAny]:
        batch_id = str(value.get("batch_id") or batch_id)
        encoded = value.get("base64") or value.get("beginning_base64")
        if encoded and self._is_in_bytes(encoded):
            return {MARKER: True}
        mine = any(value.get(name) == self.person.id for name in self.own) or bool(
            self.contents.get(batch_id, set())
            & {str(value.get(name)) for name in ("text_storage_id", "essay_id", "file_upload_id")}
        )
        return {
            self._text(name, ""): self._private(each)
            if mine and name in self.private
            else self.value(each, name, batch_id)
            for name, each in value.items()
        }

    def _private(self, value: JsonAny) -> JsonAny:
        return None if value is None else {} if isinstance(value, dict) else MARKER

    def _text(self, text: str, name: str) -> str:
        if text == self.person.id:
            return f"{MARKER} {uuid4()}" if name == "task_id" else MARKER
        if IS_ID.fullmatch(text) and name != "original_file_name":
            return text  # another id, which only looks alike
        return self.person.word.sub(MARKER, text)

    def _is_in_bytes(self, encoded: object) -> bool:
        try:
            raw = base64.b64decode(str(encoded))
        except (binascii.Error, ValueError):
            return False
        return self.person.within(raw.decode("utf-8", "replace"))


def _lower(text: str) -> str:
    """Write ASCII letters in lower case, and no others: `\\u00E5` is `\\u00e5`."""
    return text.encode("utf-8", "surrogatepass").lower().decode("utf-8", "surrogatepass")
