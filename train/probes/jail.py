"""What runs a model's code, shut in: a script for a process of its own, which needs nothing but
Python and Linux. `sandbox` starts it and reads what comes of it.

Three processes: this one makes new namespaces and waits; the first process inside builds a file
system that holds Python and an empty folder, gives up every right, and ends all at the deadline;
the second runs the code. With the first, whatever the code has started ends.

Its one argument is JSON: `root`, an empty folder; `readable`, the folders that may be read;
`seconds`, `memory` and `disk` (bytes), `result`, the descriptor that a READY byte and then the
answer go to. stdin is JSON as well: `code`, and `calls`, expressions to be evaluated after it. What
keeps the code from being shut in ends the process with status REFUSED and a line on stderr, before
READY, and before any code is run.
"""

import ctypes
import json
import os
import platform
import resource
import select
import signal
import struct
import sys
import traceback

NOBODY = 65534
READY, REFUSED = b"R", 3
STARTING = 20.0  # seconds for all that comes before the code
LONGEST = 10_000  # characters of one result
SCRATCH = "/scratch"  # no folder that Python could lie in

# Constants of Linux, alike on every architecture.
NEW_MOUNTS, NEW_NAME, NEW_IPC, NEW_USER = 0x00020000, 0x04000000, 0x08000000, 0x10000000
NEW_PIDS, NEW_NETWORK = 0x20000000, 0x40000000
READ_ONLY, NO_SETUID, NO_DEVICES, REMOUNT, BIND = 1, 2, 4, 32, 4096
RECURSIVE, PRIVATE, DETACH = 16384, 1 << 18, 2
PARENT_DEATH_SIGNAL, NO_NEW_PRIVILEGES, FILTER_CALLS = 1, 38, 22  # of prctl
CAPABILITIES_VERSION = 0x20080522
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # Landlock's calls (Linux 5.13)
READ_FILE, READ_FOLDER = 1 << 2, 1 << 3
RIGHTS = {1: 13, 2: 14}  # of a file at each version of Landlock; later ones 15, from 5 on one more

# Calls that a function of one line never needs, and that reach out of the namespaces, or take
# memory that no limit counts: sockets, shared memory, rings, tracing, mounts, keys.
FORBIDDEN = {
    "x86_64": (0xC000003E, 155, (41, 29, 425, 101, 165, 166, 272, 308, 248, 250, 298, 304, 321)),
    "aarch64": (0xC00000B7, 41, (198, 194, 425, 117, 40, 39, 97, 268, 217, 219, 241, 265, 280)),
}
"""By machine: its number for audits, pivot_root, and of socket, shmget, io_uring_setup, ptrace,
mount, umount2, unshare, setns, add_key, keyctl, perf_event_open, open_by_handle_at, bpf."""

libc = ctypes.CDLL(None, use_errno=True)


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
    """New namespaces: no other process, no network, no mount that others see. As root the rights
    that it takes are root's own; as anybody else they come with a user namespace."""
    apart = NEW_PIDS | NEW_NETWORK | NEW_IPC | NEW_MOUNTS | NEW_NAME
    user, group = os.getuid(), os.getgid()
    if user == 0:
        checked(libc.unshare(apart), "no namespaces")
        return
    checked(libc.unshare(NEW_USER | apart), "no user namespaces")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{NOBODY} {user} 1"),
        ("gid_map", f"{NOBODY} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """mount(2)."""
    found = libc.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode())
    checked(found, f"cannot mount {target}")


def build_files(root: str, readable: list[str], disk: int) -> None:
    """A file system in memory, of `disk` bytes, that holds `readable`, to be read only, where they
    were, and an empty folder SCRATCH; nothing else is left."""
    mount("none", "/", "", RECURSIVE | PRIVATE)
    mount("jail", root, "tmpfs", NO_SETUID | NO_DEVICES, f"size={disk},nr_inodes=4096,mode=0755")
    for path in readable:
        inside = root + path
        if os.path.islink(path):  # /lib, mostly: into /usr
            os.makedirs(os.path.dirname(inside), exist_ok=True)
            os.symlink(os.readlink(path), inside)
        elif os.path.isdir(path) and not os.path.isdir(inside):
            os.makedirs(inside)
            mount(path, inside, "", BIND | RECURSIVE)
            kept = os.statvfs(inside).f_flag & 0x40F  # what it was mounted with must stay
            mount("none", inside, "", BIND | REMOUNT | READ_ONLY | NO_SETUID | NO_DEVICES | kept)
    os.mkdir(root + SCRATCH)
    os.chmod(root + SCRATCH, 0o777)
    os.mkdir(root + "/old")
    pivot = FORBIDDEN[platform.machine()][1]
    checked(libc.syscall(pivot, root.encode(), (root + "/old").encode()), "pivot_root")
    os.chdir("/")
    checked(libc.umount2(b"/old", DETACH), "umount")
    os.rmdir("/old")
    mount("none", "/", "", REMOUNT | NO_SETUID | NO_DEVICES, f"size={disk},nr_inodes=4096")
    os.chdir(SCRATCH)


def give_up_rights() -> None:
    """As nobody, with no right that root has, and none to be had."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    header, none = (ctypes.c_uint32 * 2)(CAPABILITIES_VERSION, 0), (ctypes.c_uint32 * 6)()
    checked(libc.capset(header, none), "capset")
    checked(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0), "prctl")


