"""Celery the plain way: a chord a batch, SQLAlchemy's ORM, results kept, settings as they come."""

from collections.abc import Sequence
from uuid import UUID

from celery import Celery, chord
from sqlalchemy import create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from bench.peers.job import DATABASE_URL, REDIS_URL, Content, uploads

app = Celery("celery_orm", broker=REDIS_URL, backend=REDIS_URL)
app.conf.task_default_queue = "peers"
engine = create_engine(
    DATABASE_URL.replace("postgresql://", "postgresql+psycopg://") or "sqlite://"
)

SCHEMA = {"schema": "peers"}


class Base(DeclarativeBase):
    """The tables of the job."""


class Seen(Base):
    """An event that was acted upon."""

    __tablename__ = "seen"
    __table_args__ = SCHEMA
    event_id: Mapped[UUID] = mapped_column(primary_key=True)
    batch_id: Mapped[str]


class Slot(Base):
    """One expected essay."""

    __tablename__ = "slots"
    __table_args__ = SCHEMA
    batch_id: Mapped[str] = mapped_column(primary_key=True)
    essay_id: Mapped[str] = mapped_column(primary_key=True)
    text_storage_id: Mapped[str | None]
    file_name: Mapped[str | None]


class Ready(Base):
    """A readiness event."""

    __tablename__ = "ready"
    __table_args__ = SCHEMA
    batch_id: Mapped[str] = mapped_column(primary_key=True)


@app.task
def assign(content: Content) -> str | None:
    """Give a content a slot; return which."""
    with Session(engine) as session, session.begin():
        if session.get(Seen, UUID(content["event_id"])):
            return None
        session.add(Seen(event_id=UUID(content["event_id"]), batch_id=content["batch_id"]))
        slot = session.scalars(
            select(Slot)
            .where(Slot.batch_id == content["batch_id"], Slot.text_storage_id.is_(None))
            .limit(1)
            .with_for_update(skip_locked=True)
        ).one()
        slot.text_storage_id = content["text_storage_id"]
        slot.file_name = content["file_name"]
        return slot.essay_id


@app.task
def announce(essay_ids: Sequence[str], batch_id: str) -> None:
    """Say that a batch is ready."""
    with Session(engine) as session, session.begin():
        session.add(Ready(batch_id=batch_id))


def enqueue() -> None:
    """Enqueue the contents of every batch."""
    for upload_id, contents in uploads():
        chord([assign.s(content) for content in contents], announce.s(upload_id)).delay()
