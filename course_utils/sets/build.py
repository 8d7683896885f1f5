"""Write the generated data files anew: `python -m course_utils.sets.build`.

The files are shipped, so nobody needs this to use them; the tests compare them with what the
generators give, byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from course_utils.sets import chat, code, instruction

Rows = list[dict[str, Any]]


def as_json_list(rows: Rows) -> bytes:
    """A JSON list with one row a line (the usual form of Alpaca files)."""
    return ("[\n" + ",\n".join(map(_dumped, rows)) + "\n]\n").encode()


def as_json_lines(rows: Rows) -> bytes:
    """One JSON object a line."""
    return ("\n".join(map(_dumped, rows)) + "\n").encode()


def _dumped(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False)


FILES: dict[str, Callable[[], bytes]] = {
    "instruction.json": lambda: as_json_list(instruction.generate()),
    "code.jsonl": lambda: as_json_lines(code.generate()),
    "chat.jsonl": lambda: as_json_lines(chat.generate()),
}


def main() -> None:
    folder = Path(__file__).parent
    for name, build in FILES.items():
        content = build()
        (folder / name).write_bytes(content)
        print(f"{name}: {len(content) / 1024:,.0f} KiB")


if __name__ == "__main__":
    main()
