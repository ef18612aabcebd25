"""Preloaded into the warm server: importing it lets the kernel end the server together with the process that started it.

The server may have no second thread (it forks), so no guardian can run in it; and while it loads torch it looks at nothing.
"""

from argosy.run.guardian import bind

bind()
