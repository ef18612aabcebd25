"""The program: finds the commands by listing, spells them for the shell, turns Refused into one sentence and an exit code.

Every file of `commands` that has `register(app)` is a command; `HELP` names its section. Nothing here needs torch.
"""

from __future__ import annotations

import errno
import os
import select
import sys
import traceback
from importlib import import_module
from typing import TYPE_CHECKING, Any

from argosy.errors import BUG, FULL, INPUT, INTERRUPTED, MACHINE, Refused

if TYPE_CHECKING:  # what takes long to load is loaded where Ctrl-C is taken already
    import typer
    from typer.core import TyperGroup

SECTIONS = ("Start here", "Runs", "Data and models", "Plan", "Clusters", "Check and change")
PARTS = ("conduct", "launched")  # of `train`: no commands, and too heavy to load for a help text
NAMED = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM)  # a file that somebody named and that cannot be opened for that
EPILOG = (
    "Any key of a job can be given to train: --optim.lr 3e-4 or optim.lr=3e-4. "
    "argosy COMMAND --help for more. Runs live in ./runs (or $ARGOSY_RUNS). Nothing is sent anywhere."
)


def _sections() -> type[TyperGroup]:
    """A group that lists commands by the order of SECTIONS. Typer would list all groups of commands last, with theirs."""
    from typer.core import TyperGroup

    class Sections(TyperGroup):
        """See `_sections`."""

        def list_commands(self, ctx: Any) -> list[str]:
            """Names of commands, as the help shows them."""
            panels = {name: getattr(command, "rich_help_panel", None) for name, command in self.commands.items()}
            places = {name: SECTIONS.index(panel) if panel in SECTIONS else -1 for name, panel in panels.items()}
            return sorted(super().list_commands(ctx), key=lambda name: places[name])

    return Sections


def program() -> typer.Typer:
    """The whole command line, in the order of SECTIONS."""
    from pkgutil import iter_modules

    import typer

    from argosy import commands

    app = typer.Typer(
        name="argosy",
        cls=_sections(),
        help="Train language models, from a laptop to fleets of GPUs.",
        epilog=EPILOG,
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def top(
        show: bool = typer.Option(False, "--version", help="Print the version.", is_eager=True, callback=_version),
    ) -> None:
        """Train language models, from a laptop to fleets of GPUs."""

    names = [entry.name for entry in iter_modules(commands.__path__) if entry.name not in PARTS]
    found = [import_module(f"argosy.commands.{name}") for name in names]
    spelt = [module for module in found if hasattr(module, "register")]
    for module in sorted(spelt, key=lambda one: (SECTIONS.index(one.HELP), getattr(one, "PLACE", 50), one.__name__)):
        module.register(app)
    return app


def main(arguments: list[str] | None = None) -> int:
    """Run the program with `arguments` (default: the command line's); gives the exit code."""
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _run(words: list[str]) -> int:
    import typer

    _occupy()
    if os.name != "posix":
        print("error: Argosy needs Linux or macOS; on Windows use WSL2.", file=sys.stderr)
        return 2
    output = os.fstat(1)
    try:
        return _code(program()(words, prog_name="argosy", standalone_mode=False))
    except typer.Exit as left:
        return left.exit_code
    except SystemExit as left:
        broken = left.__context__  # click leaves with 1 wherever anything met a reader that is gone
        if not isinstance(broken, BrokenPipeError):
            raise
        return 0 if _unread(output) else _wrong(broken, "--debug" in words)  # `argosy runs | head` is no error
    except Refused as refused:
        from argosy.observe.text import shown

        print(f"error: {shown(refused.text, sys.stderr)}", file=sys.stderr)  # names in it may be a stranger's
        return refused.code
    except typer.Abort:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        if error.errno in FULL:
            print(f"error: {error.filename or 'this machine'}: {FULL[error.errno]} ({error.strerror})", file=sys.stderr)
            return MACHINE
        if error.errno in NAMED and error.filename:
            print(f"error: {error.filename}: {error.strerror}. Name another one.", file=sys.stderr)
            return INPUT
        return _wrong(error, "--debug" in words)
    except Exception as error:
        return _wrong(error, "--debug" in words)


def _occupy() -> None:
    """Put something where a scheduler closed standard input or output: a file of ours would get that number otherwise.

    And give Python's own streams back, which are None then: what asks them anything needs to know nothing of this.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))


def _unread(output: os.stat_result) -> bool:
    """Whether nobody reads any more what this process prints, or what it printed when standard output was `output`.

    Rich puts nothing in the place of standard output when its reader is gone.
    """
    if not os.path.samestat(output, os.fstat(1)):
        return True
    poll = select.poll()
    for number in (1, 2):
        poll.register(number, 0)  # broken ends are told without being asked for
    return any(told & (select.POLLERR | select.POLLHUP) for _, told in poll.poll(0))


def _wrong(error: Exception, debug: bool) -> int:
    """What the shell's parser refuses is the user's; anything else is a bug, told in a file and one line."""
    shown = getattr(error, "format_message", None)
    if shown is not None and hasattr(error, "exit_code"):  # click's own errors, whichever click typer brings
        if shown():  # bare `argosy` has printed its help
            print(f"error: {shown()}", file=sys.stderr)
        return int(error.exit_code)
    if debug:
        traceback.print_exc()
    path = _crash(error)
    print(
        f"error: {type(error).__name__}: {error}: a bug of Argosy; {path} tells more (or give --debug)", file=sys.stderr
    )
    return BUG


def _crash(error: Exception) -> str:
    import platform
    import tempfile

    from argosy.run.origin import mask, versions

    lines = [" ".join(["argosy", *sys.argv[1:]]), str(versions()), platform.platform(), ""]
    text = "\n".join(lines) + "".join(traceback.format_exception(error))
    with tempfile.NamedTemporaryFile(
        "w", prefix="argosy-crash-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
    ) as file:
        file.write(mask(text))
    return file.name


def _code(result: object) -> int:
    return result if isinstance(result, int) else 0


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import PackageNotFoundError, version

        import typer

        try:
            print(f"argosy {version('argosy')}")
        except PackageNotFoundError:
            print("argosy, not installed")
        raise typer.Exit(0)


if __name__ == "__main__":
    sys.exit(main())
