"""Starts Ray on this machine or connects to a running cluster, and looks at its nodes."""

from __future__ import annotations

import gc
import logging
import os
import secrets
import signal
import site
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ablate.core.files import cache_directory, write_text
from ablate.core.resources import Node, Resources, cores, this_machine
from blocks import UsageError

# Set before Ray is imported. No usage statistics, no output of its own, no other working directory.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # ASHA's loss is not in every result
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours says what happens, then does the same
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
# On one machine everything listens on loopback, for this process's user only.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
# One thread each: two spinning thread pools on two cores were measured to be 6-15x slower. And one
# arena: Tune runs each trial in a new thread, and glibc would give each an arena that only grows.
WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",  # workers wait for it at each report; it is 2 s
}
OBJECT_STORE_BYTES = 100 * 2**20  # trials pass no objects; the default is a third of memory
CONNECT_SECONDS = 25.0
log = logging.getLogger(__name__)
log.addHandler(logging.NullHandler())  # nodes may be lost when no study has its log open any more
CONNECT = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False)"


# What this process's Ray is bound to, for it reads settings once: variables that we set for a Ray
# on this machine, or clusters by the address given, with the one that they have ("": our own Ray).
_own: dict[str, str] = {}
_clusters: dict[str, str] = {}
_sessions: list[None] = []
_writers: list[Any] = []


def load(*, loopback: bool) -> None:
    """Import Ray as it is to behave: it reads its environment then.

    Raises `UsageError` where it was imported before, and would listen to all the world, and outside
    of the main thread, where no trial could be stopped.
    """
    if threading.current_thread() is not threading.main_thread():
        raise UsageError(
            "trials run from the main thread only, which Ctrl-C and SIGTERM reach: call this "
            "there, or run the command (python -m ablate.run)"
        )
    missing = not _clusters and not LOOPBACK.keys() <= os.environ.keys()
    if loopback and missing and "ray" in sys.modules:
        raise UsageError(
            "this process imported ray before its first trials, and Ray reads its settings then: "
            "run the trials first, or in another process (python -m ablate.run)"
        )
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if loopback:
        # They stay: Ray keeps the token, and no other Ray would start in this process without them.
        environment = LOOPBACK | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
        _own.update({name: environment[name] for name in environment if name not in os.environ})
        os.environ.update(_own)
    import ray.tune  # noqa: F401

    logging.getLogger("ray").setLevel(logging.WARNING)
    # Results are in the ledger; Tune, which finds none of its own, would say so of every trial.
    logging.getLogger("ray.tune.analysis").setLevel(logging.ERROR)
    _log_lost_nodes()


def _log_lost_nodes() -> None:
    """Log what Ray prints of lost nodes: it has no setting for that, only a function of its own.

    A Ray that is not ours prints as ever.
    """
    from ray._private import worker

    prints = getattr(worker, "print_to_stdstream", None)
    if prints is None or prints in _writers:
        return

    def write(data: dict[str, Any], *arguments: Any, **options: Any) -> None:
        if _clusters:
            log.warning("%s", "\n".join(map(str, data.get("lines", ()))))
        else:
            prints(data, *arguments, **options)

    _writers.append(write)
    worker.print_to_stdstream = write


def is_connected(address: str) -> bool:
    """Return whether this process is connected to the cluster at an address, "" for a new Ray here.

    Raises `UsageError` where its Ray is bound to another place: there is one to a process.
    """
    import ray

    now = ray.get_runtime_context().gcs_address if ray.is_initialized() else ""
    if now and now in (address, _clusters.get(address)):
        return True
    asked = f"the cluster at {address!r}" if address else "this machine"
    if now:
        raise UsageError(
            f"trials are to run on {asked}, but this process has a Ray already, at {now}; "
            "call ray.shutdown() if it is yours, or use another process"
        )
    if _own if address else [name for name in _clusters if name]:
        bound = "this machine" if address else f"the cluster at {next(iter(_clusters))!r}"
        raise UsageError(
            f"trials are to run on {asked}, but this process has run some on {bound}, and Ray "
            "keeps its settings; use another process"
        )
    return False


def find_nodes(address: str) -> list[Node]:
    """Return this machine, or the nodes of the cluster at an address, which is connected to."""
    return connect(address) if address else [this_machine()]


