"""The jail for code that a model wrote: what it stops, and what it lets by."""

import os
import time
from pathlib import Path

import pytest

from aludel.errors import UserError
from aludel.train.probes import Limits, evaluate_code, obstacle, sandbox

jailed = pytest.mark.skipif(obstacle() is not None, reason=str(obstacle()))


def test_elsewhere_it_refuses_in_one_line(monkeypatch):
    sandbox.obstacle.cache_clear()
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    try:
        with pytest.raises(UserError, match="only run on Linux") as caught:
            evaluate_code("", ["1"])
        assert "\n" not in str(caught.value)
    finally:
        sandbox.obstacle.cache_clear()


def test_where_it_cannot_be_shut_in_it_is_not_run(monkeypatch, tmp_path):
    """No Landlock: the script refuses before the code."""
    broken = tmp_path / "jail.py"
    source = Path(sandbox.jail.__file__).read_text()
    broken.write_text(
        source.replace(
            "CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444",
            "CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 9444",
        )
    )
    monkeypatch.setattr(sandbox.jail, "__file__", str(broken))
    sandbox.obstacle.cache_clear()
    try:
        with pytest.raises(UserError, match="cannot be shut in on this machine"):
            evaluate_code("", ["1"])
    finally:
        sandbox.obstacle.cache_clear()


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


@jailed
def test_an_endless_loop_ends():
    begin = time.monotonic()
    (found,) = evaluate_code("def f():\n    while True: pass\n", ["f()"], Limits(seconds=1.0))
    assert "longer than 1 seconds" in found.error and time.monotonic() - begin < 10


@jailed
def test_sleep_ends_too():
    (found,) = evaluate_code("import time", ["time.sleep(100)"], Limits(seconds=1.0))
    assert "longer than" in found.error


@jailed
def test_a_fork_bomb_starts_nothing():
    bomb = "import os\ndef f():\n    while True: os.fork()\n"
    (found,) = evaluate_code(bomb, ["f()"])
    assert found.error.startswith("BlockingIOError")
    (found,) = evaluate_code("import threading", ["threading.Thread(target=print).start()"])
    assert "can't start new thread" in found.error


@jailed
def test_a_memory_hog_gets_no_more():
    (found,) = evaluate_code("", ["len(bytearray(1 << 31))"])
    assert found.error == "MemoryError"


@jailed
def test_files_outside_are_shut(tmp_path):
    """Whoever owns them."""
    tmp_path.chmod(0o777)  # what may be done is not bounded by who the code runs as
    secret, victim = tmp_path / "secret", tmp_path / "victim"
    secret.write_text("hush")
    secret.chmod(0o666)
    calls = [
        f"open({str(victim)!r}, 'w').write('x')",
        f"open({str(secret)!r}, 'w').write('x')",
        f"open({str(secret)!r}).read()",
        f"__import__('os').remove({str(secret)!r})",
        f"__import__('os').truncate({str(secret)!r}, 0)",
        "open('/etc/passwd').read()",
        "open('/proc/self/status').read()",
    ]
    found = evaluate_code("", calls)
    assert all(one.error.startswith("PermissionError") for one in found), found
    assert secret.read_text() == "hush" and not victim.exists()


@jailed
def test_its_own_folder_may_be_written_in_up_to_a_size():
    code = "def f(n):\n    open('x', 'w').write('y' * n)\n    return len(open('x').read())\n"
    found = evaluate_code(code, ["f(1000)", "f(1 << 22)"], Limits(file=1 << 16))
    assert found[0].value == "1000" or found[0].error.startswith("the process ended")
    (small,) = evaluate_code(code, ["f(1000)"])
    assert small.value == "1000"
    assert found[1].error


@jailed
def test_no_network_no_other_process_no_root():
    code = (
        "import os, socket\n"
        "def connect():\n"
        "    socket.create_connection(('127.0.0.1', 80), timeout=1)\n"
    )
    calls = ["connect()", "os.getpid()", "os.kill(2, 0)", "os.setuid(0)"]
    found = evaluate_code(code, calls)
    assert found[0].error and found[1].value == "1"
    assert found[2].error.startswith("ProcessLookupError")
    if os.getuid() == 0:
        assert found[3].error.startswith("PermissionError")


@jailed
def test_what_is_written_at_length_is_cut():
    (found,) = evaluate_code("", ["'x' * 1_000_000"])
    assert len(found.value) == sandbox.jail.LONGEST


@jailed
def test_nothing_stays_behind():
    import tempfile

    before = set(Path(tempfile.gettempdir()).glob("aludel-jail-*"))
    evaluate_code("open('left', 'w').write('x')", ["1"])
    evaluate_code("while True: pass", ["1"], Limits(seconds=0.5))
    assert set(Path(tempfile.gettempdir()).glob("aludel-jail-*")) == before
