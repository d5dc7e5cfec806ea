"""What runs a model's code, shut in: a script for a process of its own, which needs nothing but
Python and Linux. `sandbox` starts it and reads what comes of it.

Its one argument is JSON: `scratch`, the folder that may be written in; `readable`, the folders that
may be read; `seconds`, `memory`, `file` (bytes), `result` (the descriptor that the answer goes to).
stdin is JSON as well: `code`, and `calls`, expressions to be evaluated after it. What keeps a
process from being shut in ends it with status 3 and a line on stderr, before any code is run.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import traceback

NOBODY = 65534
NEW_PIDS, NEW_NETWORK, NEW_IPC, NEW_USER = 0x20000000, 0x40000000, 0x08000000, 0x10000000
NO_NEW_PRIVILEGES, KEEP_CAPABILITIES, PARENT_DEATH_SIGNAL = 38, 8, 1  # of prctl
CAPABILITIES_VERSION, MAY_READ = 0x20080522, 1 << 2  # CAP_DAC_READ_SEARCH
# Landlock's system calls have the same numbers on every architecture (Linux 5.13).
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
EXECUTE, READ_FILE, READ_FOLDER = 1 << 0, 1 << 2, 1 << 3
RIGHTS = {1: 13, 2: 14, 3: 15}  # of a file, how many there are at each version; 5 adds one more
REFUSED = 3
LONGEST = 10_000  # characters of one result

libc = ctypes.CDLL(None, use_errno=True)


class Ruleset(ctypes.Structure):
    """landlock_ruleset_attr, as far as every version has it."""

    _fields_ = (("handled", ctypes.c_uint64),)


class Beneath(ctypes.Structure):
    """landlock_path_beneath_attr."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def checked(found: int, what: str) -> int:
    """The result of a system call; where it failed, the end."""
    if found < 0:
        refuse(f"{what}: {os.strerror(ctypes.get_errno())}")
    return found


def refuse(why: str) -> None:
    """Ends the process before any code is run."""
    print(why, file=sys.stderr, flush=True)
    os._exit(REFUSED)


def leave_the_others() -> None:
    """New namespaces: no other process, no network. As root the rights that it takes are root's
    own, and are given up afterwards; as anybody else they come with a user namespace."""
    apart = NEW_PIDS | NEW_NETWORK | NEW_IPC
    if os.getuid() == 0:
        checked(libc.unshare(apart), "no namespaces of processes and network")
    else:
        checked(libc.unshare(NEW_USER | apart), "no user namespaces")


def become_nobody() -> None:
    """Root gives up being root, whose processes no limit counts. Of its rights it keeps that to
    read, which `shut_files` bounds: Python itself may lie in a folder of root's."""
    if os.getuid() == 0:
        checked(libc.prctl(KEEP_CAPABILITIES, 1, 0, 0, 0), "prctl")
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        header = (ctypes.c_uint32 * 2)(CAPABILITIES_VERSION, 0)
        kept = (ctypes.c_uint32 * 6)(MAY_READ, MAY_READ, 0, 0, 0, 0)
        checked(libc.capset(header, kept), "capset")
    checked(libc.prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0), "prctl")
    checked(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0), "prctl")


def shut_files(scratch: str, readable: list[str]) -> None:
    """Only `scratch` may be written in, only it and `readable` be read."""
    version = checked(libc.syscall(CREATE_RULESET, None, 0, 1), "no Landlock")
    every = (1 << RIGHTS.get(version, 15)) - 1
    every |= 1 << 15 if version >= 5 else 0
    rules = Ruleset(every)
    ruleset = checked(
        libc.syscall(CREATE_RULESET, ctypes.byref(rules), ctypes.sizeof(rules), 0), "no Landlock"
    )
    for path, allowed in [(scratch, every), *((one, READ_FILE | READ_FOLDER) for one in readable)]:
        if not os.path.isdir(path):
            continue
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = Beneath(allowed & ~EXECUTE, folder)
        checked(libc.syscall(ADD_RULE, ruleset, 1, ctypes.byref(rule), 0), "no Landlock")
        os.close(folder)
    checked(libc.syscall(RESTRICT_SELF, ruleset, 0), "no Landlock")
    os.close(ruleset)


def limit(seconds: float, memory: int, file: int) -> None:
    """Processor time, memory, the size of a file, open files, and no process more."""
    whole = int(seconds) + 1
    for kind, most in (
        (resource.RLIMIT_CPU, whole),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, file),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(kind, (most, most))


def results(code: str, calls: list[str]) -> list[dict]:
    """Of each call `value`, the repr of what it gives, or `error`; the same error for all where the
    code itself cannot be run."""
    space: dict = {"__name__": "answer"}
    try:
        exec(compile(code, "answer", "exec"), space)
    except BaseException as error:
        return [{"error": said(error)} for _ in calls]
    out = []
    for call in calls:
        try:
            out.append({"value": repr(eval(call, space))[:LONGEST]})
        except BaseException as error:
            out.append({"error": said(error)})
    return out


def said(error: BaseException) -> str:
    """The last line of a traceback."""
    return traceback.format_exception_only(error)[-1].strip()[:LONGEST]


def main() -> None:
    told = json.loads(sys.argv[1])
    asked = json.loads(sys.stdin.buffer.read())
    leave_the_others()
    first = os.fork()  # the first process of the namespace: when it ends, all in it do
    if first:
        _, status = os.waitpid(first, 0)
        sys.exit(os.waitstatus_to_exitcode(status) % 256)
    become_nobody()
    os.chdir(told["scratch"])
    nothing = os.open(os.devnull, os.O_RDWR)
    shut_files(told["scratch"], told["readable"])
    limit(told["seconds"], told["memory"], told["file"])
    for descriptor in (0, 1):
        os.dup2(nothing, descriptor)
    found = json.dumps(results(asked["code"], asked["calls"])).encode()
    while found:
        found = found[os.write(told["result"], found) :]
    os._exit(0)


if __name__ == "__main__":
    main()
