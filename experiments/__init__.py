"""Training runs that compare optimizers; they use the public API alone."""

import sys

from experiments.common import commands

if sys.argv[:1] == ["-m"]:  # as long as the interpreter looks for the module
    commands.refuse_other_modules(sys.orig_argv)