def die_with_parent() -> None:
    """When the process that started this one ends, so does it."""
    checked(libc.prctl(PARENT_DEATH_SIGNAL, int(signal.SIGKILL), 0, 0, 0), "prctl")


def shut_files(readable: list[str]) -> None:
    """Landlock, behind the mounts: only SCRATCH may be written in."""
    version = checked(libc.syscall(CREATE_RULESET, None, 0, 1), "no Landlock")
    every = (1 << RIGHTS.get(version, 15)) - 1
    every |= 1 << 15 if version >= 5 else 0
    handled = struct.pack("Q", every)
    ruleset = checked(libc.syscall(CREATE_RULESET, handled, len(handled), 0), "no Landlock")
    rules = [(SCRATCH, every & ~1), *((path, READ_FILE | READ_FOLDER) for path in readable)]
    for path, allowed in rules:  # without the right to execute: bit 0
        if os.path.isdir(path):
            folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rule = struct.pack("=Qi", allowed, folder)
            checked(libc.syscall(ADD_RULE, ruleset, 1, rule, 0), "no Landlock")
            os.close(folder)
    checked(libc.syscall(RESTRICT_SELF, ruleset, 0), "no Landlock")
    os.close(ruleset)


def forbid_calls() -> None:
    """A filter of system calls (seccomp): those of FORBIDDEN give EPERM, another architecture's
    end the process."""
    audit, _, calls = FORBIDDEN[platform.machine()]
    load, equal, less, end = 0x20, 0x15, 0x35, 0x06
    program = [(load, 0, 0, 4), (equal, 1, 0, audit), (end, 0, 0, 0x80000000), (load, 0, 0, 0)]
    # x32's calls are numbered from 2^30 on: a second door to the same ones.
    program += [(less, 0, 1, 1 << 30), (end, 0, 0, 0x80000000)]
    for number in calls:
        program += [(equal, 0, 1, number), (end, 0, 0, 0x00050000 | 1)]
    program.append((end, 0, 0, 0x7FFF0000))
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    filter_of = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    checked(libc.prctl(FILTER_CALLS, 2, filter_of, 0, 0), "no seccomp")


def limit(seconds: float, memory: int, disk: int) -> None:
    """Processor time, memory, the size of a file, open files, and no process more."""
    for kind, most in (
        (resource.RLIMIT_CPU, int(seconds) + 1),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, disk),
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


def run_code(told: dict, asked: dict) -> None:
    """The second process inside."""
    os.setsid()
    nothing, standing = os.pipe()
    os.close(standing)  # reading gives the end at once
    limit(told["seconds"], told["memory"], told["disk"])
    shut_files(told["readable"])
    forbid_calls()
    os.dup2(nothing, 0)
    for descriptor in (1, 2):
        os.close(descriptor)
    os.open(SCRATCH + "/.said", os.O_WRONLY | os.O_CREAT)  # stdout and stderr: within the limits
    os.dup2(1, 2)
    os.write(told["result"], READY)
    found = json.dumps(results(asked["code"], asked["calls"])).encode()
    while found:
        found = found[os.write(told["result"], found) :]
    os._exit(0)


def oversee(told: dict, asked: dict) -> None:
    """The first process inside: when it ends, all in it do."""
    die_with_parent()
    build_files(told["root"], told["readable"], told["disk"])
    give_up_rights()
    die_with_parent()  # becoming nobody has undone it
    second = os.fork()
    if not second:
        run_code(told, asked)
    os.close(told["result"])
    ended = os.pidfd_open(second)
    select.select([ended], [], [], STARTING + told["seconds"])
    done, status = os.waitpid(second, os.WNOHANG)
    os._exit(os.waitstatus_to_exitcode(status) % 256 if done else 1)


def main() -> None:
    if platform.machine() not in FORBIDDEN:
        refuse(f"its calls cannot be filtered on {platform.machine()}")
    told, asked = json.loads(sys.argv[1]), json.loads(sys.stdin.buffer.read())
    die_with_parent()
    leave_the_others()
    first = os.fork()
    if not first:
        oversee(told, asked)
    os.close(told["result"])
    _, status = os.waitpid(first, 0)
    sys.exit(os.waitstatus_to_exitcode(status) % 256)


if __name__ == "__main__":
    main()
