"""`python -m course_utils ...`: the course's code without a notebook."""

import os
import sys

from .cli import main

for stream in (sys.stdin, sys.stdout, sys.stderr):
    if hasattr(stream, "reconfigure"):  # a pipe on Windows would know no Chinese
        stream.reconfigure(encoding="utf-8")
code = main()
if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # started by a launcher, as one of several
    from .processes import leave

    leave(code)
sys.exit(code)
