"""The addresses of the read API: the one list that routes and OpenAPI are made from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ops.web.api import models, parameters
from ops.web.api.problems import PREFIX
from ops.web.api.reader import Reader


@dataclass(frozen=True)
class Endpoint:
    """One address: what it takes, what it answers, and how that is read."""

    path: str
    name: str
    summary: str
    takes: type[parameters.Parameters]
    answers: type[models.Answer]
    read: Callable[[Reader, Any], models.Answer]  # Any: an instance of `takes`
    unknown: str | None = None  # what a 404 is about


ENDPOINTS = [
    Endpoint(
        path=f"{PREFIX}/batches",
        name="listBatches",
        summary="List batches, the newest first",
        takes=parameters.OfBatches,
        answers=models.Batches,
        read=Reader.batches,
    ),
    Endpoint(
        path=f"{PREFIX}/batches/{{batch_id}}",
        name="readBatch",
        summary="Read one batch, and why it is or is not ready",
        takes=parameters.OfBatch,
        answers=models.BatchExplained,
        read=Reader.batch,
        unknown="batch",
    ),
    Endpoint(
        path=f"{PREFIX}/batches/{{batch_id}}/essays",
        name="listBatchEssays",
        summary="List the essays of a batch, by id",
        takes=parameters.OfBatchEssays,
        answers=models.BatchEssays,
        read=Reader.batch_essays,
        unknown="batch",
    ),
    Endpoint(
        path=f"{PREFIX}/essays/{{essay_id}}",
        name="readEssay",
        summary="Read the slots with an essay id, in whatever batch",
        takes=parameters.OfEssay,
        answers=models.EssayInBatches,
        read=Reader.essay,
        unknown="essay",
    ),
    Endpoint(
        path=f"{PREFIX}/events",
        name="listEvents",
        summary="Follow all events",
        takes=parameters.OfEvents,
        answers=models.Events,
        read=Reader.events,
    ),
    Endpoint(
        path=f"{PREFIX}/messages/{{event_id}}",
        name="readMessage",
        summary="Read what became of a message",
        takes=parameters.OfMessage,
        answers=models.MessageOutcome,
        read=Reader.message,
        unknown="message",
    ),
]
