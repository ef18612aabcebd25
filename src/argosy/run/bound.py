"""Preloaded into the warm server: importing it lets the kernel end the server together with the process that started it.

The server may have no second thread (it forks), so no guardian can run in it; and while it loads torch it looks at nothing.
Signals that reach a whole process group (Ctrl-C, a scheduler's SIGTERM) are the parent's to answer: it leaves that group.
Nothing of what it loads from here on is garbage, and looking for some again and again would take a sixth of the time.
"""

import gc
import os
import signal

from argosy.run.guardian import bind
from argosy.run.signals import ASKING

gc.disable()
bind()
if os.getpgid(0) != os.getpid():
    os.setpgid(0, 0)
for _number in ASKING:
    signal.signal(_number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)  # blocked by the parent until here
