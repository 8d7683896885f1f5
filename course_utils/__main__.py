"""`python -m course_utils ...`: the course's code without a notebook."""

import sys

from .cli import main

sys.exit(main())
