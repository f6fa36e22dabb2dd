"""The schema's history, and the one way to bring a database to head."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

HERE = Path(__file__).parent


def config(url: str) -> Config:
    """Configure Alembic for a database; every `postgresql://` form means psycopg 3."""
    configured = Config()
    configured.set_main_option("script_location", str(HERE).replace("%", "%%"))
    configured.attributes["url"] = make_url(url).set(drivername="postgresql+psycopg")
    return configured


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the schema of a database to a revision. Safe to run twice, and at once."""
    configured = config(url)
    engine = create_engine(configured.attributes["url"], poolclass=NullPool)
    with engine.connect() as connection:
        configured.attributes["connection"] = connection
        command.upgrade(configured, revision)
