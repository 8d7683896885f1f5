"""`python -m course_utils ...`: the course's code without a notebook."""

import os
import sys

from .cli import main

for stream, errors in (
    (sys.stdin, "strict"),
    (sys.stdout, "backslashreplace"),  # a name of a file or a column may be no valid text
    (sys.stderr, "backslashreplace"),
):
    if hasattr(stream, "reconfigure"):  # a pipe on Windows would know no Chinese
        stream.reconfigure(encoding="utf-8", errors=errors)
code = main()
if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # started by a launcher, as one of several
    from .processes import leave

    leave(code)
sys.exit(code)