def connect(address: str) -> list[Node]:
    """Connect to the cluster at HOST:PORT (or ``auto``: the one on this node); return its nodes.

    Raises `UsageError` where none answers within half a minute.
    """
    if "://" in address:
        raise UsageError(
            f"--address {address!r}: give HOST:PORT, or auto, on a node of the cluster"
        )
    connected = "ray" in sys.modules and is_connected(address)
    if not connected:
        _try(address)
    load(loopback=False)
    import ray

    if not connected:
        _init({}, address=address)
        _clusters[address] = ray.get_runtime_context().gcs_address
    return [
        Node(
            name=node["NodeManagerHostname"],
            cpus=node["Resources"].get("CPU", 0),
            gpus=node["Resources"].get("GPU", 0),
            memory=int(node["Resources"].get("memory", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


@contextmanager
def session() -> Iterator[None]:
    """Keep the Ray that the block starts on this machine until its end; inner ones end nothing.

    A race and a search run trials in several parts, and Ray takes seconds to start. A connection
    to a cluster is kept until the process ends.
    """
    _sessions.append(None)
    try:
        yield
    finally:
        _sessions.pop()
        if not _sessions and _clusters.pop("", ""):
            _shut_down()


def start(resources: Resources) -> None:
    """Start Ray on this machine or connect to a running cluster, unless the session has done it."""
    assert _sessions, "whoever starts Ray says how long it is wanted"
    if resources.address:
        connect(resources.address)
        return
    load(loopback=True)
    if not is_connected(""):
        _start(resources.memory)


def _start(memory: int) -> None:
    """Start Ray with this machine's cores, GPUs and free memory, at least what a trial reserves."""
    import ray

    machine = this_machine()
    with _home_of_its_own() as environment:
        _init(
            environment,
            address="local",  # and not one that was started here by somebody else
            num_cpus=cores(),
            num_gpus=int(machine.gpus),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            **({"_memory": max(machine.memory, memory)} if machine.memory else {}),
        )
    _clusters[""] = ray.get_runtime_context().gcs_address


@contextmanager
def _home_of_its_own() -> Iterator[dict[str, str]]:
    """Let Ray's own processes start with another HOME; yield the variables that trials are to have.

    Ray's head asks cloud providers' metadata servers where it runs, even with usage statistics
    off, unless this file of its cluster launcher is there.
    """
    home = (cache_directory() / "ray").resolve()
    kept = {name: os.environ.get(name) for name in ("HOME", "PYTHONUSERBASE")}
    users = os.path.expanduser("~")  # Path.expanduser raises where there is none
    write_text(home / "ray_bootstrap_config.yaml", "{}\n")
    os.environ |= {"HOME": str(home), "PYTHONUSERBASE": site.getuserbase()}
    try:
        yield {"HOME": users} if os.path.isabs(users) else {}
    finally:
        for name, value in kept.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


def _shut_down() -> None:
    """Stop our Ray, with no garbage collected meanwhile.

    Tune leaves references to Ray's objects in cycles. Where another thread (MLflow's writer) frees
    one while Ray shuts down, Ray exits the process with status 1.
    """
    import ray

    enabled = gc.isenabled()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        if enabled:
            gc.enable()


def check_shared(directory: Path) -> None:
    """Raise `UsageError` naming a node that does not see, or cannot write, the study's directory.

    A tiny task on each node looks: trials write there, and go on elsewhere when a node is lost.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    token = secrets.token_hex(8)
    probe = directory.resolve() / f".probe-{token}"  # nodes have working directories of their own
    write_text(probe, token)
    looks = {}
    for node in (node for node in ray.nodes() if node["Alive"]):
        where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(_look).options(num_cpus=0, scheduling_strategy=where, max_retries=0)
        looks[task.remote(str(probe), token)] = node["NodeManagerHostname"]
    try:
        ready, late = ray.wait([*looks], num_returns=len(looks), timeout=120)
        problems = [f"{looks[task]} does not answer" for task in late]
        problems += [f"{looks[task]} {problem}" for task in ready if (problem := _result(task))]
    finally:
        probe.unlink(missing_ok=True)
    if problems:
        raise UsageError(
            f"study {str(directory)!r} must be on storage that all nodes share: "
            f"{'; '.join(problems)}"
        )


def _look(probe: str, token: str) -> str:
    """Return what is wrong with the study's directory on this node, or nothing."""
    path = Path(probe)
    try:
        if path.read_text(encoding="ascii") != token:
            return "sees another file of that name"
        mine = path.with_name(f"{path.name}-{secrets.token_hex(4)}")
        mine.touch()
        mine.unlink()
    except FileNotFoundError:
        return "does not see it"
    except OSError as error:
        return f"cannot write there ({error.strerror})"
    return ""


def _result(task: object) -> str:
    """Return what a probe found; its own failure is a finding too."""
    import ray

    try:
        return str(ray.get(task))
    except Exception as error:
        return f"cannot run trials: {str(error).strip().splitlines()[-1]}"


def _try(address: str) -> None:
    """Raise `UsageError` if no cluster answers: tried in a process, as Ray waits for minutes."""
    command = [sys.executable, "-c", CONNECT, address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CONNECT_SECONDS)
    except subprocess.TimeoutExpired:
        raise UsageError(
            f"--address {address!r}: no Ray cluster answered in {CONNECT_SECONDS:.0f} s; "
            "is it the HOST:PORT that `ray start --head` printed?"
        ) from None
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise UsageError(f"--address {address!r}: cannot connect: {last[0]}")


def largest_memory() -> int:
    """Return the memory that the largest node of the running Ray has for trials, in bytes.

    A trial that reserves more would wait for ever; Ray, once started, does not ask again.
    """
    import ray

    return max(int(n["Resources"].get("memory", 0)) for n in ray.nodes() if n["Alive"])


def _init(environment: Mapping[str, str], **options: object) -> None:
    """Start or join Ray; where that is broken off, nothing of it is left."""
    import ray

    try:
        with _signals_wait():
            ray.init(
                log_to_driver=False,
                configure_logging=False,  # `ablate.execution.study_log` does
                runtime_env={"env_vars": worker_environment() | dict(environment)},
                **options,
            )
    except BaseException:
        _shut_down()
        raise


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait for the end of the block: half a start of Ray was seen to crash.

    Ray's own handler of SIGTERM, which would leave without a word, goes too.
    """
    came: list[int] = []

    def note(number: int, frame: Any) -> None:
        print("stopping when Ray has started ...", file=sys.stderr, flush=True)
        came.append(number)

    before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
    if came:
        raise KeyboardInterrupt


def worker_environment() -> dict[str, str]:
    """Return the environment variables of a process that trains."""
    return WORKER_ENVIRONMENT | {"PYTHONPATH": _import_path()}


def _import_path() -> str:
    """Return the path under which workers find this package and what the driver could import."""
    here: Sequence[str] = [str(Path(__file__).resolve().parents[2])]
    return os.pathsep.join(
        dict.fromkeys([*here, *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    )
