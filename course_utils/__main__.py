"""`python -m course_utils ...`: the course's code without a notebook."""

import sys

from .cli import main

for stream in (sys.stdin, sys.stdout, sys.stderr):
    if hasattr(stream, "reconfigure"):  # a pipe on Windows would know no Chinese
        stream.reconfigure(encoding="utf-8")
sys.exit(main())
