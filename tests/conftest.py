"""What every test stands on: one thread, fixed seeds, no network, and nobody's own settings."""

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile

import pytest

NUM_THREADS = "1"  # the networks of tests are too small to gain from a second
LOCAL_HOSTS = {"localhost", "127.0.0.1", "::1", "0.0.0.0", "::", "", None}
HUGGING_FACE_HOME = tempfile.mkdtemp(prefix="unclip-tests-")

# Set before torch and Hugging Face's libraries are imported, and inherited by the commands that
# tests run. An empty HF_HOME keeps a user's cached models and accelerate settings out.
os.environ.update(
    HF_HOME=HUGGING_FACE_HOME,
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
)
os.environ.setdefault("OMP_NUM_THREADS", NUM_THREADS)
os.environ.setdefault("MKL_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # repeatable sums, where a GPU is used


class NetworkError(RuntimeError):
    """A test tried to reach another machine."""


def refuse_network(patch: pytest.MonkeyPatch) -> None:
    """Let sockets reach this machine only; anything else raises NetworkError naming the address."""
    connect, connect_ex, getaddrinfo = (
        socket.socket.connect,
        socket.socket.connect_ex,
        socket.getaddrinfo,
    )

    def check(host: object) -> None:
        if host not in LOCAL_HOSTS:
            raise NetworkError(f"tests do not use the network, but this one asked for {host!r}")

    def local_connect(self: socket.socket, address):
        if self.family != socket.AF_UNIX:
            check(address[0])
        return connect(self, address)

    def local_connect_ex(self: socket.socket, address):
        if self.family != socket.AF_UNIX:
            check(address[0])
        return connect_ex(self, address)

    def local_getaddrinfo(host, *args, **kwargs):
        name = host.decode() if isinstance(host, bytes) else host
        check(None if name == socket.gethostname() else name)
        return getaddrinfo(host, *args, **kwargs)

    patch.setattr(socket.socket, "connect", local_connect)
    patch.setattr(socket.socket, "connect_ex", local_connect_ex)
    patch.setattr(socket, "getaddrinfo", local_getaddrinfo)


@pytest.fixture(scope="session", autouse=True)
def no_network():
    """Fail a test that reaches for the network, rather than wait for it."""
    with pytest.MonkeyPatch.context() as patch:
        refuse_network(patch)
        yield


@pytest.fixture(autouse=True)
def fixed_seeds():
    """Start each test from the same random state, whichever tests ran before it."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory) -> list[str]:
    """The words before the name of a module that run it in two processes of a CPU; seen to do so.

    accelerate's launcher starts one process there, whatever --num_processes says. The last word
    keeps torchrun from reading options of the module as short forms of its own.
    """
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = tmp_path_factory.mktemp("launch") / "rank.py"
    script.write_text("import os; open(os.environ['RANK'], 'x')")
    subprocess.run([*words, script], check=True, capture_output=True, cwd=script.parent)
    assert {path.name for path in script.parent.iterdir()} == {"rank.py", "0", "1"}
    return [*words, "-m", "--"]


def pytest_unconfigure() -> None:
    """Remove the empty Hugging Face home."""
    shutil.rmtree(HUGGING_FACE_HOME, ignore_errors=True)
