"""Connections that the edge gives up leave nothing behind; or each refused chunk would cost the teacher one of its streams."""

from collections.abc import Callable

import psutil
import pytest
from processes import TeacherProcess

from edge_student.messages import Configure
from edge_student.receiver import Receiver
from edge_student.ring import RingShape, Slot

pytestmark = pytest.mark.slow

NUM_TIMES = 20


def connections_to(port: int) -> int:
    """Of this process, that are open."""
    return sum(bool(found.raddr) and found.raddr.port == port for found in psutil.Process().net_connections("tcp"))


@pytest.mark.parametrize("end", [Receiver.close, Receiver.release], ids=["closed", "released"])
def test_a_stream_that_is_given_up_in_its_middle_is_gone(end: Callable[[Receiver], None], fast_teacher: TeacherProcess) -> None:
    told = {"teacher": fast_teacher.address, "batch_size": 4, "seed": 0, "encoding": "float32", "top_k": 0, "window": 64}
    receiver = Receiver(
        Configure(**told, max_wait_s=10.0, log_level="error", niceness=0, is_idle=False), lambda cause, attempt: None
    )
    receiver.describe()
    receiver.close()
    slot = Slot.empty(RingShape(num_slots=1, batch_size=4, num_classes=10))
    for index in range(NUM_TIMES):
        receiver.receive(index, 1000, slot, lambda: None)
        end(receiver)
    assert connections_to(fast_teacher.port) == 0
