"""A real PostgreSQL for tests, in a folder of its own; no test in here."""

from __future__ import annotations

import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "postgres"


@dataclass(frozen=True)
class Cluster:
    """A throw-away server; ``script("crash")`` kills it, ``script("again")`` brings it back."""

    url: str
    folder: Path

    def script(self, word: str) -> None:
        subprocess.run([str(SCRIPT), word, str(self.folder)], check=True, capture_output=True, timeout=120)

    def new_database(self) -> str:
        """The URL of an empty data base."""
        import psycopg

        name = f"t{uuid.uuid4().hex}"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url.rpartition("/")[0] + f"/{name}"
