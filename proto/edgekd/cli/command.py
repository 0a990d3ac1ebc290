"""Run the commands of a program, with its exit statuses and one-line errors.

`parse` (settings.py) and `start_logging` (logs.py) are exported here too, because every program needs them.
"""

import errno
import importlib.metadata
import os
import pkgutil
import shutil
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from edgekd.cli.logs import LogFormat, LogLevel, plain, print_error, start_logging
from edgekd.cli.settings import closest, parse
from edgekd.errors import WorldError

__all__ = ["USER_ERROR", "Command", "LogFormat", "LogLevel", "WorldError", "dispatch", "parse", "run", "start_logging"]

USER_ERROR = 2
"""Exit status after a user's mistake."""

_OUT_OF_MEMORY = ("failed to map segment", "cannot allocate memory", "can't allocate memory", "Cannot allocate memory")

Command = tuple[str, Callable[[Any], int | None], str]
"""The settings dataclass as "module:Class", the function (it returns the exit status, None for 0), and one sentence for the list.

A class is imported when its command runs, because the settings of a command may need numpy, which the list does not.
"""


def run(main: Callable[[], int | None]) -> NoReturn:
    """Call `main` and exit with its status. Report expected failures as one line on stderr.

    ValueError (the user's mistake) exits with 2. WorldError, OSError and MemoryError exit with 1, Ctrl-C with 130. Any other
    exception is a bug and keeps its traceback. Before the exit, signals get their default handlers: otherwise a signal would raise
    KeyboardInterrupt in Python's own shutdown code.
    """
    try:
        status = main() or 0
        sys.stdout.flush()
    except ValueError as error:
        status = _report(f"error: {error}", USER_ERROR)
    except BrokenPipeError:
        # The reader of our output, for example `head`, has closed it. Without this line Python would report it again at exit.
        _discard_stdout()
        status = 1
    except OSError as error:
        if error.errno == errno.ENOSPC and error.filename is None:
            _discard_stdout()  # the file behind stdout is full
        # str() of an OSError begins with "[Errno 2]", which helps no reader.
        cause = error.strerror or str(error)
        status = _report(f"error: {cause}" if error.filename is None else f"error: {error.filename}: {cause}", 1)
    except WorldError as error:
        status = _report(f"error: {error}", 1)
    except MemoryError as error:
        status = _report(f"error: not enough memory{f' ({error})' if str(error) else ''}", 1)
    except (ImportError, RuntimeError) as error:
        # A library that does not fit in the address space, and torch's own allocator, do not raise MemoryError.
        if not any(text in str(error) for text in _OUT_OF_MEMORY):
            raise
        status = _report(f"error: not enough memory or address space (ulimit -v): {error}", 1)
    except KeyboardInterrupt:
        status = _report("interrupted", 130)
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
    sys.exit(status)


def dispatch(argv: Sequence[str], commands: Mapping[str, Command], *, prog: str, description: str) -> int:
    """Run the command argv[0] with the remaining arguments as its flags. Return the exit status.

    --help prints the list of commands, --version the version. Without arguments the list goes to stderr with status 2. Raises
    ValueError for an unknown command.
    """
    first = argv[0] if argv else ""
    if first in ("", "-h", "--help", "help"):
        print(_overview(commands, prog=prog, description=description), file=sys.stdout if first else sys.stderr)
        return 0 if first else 2
    if first == "--version":
        print(f"{prog} {importlib.metadata.version('edgekd')}")
        return 0
    if first not in commands:
        known = ", ".join(commands)
        raise ValueError(f"unknown command '{first}', must be one of {known}{closest(first, commands)}; see {prog} --help")
    config_class, function, summary = commands[first]
    return function(parse(pkgutil.resolve_name(config_class), argv[1:], prog=f"{prog} {first}", description=summary)) or 0


def _overview(commands: Mapping[str, Command], *, prog: str, description: str) -> str:
    width = min(shutil.get_terminal_size().columns, 100)
    column = max(map(len, commands)) + 4
    lines = [f"usage: {prog} COMMAND [--flags]", "", *textwrap.wrap(description, width, break_on_hyphens=False), "", "commands:"]
    for name, (_, _, summary) in commands.items():
        lines += textwrap.wrap(
            summary, width, initial_indent=f"  {name}".ljust(column), subsequent_indent=" " * column, break_on_hyphens=False
        )
    lines += ["", f"`{prog} COMMAND --help` lists the flags of a command. `{prog} --version` prints the version."]
    return "\n".join(lines)


def _discard_stdout() -> None:
    """Send the rest of the buffer to /dev/null: at exit Python would try to write it again, and exit with 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(message: str, status: int) -> int:
    # One line, so that a log has the whole error in one place. Escaped, because a message may quote untrusted text.
    print_error(plain(" ".join(message.split())))
    return status
