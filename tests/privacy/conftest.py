"""A real PostgreSQL for the tests of the ledger, started on first use and stopped at the end."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import SCRIPT, Cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Skips, with the reason, where there is no server to start: scripts/postgres install adds one."""
    pytest.importorskip("psycopg", reason="pip install 'dpvae[postgres]'")
    folder = Path(tempfile.mkdtemp(prefix="dpvae-postgres-"))
    folder.chmod(0o755)  # its owner may be another user than the one who runs the tests
    try:
        done = subprocess.run([str(SCRIPT), "start", str(folder)], capture_output=True, text=True, timeout=180)
        if done.returncode:
            pytest.skip(f"no PostgreSQL server can be started here: {done.stderr.strip()[-200:]}")
        yield Cluster(done.stdout.strip(), folder)
    finally:
        subprocess.run([str(SCRIPT), "stop", str(folder)], capture_output=True, timeout=120)
