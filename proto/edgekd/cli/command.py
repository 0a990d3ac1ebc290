"""What the three programs' command lines have in common: commands, exit statuses and errors of one line.

`parse`, which turns one dataclass into flags, a TOML file and help, is in settings.py, and `start_logging` in logs.py; both are
offered here too.
"""

import errno
import importlib.metadata
import os
import shutil
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from edgekd.cli.logs import LogFormat, LogLevel, last_word, plain, start_logging
from edgekd.cli.settings import closest, parse
from edgekd.errors import WorldError

__all__ = ["USER_ERROR", "Command", "LogFormat", "LogLevel", "WorldError", "dispatch", "parse", "run", "start_logging"]

USER_ERROR = 2
"""Exit status of a command that was told something wrong."""

# The config dataclass, what to do with one (the exit status, None for 0), and one sentence for the list of commands.
Command = tuple[type[Any], Callable[[Any], int | None], str]


def run(main: Callable[[], int | None]) -> NoReturn:
    """Call `main` and exit with its status; ends every foreseeable failure in one line on stderr.

    ValueError (the user's mistake) exits with 2, WorldError, OSError and a lack of memory with 1, Ctrl-C with 130. Anything else is
    our bug and keeps its traceback. From then on a signal ends the process as if nobody had ever asked for it: Python's own last
    steps would raise KeyboardInterrupt in places of theirs.
    """
    try:
        status = main() or 0
        sys.stdout.flush()
    except ValueError as error:
        status = _report(f"error: {error}", USER_ERROR)
    except BrokenPipeError:
        # Whoever read our output, `head` for example, has seen enough. Python would complain once more at exit.
        _discard_stdout()
        status = 1
    except OSError as error:
        if error.errno == errno.ENOSPC and error.filename is None:
            _discard_stdout()  # the file behind stdout is full
        # str() of an OSError leads with "[Errno 2]", which says nothing to a reader.
        cause = error.strerror or str(error)
        status = _report(f"error: {cause}" if error.filename is None else f"error: {error.filename}: {cause}", 1)
    except WorldError as error:
        status = _report(f"error: {error}", 1)
    except MemoryError as error:
        status = _report(f"error: there is not enough memory for this{f' ({error})' if str(error) else ''}", 1)
    except KeyboardInterrupt:
        status = _report("interrupted", 130)
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
    sys.exit(status)


def dispatch(argv: Sequence[str], commands: Mapping[str, Command], *, prog: str, description: str) -> int:
    """Run the command that argv[0] names with the rest as its flags; returns the exit status.

    --help prints the list of commands, no word at all prints it to stderr (status 2), --version the version. Raises
    ValueError for a command that is not in the list.
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
    return function(parse(config_class, argv[1:], prog=f"{prog} {first}", description=summary)) or 0


def _overview(commands: Mapping[str, Command], *, prog: str, description: str) -> str:
    width = min(shutil.get_terminal_size().columns, 100)
    column = max(map(len, commands)) + 4
    lines = [f"usage: {prog} COMMAND [--flags]", "", *textwrap.wrap(description, width, break_on_hyphens=False), "", "commands:"]
    for name, (_, _, summary) in commands.items():
        lines += textwrap.wrap(
            summary, width, initial_indent=f"  {name}".ljust(column), subsequent_indent=" " * column, break_on_hyphens=False
        )
    lines += ["", f"`{prog} COMMAND --help` explains a command's flags, `{prog} --version` names this version."]
    return "\n".join(lines)


def _discard_stdout() -> None:
    """Send the rest of the buffer to /dev/null: at exit Python would try to write it again, and exit with 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(message: str, status: int) -> int:
    # One line, whatever the message was: whoever reads a log finds the whole error in it. It may quote what others have sent.
    last_word(plain(" ".join(message.split())))
    return status
