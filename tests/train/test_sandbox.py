"""The jail for code that a model wrote: what it stops, and what it lets by."""

import os
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from aludel.errors import UserError
from aludel.train.probes import Limits, evaluate_code, sandbox

from .jails import jailed

SHORT = Limits(seconds=1.0)


@pytest.fixture
def asked_anew():
    sandbox.obstacle.cache_clear()
    yield
    sandbox.obstacle.cache_clear()


def errors(calls: list[str], code: str = "import os") -> list[str]:
    """What each call raised."""
    found = evaluate_code(code, calls)
    assert all(one.error for one in found), [one for one in found if not one.error]
    return [one.error for one in found]


def test_elsewhere_it_refuses_in_one_line(monkeypatch, asked_anew):
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    with pytest.raises(UserError, match="only run on Linux") as caught:
        evaluate_code("", ["1"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "right, wrong, said",
    [
        ("= 444, 445, 446", "= 9444, 9445, 9446", "no Landlock"),
        ("FILTER_CALLS = 1, 38, 22", "FILTER_CALLS = 1, 38, 9922", "no seccomp"),
        ('"pivot_root")', '"pivot_root") if refuse("no mounts") else 0', "no mounts"),
    ],
    ids=["landlock", "seccomp", "mounts"],
)
@jailed
def test_where_it_cannot_be_shut_in_it_is_not_run(
    monkeypatch, tmp_path, asked_anew, right, wrong, said
):
    """Whatever wall cannot be had, the script refuses before the code."""
    source = Path(sandbox.jail.__file__).read_text()
    assert source.count(right) == 1
    broken = tmp_path / "jail.py"
    broken.write_text(source.replace(right, wrong))
    monkeypatch.setattr(sandbox.jail, "__file__", str(broken))
    with pytest.raises(UserError, match="cannot be shut in on this machine: " + said):
        evaluate_code("", ["1"])


@jailed
def test_values_and_errors():
    code = "import math, re\ndef f(x):\n    return math.sqrt(x)\n"
    found = evaluate_code(
        code, ["f(4)", "f(-1)", "[f(x) for x in (1, 9)]", "re.sub('a', 'b', 'a')"]
    )
    assert [one.value for one in found] == ["2.0", None, "[1.0, 3.0]", "'b'"]
    assert found[1].error.startswith("ValueError")
    assert evaluate_code("def f(:", ["f()"])[0].error.startswith("SyntaxError")
    assert evaluate_code("raise SystemExit", ["1"])[0].error == "SystemExit"
    assert evaluate_code("print('x' * 100)", ["1"])[0].value == "1"


@pytest.fixture
def jails(tmp_path, monkeypatch) -> Path:
    """Where this test's jails have their folders: other tests run theirs at the same time."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def still_there(jails: Path) -> list[str]:
    """Processes of jails below a folder."""
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    return [line for line in found.splitlines() if str(jails) in line and "jail.py" in line]


@jailed
@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(100)",
        "import ctypes, time; ctypes.CDLL(None).prctl(1, 0, 0, 0, 0); time.sleep(100)",
        "import os, signal\nsignal.signal(15, signal.SIG_IGN)\nos.kill(0, 19)\nwhile True: pass",
        "import os, time\nfor n in range(3, 20):\n"
        "    try: os.write(n, b'x' * (5 << 20))\n"
        "    except OSError: pass\n"
        "time.sleep(100)",
    ],
    ids=["loop", "sleep", "no death signal", "stopped", "flood"],
)
def test_what_does_not_end_is_ended(code, jails):
    begin = time.monotonic()
    (found,) = evaluate_code(code, ["1"], SHORT)
    assert found.error and time.monotonic() - begin < 10
    end = time.monotonic() + 5
    while still_there(jails) and time.monotonic() < end:
        time.sleep(0.05)
    assert not still_there(jails)


@jailed
def test_a_fork_bomb_starts_nothing():
    bomb = "import os\ndef f():\n    while True: os.fork()\n"
    (found,) = evaluate_code(bomb, ["f()"])
    assert found.error.startswith("BlockingIOError")
    assert (
        "can't start new thread"
        in errors(["threading.Thread(target=print).start()"], "import threading")[0]
    )


@jailed
def test_memory_and_disk_have_an_end():
    assert errors(["len(bytearray(1 << 31))"]) == ["MemoryError"]
    fill = "def f():\n    for n in range(1000): open(f'f{n}', 'w').write('y' * (1 << 16))\n"
    assert "No space left" in errors(["f()"], fill)[0]
    assert "File too large" in errors(["open('x', 'w').write('y' * (1 << 23))"])[0]
    shared = "import ctypes; libc = ctypes.CDLL(None, use_errno=True)"
    (found,) = evaluate_code(shared, ["libc.shmget(0, 1 << 20, 0o1600)"])
    assert found.value == "-1"


@jailed
def test_files_outside_are_not_there_and_python_is_not_to_be_written(tmp_path):
    """Whoever owns them."""
    tmp_path.chmod(0o777)
    secret, victim = tmp_path / "secret", tmp_path / "victim"
    secret.write_text("hush")
    secret.chmod(0o666)
    before = secret.stat()
    library = Path(os.__file__)
    calls = [
        f"open({str(victim)!r}, 'w').write('x')",
        *(f"{what}({str(secret)!r})" for what in ("open", "os.remove", "os.stat", "os.utime")),
        f"os.truncate({str(secret)!r}, 0)",
        f"os.chmod({str(secret)!r}, 0)",
        "open('/etc/passwd').read()",
        "open('/proc/self/status').read()",
        f"os.chmod({str(library)!r}, 0)",
        f"open({str(library)!r}, 'a')",
        f"os.utime({str(library)!r})",
    ]
    errors(calls)
    assert secret.read_text() == "hush" and not victim.exists()
    assert (secret.stat().st_mode, secret.stat().st_mtime) == (before.st_mode, before.st_mtime)


@jailed
def test_its_own_folder_may_be_written_in():
    code = "def f(n):\n    open('x', 'w').write('y' * n)\n    return len(open('x').read())\n"
    (small,) = evaluate_code(code, ["f(1000)"])
    assert small.value == "1000"


@jailed
def test_no_network_no_socket_no_other_process_no_root(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        connect = f"socket.create_connection(('127.0.0.1', {port}), timeout=1)"
        refused, unix = errors([connect, "socket.socket(socket.AF_UNIX)"], "import socket")
    assert "PermissionError" in refused and "PermissionError" in unix
    code = "import os"
    assert [one.value for one in evaluate_code(code, ["os.getpid()", "os.getppid()"])] == ["2", "1"]
    dead, root = errors([f"os.kill({os.getpid()}, 0)", "os.setuid(0)"])
    assert dead.startswith("ProcessLookupError") and root.startswith("PermissionError")
    # The first process inside takes no signal of the code's.
    assert evaluate_code(code, ["os.kill(1, 9)", "40 + 2"])[1].value == "42"


@jailed
@pytest.mark.parametrize(
    "code",
    [
        "import os\nos._exit(3)",
        "import os\nfor n in range(3, 20):\n"
        "    try: os.write(n, b'[' * 50000)\n"
        "    except OSError: pass\n",
    ],
    ids=["exit", "nested"],
)
def test_what_spoils_its_own_answer_gives_an_error(code):
    (found,) = evaluate_code(code, ["1"])
    assert found == (None, "the process ended on its way")


@jailed
def test_what_is_written_at_length_is_cut():
    (found,) = evaluate_code("", ["'x' * 1_000_000"])
    assert len(found.value) == sandbox.jail.LONGEST
    many = evaluate_code("", ["'\\U0001F600' * 1_000_000"] * 20)
    assert len(many) == 20 and all(len(one.value) == sandbox.jail.LONGEST for one in many)


@jailed
def test_nothing_stays_behind(jails):
    deep = "import os\nfor n in range(2000):\n    os.mkdir('d'); os.chdir('d')\n"
    for code in (deep, "import os; os.mkdir('d'); os.chmod('d', 0)", "while True: pass"):
        evaluate_code(code, ["1"], SHORT)
    assert not list(jails.iterdir())
