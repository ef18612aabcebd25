"""What the warm server runs before it forks workers: imports, and one tiny compiled forward and backward pass.

Importing this module does it (the server preloads by name). `ARGOSY_WARM=compile` asks for the compiled pass; without it only
imports are done. Afterwards this process has one thread and has not touched a GPU, so it may be forked.
"""

from __future__ import annotations

import gc
import os
import sys
import threading

# Before torch is imported: the compiler must not start helpers of its own, which would not survive the fork.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import torch
from torch import nn

import argosy.train.worker
from argosy.device import torch_versions


def compiled_pass() -> None:
    """Compile a block of a few numbers and run it both ways: what compiler and autograd load on first use stays loaded."""
    torch.set_num_threads(1)
    torch_versions.remember_instructions()
    block = nn.Sequential(nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 4))
    forward = torch.compile(block.forward, dynamic=False)
    forward(torch.ones(2, 4)).sum().backward()
    torch.compiler.reset()  # the workers' own graphs start from nothing; what was loaded stays


def ready() -> bool:
    """Whether this process may be forked: one thread, no GPU touched."""
    return threading.active_count() == 1 and not torch.cuda.is_initialized()


WORKER = argosy.train.worker.main

if os.environ.get("ARGOSY_WARM") == "compile":
    try:
        compiled_pass()
    except Exception as error:  # no compiler here: the workers are told not to compile, and can be forked all the same
        print(f"the warm server cannot compile: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
if not gc.isenabled():  # the server itself (run/bound.py), not somebody who only imports this
    gc.freeze()  # workers never look through what they were born with, and so do not copy it
