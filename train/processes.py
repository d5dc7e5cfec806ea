"""Several processes, one for each host or each GPU, that train one run together.

JAX connects them: process 0 keeps the coordination service, through which the small things here
are told, without any device. Every process runs the same program, so what one of them alone
decides (whether there is a checkpoint, say) is told to all.
"""

import functools
import itertools
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax._src import distributed  # its client has no public name; Orbax takes it from here as well
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..errors import MISTAKE, UserError

VARIABLES = {
    "coordinator": "ALUDEL_COORDINATOR",
    "processes": "ALUDEL_PROCESSES",
    "process": "ALUDEL_PROCESS",
}
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
START_SECONDS = 300.0  # that processes wait for each other at the start
MEET_SECONDS = 24 * 3600  # and at the end: one that dies on its way there is noticed before
ASK_SECONDS = 10  # at a time, while what process 0 is to tell is waited for
JAX_LOST_SECONDS = 120  # after which JAX's own watch ends the job, should ours have failed
# Behind a status and before any path: a run's folder may be called anything.
COLLECTIVE = re.compile(r"\b[A-Z_]+: [^/]*(?i:gloo|nccl|all-?reduce|all-?gather|collective)")

_asked = itertools.count()


@dataclass(frozen=True)
class Place:
    """A process among several."""

    coordinator: str
    """HOST:PORT of process 0, where it listens."""
    processes: int
    process: int
    """From 0."""


def place_of(given: Mapping[str, str | None], environment: Mapping[str, str]) -> Place | None:
    """The place that flags (`coordinator`, `processes`, `process`) or the environment's variables
    name; None where they name nothing. Raises UserError for half of it, and for nonsense."""
    values = {
        name: given.get(name) or environment.get(variable) or ""
        for name, variable in VARIABLES.items()
    }
    if values["processes"] == "1" and not (values["coordinator"] or values["process"]):
        return Place("", 1, 0)
    missing = [f"--{name} ({VARIABLES[name]})" for name, value in values.items() if not value]
    if len(missing) == len(values):
        return None
    if missing:
        raise UserError(f"of several processes each needs all of its place: give {missing[0]} too")
    host, _, port = values["coordinator"].rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"--coordinator must be HOST:PORT, not {values['coordinator']!r}")
    for name in ("processes", "process"):
        if not values[name].isdecimal():
            raise UserError(f"--{name} must be a whole number, not {values[name]!r}")
    processes, process = int(values["processes"]), int(values["process"])
    if process >= processes:
        raise UserError(
            f"--process {process} is not among {processes} processes: they count from 0 to "
            f"{processes - 1}"
            if processes
            else "--processes must be at least 1, not 0"
        )
    return Place(values["coordinator"], processes, process)


def clustered(environment: Mapping[str, str], tpu: bool) -> bool:
    """Whether JAX can find the other processes in the environment: those of a SLURM step, or the
    hosts of a TPU slice. tpu: whether this machine has one."""
    if all(name in environment for name in SLURM):
        return int(environment["SLURM_NTASKS"]) > 1
    if not tpu:
        return False
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if hosts is not None:  # GKE
        return "," in hosts or int(environment.get("MEGASCALE_NUM_SLICES") or 1) > 1
    return "TPU_SKIP_MDS_QUERY" not in environment  # a TPU VM, whose metadata JAX asks


def start(place: Place | None, tpu: bool = False) -> bool:
    """Connect with the other processes; whether there are any. To be called before anything asks
    for a device. Raises UserError where JAX finds no others; where these do not come within
    START_SECONDS, the process ends with a line that says so."""
    if place.processes == 1 if place else not clustered(os.environ, tpu):
        return False
    # SIGTERM is handled in `loop.Signals`, for all processes together.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # of CPUs only
    about: dict[str, Any] = {}
    if place:
        about = {
            "coordinator_address": place.coordinator,
            "num_processes": place.processes,
            "process_id": place.process,
            "cluster_detection_method": "deactivate",  # else SLURM's would hide all but one GPU
        }
    late = threading.Timer(START_SECONDS, _missed, [place])
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            **about,
            initialization_timeout=int(2 * START_SECONDS),  # it would end in a trace
            heartbeat_timeout_seconds=JAX_LOST_SECONDS,
        )
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"the processes cannot be connected: {reason}; name them with --coordinator, "
            "--processes and --process, or let it be one, --processes 1"
        ) from None
    finally:
        late.cancel()
    return count() > 1


