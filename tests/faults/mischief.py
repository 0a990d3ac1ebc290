"""The faults of the soak test, each a function of the world that it disturbs."""

import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from processes import TeacherProcess, comm_worker_of
from proxy import Proxy
from proxy_script import Break, Weather

DATASET = "synthetic:classes=100,size=8,samples=512"
PUBLIC_BATCH = 64
BATCH_BYTES = PUBLIC_BATCH * 100 * 4
CYCLES_PER_S = 20
PACE = Weather(bytes_per_s=CYCLES_PER_S * BATCH_BYTES)
"""The weather between faults: slow enough for a stream that never ends, so that there is always something to disturb."""


def serve(folder: Path, port: int = 0) -> TeacherProcess:
    """Start a teacher of `DATASET` that keeps its logits in `folder`."""
    return TeacherProcess(folder / "store", dataset=f"{DATASET}:public", port=port, is_warm=False)


class World:
    """The processes and the proxy that faults act on."""

    def __init__(self, folder: Path, serving: TeacherProcess, proxy: Proxy, command: list[str], seed: int) -> None:
        """`command` starts the edge."""
        self.folder, self._command = folder, command
        self._messages = (folder / "messages").open("w")
        self.serving = serving
        self.proxy = proxy
        self.random = random.Random(seed)
        self.pids = {"teacher": serving.process.pid}
        self.start_student()

    def close(self) -> None:
        """End the running teacher and edge."""
        self.student.kill()
        self.student.wait()
        self.serving.close()
        self._messages.close()

    def start_student(self, *flags: str) -> None:
        """Start the edge with these additional flags."""
        self.student = subprocess.Popen([*self._command, *flags], stderr=self._messages, stdout=subprocess.DEVNULL, text=True)
        self.pids |= {"trainer": self.student.pid, "comm worker": comm_worker_of(self.student)}

    def restart_student(self) -> None:
        """Restart the edge as a supervisor does: it resumes from its checkpoint."""
        self.student.kill()
        self.student.wait()
        self.start_student("--resume")

    def restart_teacher(self) -> None:
        """Restart the teacher as a supervisor does, on the same port."""
        self.serving.kill()
        self.serving.close()
        self.serving = serve(self.folder, self.serving.port)
        self.pids["teacher"] = self.serving.process.pid


def reset(world: World) -> None:
    world.proxy.reset()


def cut(world: World) -> None:
    world.proxy.break_next(Break(after=world.random.randrange(1, 100_000), how="cut"))


def crumble(world: World) -> None:
    with world.proxy.weather(replace(PACE, slice_bytes=1)):
        time.sleep(1)


def slow_down(world: World) -> None:
    with world.proxy.weather(replace(PACE, latency_s=0.1)):
        time.sleep(2)


def pause(world: World) -> None:
    world.proxy.pause()
    time.sleep(1)
    world.proxy.resume()


def freeze_teacher(world: World) -> None:
    world.serving.process.send_signal(signal.SIGSTOP)
    time.sleep(1)
    world.serving.process.send_signal(signal.SIGCONT)


def refuse(world: World) -> None:
    world.proxy.go_down()
    time.sleep(1)
    world.proxy.come_up()


def swallow(world: World) -> None:
    world.proxy.swallow()
    time.sleep(2)
    world.proxy.surface()
    world.proxy.reset()


def kill_teacher(world: World) -> None:
    world.restart_teacher()


def kill_edge(world: World) -> None:
    world.restart_student()


KILLS = ("kill teacher", "kill edge")
"""Rare: a process has to live for long to be judged."""

# A fault is a function and a line here. Whose process is a new one after it gets another pid in `world.pids`, and its samples are a
# life of their own, with a warm-up of its own.
FAULTS: dict[str, Callable[[World], None]] = {
    "kill teacher": kill_teacher,
    "kill edge": kill_edge,
    "reset": reset,
    "cut": cut,
    "crumbs": crumble,
    "latency": slow_down,
    "pause": pause,
    "freeze teacher": freeze_teacher,
    "refuse": refuse,
    "black hole": swallow,
}
