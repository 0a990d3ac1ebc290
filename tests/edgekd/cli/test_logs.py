"""A log of objects: what stands in a line, what never does, and that text looks as it always did."""

import json
import logging
import subprocess
import sys
import threading
from datetime import datetime, timedelta

import pytest

from edgekd.cli.logs import JsonFormatter, log_context


def line_of(record: logging.LogRecord, **fields: object) -> dict[str, object]:
    text = JsonFormatter(fields).format(record)
    assert "\n" not in text
    return json.loads(text)


def record_of(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    record = logging.LogRecord("edge_student.fetch", logging.WARNING, "fetch.py", 1, message, arguments, None)
    record.__dict__.update(extra)
    return record


def test_a_line_says_when_how_bad_what_and_who() -> None:
    record = record_of("attempt %d failed:\n%s", 2, "no route", index=7, peer="ipv4:10.0.0.1:1")
    with log_context(run="0123456789ab", policy="dynamic"):
        line = line_of(record, edge="pi-1")
    time = datetime.fromisoformat(str(line.pop("time")))
    assert (time.utcoffset(), abs(time.timestamp() - record.created) < 0.001) == (timedelta(0), True)
    assert line == {
        "level": "warning",
        "message": "attempt 2 failed:\nno route",
        "logger": "edge_student.fetch",
        "edge": "pi-1",
        "run": "0123456789ab",
        "policy": "dynamic",
        "index": 7,
        "peer": "ipv4:10.0.0.1:1",
    }


def test_what_is_not_known_is_left_out_and_what_others_attach_too() -> None:
    with log_context(run=None):
        line = line_of(record_of("m", authorization="Bearer 5ecret", index=None), edge=None)
    assert set(line) == {"time", "level", "message", "logger"}


def test_a_traceback_is_part_of_its_line() -> None:
    record = record_of("it failed")
    try:
        raise RuntimeError("in the middle")
    except RuntimeError:
        record.exc_info = sys.exc_info()
    assert "RuntimeError: in the middle" in str(line_of(record)["exception"])


def test_a_block_is_about_its_own_thread_only_and_ends() -> None:
    lines: list[dict[str, object]] = []
    with log_context(edge="a"), log_context(index=3):
        other = threading.Thread(target=lambda: lines.append(line_of(record_of("m"))))
        other.start()
        other.join()
        assert (line_of(record_of("m"))["edge"], line_of(record_of("m"))["index"]) == ("a", 3)
    lines.append(line_of(record_of("m")))
    assert all({"edge", "index"}.isdisjoint(line) for line in lines)


PROGRAM = """
import logging
from edgekd.cli.command import run, start_logging
from edgekd.cli.logs import set_log_context
start_logging("info", {form!r}, fields={{"edge": "pi-1"}})
set_log_context(run="0123456789ab")
logging.getLogger("x").info("hello")
logging.getLogger("x").debug("not this")
def fail(): raise ValueError("--alpha is 2")
run(fail)
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_program_says_everything_in_the_form_that_was_asked_for_its_last_word_too(form: str) -> None:
    program = subprocess.run([sys.executable, "-c", PROGRAM.format(form=form)], capture_output=True, text=True, check=False)
    assert (program.returncode, program.stdout) == (2, "")
    said = program.stderr.splitlines()
    if form == "text":
        assert said[0].endswith(" INFO hello")
        assert said[1:] == ["error: --alpha is 2"]
    else:
        told = [(line["level"], line["message"], line["edge"], line["run"]) for line in map(json.loads, said)]
        assert told == [("info", "hello", "pi-1", "0123456789ab"), ("error", "--alpha is 2", "pi-1", "0123456789ab")]