def _missed(place: Place | None) -> NoReturn:
    """Ends this process, whose main thread waits within JAX."""
    own = (
        f"process {place.process} of {place.processes}, {place.coordinator}" if place else "a host"
    )
    print(
        f"aludel: {own}: the others did not all come within {START_SECONDS:.0f} seconds; start "
        "every process with the same --coordinator, where process 0 can be reached, or one alone "
        "with --processes 1",
        file=sys.stderr,
        flush=True,
    )
    os._exit(MISTAKE)


def stop() -> None:
    """Disconnect; all processes do."""
    jax.distributed.shutdown()


def meet(where: str) -> None:
    """Wait until all processes have come here, where each comes once."""
    if count() > 1:
        client().wait_at_barrier(f"aludel/meet/{where}", MEET_SECONDS * 1000)


def count() -> int:
    """How many processes there are; asks for no device."""
    return distributed.global_state.num_processes if distributed.global_state.client else 1


def number() -> int:
    """This process's, from 0."""
    return distributed.global_state.process_id if distributed.global_state.client else 0


def first() -> bool:
    """Whether this is the process that writes and speaks for all."""
    return number() == 0


def name() -> str:
    """This process, for people."""
    return f"process {number()} ({socket.gethostname()})"


def coordinator() -> str:
    """HOST:PORT of process 0."""
    return distributed.global_state.coordinator_address or ""


def client() -> Any:
    """JAX's connection with the coordination service."""
    return distributed.global_state.client


def told(value: Any) -> Any:
    """What process 0 has for `value`, a JSON value, in every process; all call this at the same
    place. The others wait for process 0, it does not wait for them."""
    if count() == 1:
        return value
    key = f"aludel/told/{next(_asked)}"
    if first():
        client().key_value_set(key, json.dumps(value))
        return value
    return json.loads(_waited(key))


def everyones(value: Any) -> list | None:
    """In process 0 the JSON values of all processes, by their number; None in the others. All call
    this at the same place."""
    if count() == 1:
        return [value]
    key = f"aludel/everyones/{next(_asked)}"
    if not first():
        client().key_value_set(f"{key}/{number()}", json.dumps(value))
        return None
    own = json.loads(json.dumps(value))  # as the others' comes: no tuples
    return [own, *(json.loads(_waited(f"{key}/{other}")) for other in range(1, count()))]


def _waited(key: str) -> str:
    """A value that another process is to give. That it gives none at all is noticed elsewhere:
    by the watch, which ends this process."""
    while True:
        try:
            return client().blocking_key_value_get(key, ASK_SECONDS * 1000)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def may_be_the_death_of_another(error: BaseException) -> bool:
    """Whether an error may be that of a collective which another process has left. Outside jit, in
    checkpoints as well, JAX makes a ValueError of it."""
    told = str(error)
    if isinstance(error, jax.errors.JaxRuntimeError):
        return "RESOURCE_EXHAUSTED" not in told
    return isinstance(error, ValueError) and COLLECTIVE.search(told) is not None


def vote(yes: bool) -> Array:
    """bool[], the same in every process: whether any of them says yes. Dispatched, not waited
    for; all call this at the same place."""
    sharding, anyone = _voting()
    return anyone(
        jax.make_array_from_callback((jax.device_count(),), sharding, lambda _: np.array([yes]))
    )


@functools.cache
def _voting() -> tuple[NamedSharding, Callable[[Array], Array]]:
    mesh = Mesh(np.asarray(jax.devices()), ("device",))
    whole = NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, PartitionSpec("device")), jax.jit(jnp.any, out_shardings=whole)


def from_first(make: Callable[[], np.ndarray], size: int) -> np.ndarray:
    """float32 [size]: what `make` gives in process 0, which alone calls it. A UserError of it is
    raised in all."""
    if count() == 1:
        return make()
    values, failed = np.zeros(size + 1, np.float32), None
    if first():
        try:
            values[:-1] = make()
        except UserError as error:
            failed, values[-1] = error, 1.0
    values = multihost_utils.broadcast_one_to_all(values)
    if failed is not None:
        raise failed
    if values[-1]:
        raise UserError("process 0 failed in what it does for all: its own line says why")
    return np.asarray(values[:-1])
