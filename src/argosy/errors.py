"""What a person reads when something is wrong, and the exit codes of the program. Knows nothing of the rest."""

from __future__ import annotations

import errno

DONE = 0  # also after `argosy stop`
BUG = 1  # ours: crash.txt tells
INPUT = 2  # yours, found before a step
NO = 3  # the answer is no: diverged, data exhausted, a check found a difference
MACHINE = 4  # disk or memory ran out during the run, device or node lost, retries spent
SAVED = 75  # saved after SIGUSR1, or after SIGTERM where a scheduler asks again (EX_TEMPFAIL)
INTERRUPTED = 130  # saved after SIGINT; a second one leaves without saving
TERMINATED = 143  # saved after SIGTERM, or when the terminal was closed (SIGHUP, unless started by nohup)
FULL = {  # the errors of a disk that takes no more, in words
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your quota is used up",
    errno.EFBIG: "a file size limit is set",
}


class Refused(Exception):
    """The only error a person is meant to read; `code` is the exit code.

    The text is one sentence of what is wrong, with the place before it, what was found and what to do after it.
    """

    def __init__(self, what: str, *, where: str = "", found: str = "", do: str = "", code: int = INPUT):
        self.what, self.where, self.found, self.do, self.code = what, where, found, do, code
        super().__init__(self.text)

    @property
    def text(self) -> str:
        """Place, what, found, do: one line unless `do` holds several remedies on lines of their own."""
        place = f"{self.where}: " if self.where else ""
        found = f" Found: {self.found}" + ("" if self.found.endswith((".", "?")) else ".") if self.found else ""
        do = ("" if self.do.startswith("\n") else " ") + self.do if self.do else ""
        return f"{place}{self.what}{found}{do}"

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders by their arguments; keyword arguments would be lost.
        return (_again, (self.what, self.where, self.found, self.do, self.code))


def _again(what: str, where: str, found: str, do: str, code: int) -> Refused:
    return Refused(what, where=where, found=found, do=do, code=code)
