"""Settings of the whole suite: a busy machine is not a failure, and neither is a shell that ignores Ctrl-C."""

import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from servers import SCRIPT, Cluster

settings.register_profile("dpvae", deadline=None, print_blob=True)
settings.load_profile("dpvae")

# A job in the background of a script starts with Ctrl-C ignored, and so would every process that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A real PostgreSQL, started on first use; skips where there is none: scripts/postgres install adds one."""
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
