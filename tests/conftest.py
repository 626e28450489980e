"""Settings of the whole suite: every run draws the same, a busy machine is not a failure, nor is a deaf shell.

What a trained model says depends on noise from the operating system. Here each test and each fixture has secret keys
that follow from its name, so a test that passed today passes tomorrow, on its own and in any order. `pytest --anew`
draws others, and so does every process that a test starts.
"""

import hashlib
import itertools
import signal
import subprocess
import tempfile
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings
from servers import SCRIPT, Cluster

from dpvae.privacy.noise import SecretKey

settings.register_profile("dpvae", deadline=None, print_blob=True, derandomize=True)
settings.register_profile("anew", deadline=None, print_blob=True)


class Keys:
    """What `SecretKey.generate` gives: the keys of a name, one after the other."""

    def __init__(self) -> None:
        self.name, self.numbers = "", itertools.count()

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """The keys of ``name`` from its first; afterwards those of before go on where they were."""
        before = self.name, self.numbers
        self.name, self.numbers = name, itertools.count()
        try:
            yield
        finally:
            self.name, self.numbers = before

    def draw(self) -> SecretKey:
        return SecretKey.from_bytes(hashlib.sha256(f"{self.name}, {next(self.numbers)}".encode()).digest())


KEYS, REAL = Keys(), SecretKey.__dict__["generate"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--anew", action="store_true", help="secret keys and hypothesis' examples that no run has seen")


def pytest_configure(config: pytest.Config) -> None:
    anew = config.getoption("--anew")
    settings.load_profile("anew" if anew else "dpvae")
    if not anew:
        patch = pytest.MonkeyPatch()
        patch.setattr(SecretKey, "generate", KEYS.draw)
        config.add_cleanup(patch.undo)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
                         ) -> Generator[None, object, object]:
    with KEYS.of(f"{request.node.nodeid} {fixturedef.argname} {getattr(request, 'param_index', '')}"):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    with KEYS.of(item.nodeid):
        return (yield)


@pytest.fixture
def real_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys from the operating system, as outside the tests."""
    monkeypatch.setattr(SecretKey, "generate", REAL)


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
