"""Peak GPU memory of `training.run`, measured over shapes, methods and settings, and estimated.

    python -m benchmarks.vram_grid run --seconds 400         # rows go to $OUT/vram.jsonl
    python -m benchmarks.vram_grid run --only llama-2-7b/lora,qlora
    python -m benchmarks.vram_grid collect vram.jsonl        # results/vram_grid.json
    python -m benchmarks.vram_grid peers --fitcheck FOLDER   # what other estimators say, into it
    python -m benchmarks.vram_grid --summary [--json]        # errors of the estimator as it is now

Each case is a process of its own that trains random weights of a published shape on random tokens
for a few steps.  Cases marked `alone` have the card for themselves: what their process holds is
read from nvidia-smi, and their speed counts.  The others share the card, several at once, for as
long as what they are expected to hold fits on it.

The weights are made on the card, in the precision in which `models.load` would hold them, before
the measuring starts; the cases "from a folder" load them inside it.  Row: the case, and
`measured`: allocated_gib (peak of the allocator over the whole of `training.run`), reserved_gib,
process_gib (as nvidia-smi shows it), context_gib (process less reserved); phases: peak by phase.

`fitted` rows may be used to set the estimator's constants (`vram_cases.fitted` has the rule, made
before the first measurement); the errors of a summary are over the others.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import gpu_common as common
from benchmarks import vram_cases
from benchmarks.gpu_common import MARK, RESULTS, Row
from benchmarks.vram_cases import Case
from benchmarks.vram_measure import GO, READY, card_used_mib, find, one

MODULE = "benchmarks.vram_grid"
TIERS = ("allocated", "reserved", "process")
CAP_GIB, JOBS, AHEAD = 120.0, 8, 5  # shared card: GiB, processes on it, processes that get ready
LIMIT = 120.0  # seconds on the card after which a case is given up
PATIENCE = 15.0  # seconds after which no later case is let on the card before a waiting one


# --------------------------------------------------------------------------- sharing the card


class Card:
    """Who may be on the card: `jobs` processes at once that hold `cap` GiB together.

    A process that needs more than `cap` by itself is let on when no other is there.
    """

    def __init__(self, cap: float, jobs: int, patience: float = PATIENCE) -> None:
        self.cap, self.jobs, self.patience = cap, jobs, patience
        self.held: list[float] = []
        self._waiting: dict[int, tuple[float, float]] = {}  # ticket -> (GiB, since when)
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def place(self, ticket: int, gib: float) -> Iterator[None]:
        """Wait for room, and hold it inside the block; a lower ticket comes first."""
        with self._changed:
            self._waiting[ticket] = gib, time.monotonic()
            while not self._may(ticket, gib):
                self._changed.wait(0.5)
            del self._waiting[ticket]
            self.held.append(gib)
        try:
            yield
        finally:
            with self._changed:
                self.held.remove(gib)
                self._changed.notify_all()

    def _may(self, ticket: int, gib: float) -> bool:
        """Whether there is room, and no earlier ticket that fits too or has waited too long."""
        now = time.monotonic()
        for other, (wanted, since) in self._waiting.items():
            if other < ticket and (self._fits(wanted) or now - since > self.patience):
                return False
        return self._fits(gib)

    def _fits(self, gib: float) -> bool:
        room = sum(self.held) + gib <= self.cap and len(self.held) < self.jobs
        return room or not self.held


class Runner:
    """Starts a process for each case, lets it on the card in its turn, and writes its row.

    A case has `name`, `need_gib`, `tiny` and `to_dict()`; `python -m MODULE one NAME [--tiny]` says
    READY, waits for GO (and what the card holds, in MiB), and prints the row behind MARK.
    """

    def __init__(self, lines: Path, end: float, module: str = MODULE) -> None:
        self.lines, self.end, self.module = lines, end, module
        self.rows: list[Row] = []
        self._lock = threading.Lock()
        self.cuda = torch.cuda.is_available()
        self.idle_mib = card_used_mib() if self.cuda else 0.0

    def waiting_is_free(self) -> bool:
        """Whether a process that is only ready holds nothing on the card yet."""
        with self._child(["ready"]) as child:
            _until(child, READY)
            return not self.cuda or card_used_mib() < self.idle_mib + 50

    def run(
        self, cases: list[Case], *, jobs: int, ahead: int = AHEAD, until: float | None = None
    ) -> list[Case]:
        """Measure the cases, up to `jobs` at once; returns those for which no time was left.

        ahead: processes that get ready meanwhile.  until: when the last one may start.
        """
        todo, until = iter(enumerate(cases)), until or self.end - 10
        card, left = Card(CAP_GIB, jobs), []

        def work() -> None:
            while True:
                with self._lock:
                    ticket, case = next(todo, (None, None))
                if case is None:
                    return
                try:
                    measured = self._one(card, ticket, case, until)
                except Exception as error:  # one case's trouble is not the others'
                    self._write(case.to_dict() | {"error": f"{type(error).__name__}: {error}"})
                    measured = True
                if not measured:
                    left.append(case)

        threads = [threading.Thread(target=work) for _ in range(jobs + ahead)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [case for case in cases if case in left]

    def _one(self, card: Card, ticket: int, case: Case, until: float) -> bool:
        """Measure one case; False if there was no time to."""
        if time.monotonic() > until:
            return False
        with self._child(["one", case.name] + ["--tiny"] * case.tiny) as child:
            said = _until(child, READY)
            with card.place(ticket, case.need_gib):
                if time.monotonic() > until:
                    return False
                left = self.end - time.monotonic()
                order = f"{GO} {self._settled_mib()}" if card.jobs == 1 and self.cuda else GO
                row = said if isinstance(said, dict) else self._row(child, order, min(LIMIT, left))
                child.kill()
                child.wait()  # only then the card is free
        self._write(case.to_dict() | row)
        return True

    def _settled_mib(self) -> float:
        """What the card holds before a case, once the one before it has gone."""
        for _ in range(10):
            used = card_used_mib()
            if used < self.idle_mib + 50:
                break
            time.sleep(0.3)
        return used

    def _row(self, child: subprocess.Popen, order: str, limit: float) -> Row:
        """Let the child go on, and take its row."""
        watch = threading.Timer(limit, child.kill)
        watch.start()
        try:
            child.stdin.write(order + "\n")
            child.stdin.flush()
            said = _until(child, MARK)
        except BrokenPipeError:
            said = _failure(child)
        finally:
            stopped = watch.finished.is_set()
            watch.cancel()
        if isinstance(said, str):
            return json.loads(said.removeprefix(MARK))
        return {"error": f"stopped after {limit:.0f} s"} if stopped else said

    def _write(self, row: Row) -> None:
        with self._lock:
            self.rows.append(row)
            with self.lines.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
            print(brief(row), flush=True)

    @contextlib.contextmanager
    def _child(self, arguments: list[str]) -> Iterator[subprocess.Popen]:
        """A process of this module, ended with the block; what it complains of is kept aside."""
        settings = {"OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}
        with tempfile.TemporaryFile("w+", errors="replace") as said:
            child = subprocess.Popen(
                [sys.executable, "-m", self.module, *arguments], text=True, errors="replace",
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
                cwd=common.REPOSITORY, env=os.environ | settings,
            )  # fmt: skip
            child.said = said
            try:
                yield child
            finally:
                child.kill()
                child.communicate()


def _until(child: subprocess.Popen, start: str) -> str | Row:
    """The child's next line that starts so; a row with the error if it ends before."""
    for line in child.stdout:
        if line.startswith(start):
            return line
    return _failure(child)


def _failure(child: subprocess.Popen) -> Row:
    """A row that says what the child complained of last."""
    child.said.seek(0)
    lines = child.said.read().strip().splitlines() or ["it said nothing"]
    return {"error": " | ".join(lines[-4:])[-800:]}


def brief(row: Row) -> str:
    """A row on one line, for who watches."""
    if "error" in row:
        return f"{row['name']}: {row['error']}"
    measured = row.get("measured", {})
    found = ", ".join(f"{k.removesuffix('_gib')} {v:.2f}" for k, v in measured.items())
    rate = f", {row['tokens_per_second']:,.0f} tokens/s" if "tokens_per_second" in row else ""
    return f"{row['name']}: {found or 'no GPU'}{rate}, {row['seconds']} s"


def run(lines: Path, seconds: float, only: str | None, jobs: int, tiny: bool) -> None:
    """Measure: what needs the card alone for about half of the time, the others, then the rest."""
    start = time.monotonic()
    print(f"Rows go to {lines}.", flush=True)
    cases = [case for case in vram_cases.all_cases() if _wanted(case, only)]
    cases = [case.small() for case in cases] if tiny else cases
    runner = Runner(lines, start + seconds)
    ahead = AHEAD if runner.waiting_is_free() else 0
    for case in cases:  # counts the shapes' parameters, which takes seconds
        _ = case.need_gib
    alone = vram_cases.alone_in_turn([case for case in cases if case.alone])
    shared = vram_cases.in_turn([case for case in cases if not case.alone])
    alone = runner.run(alone, jobs=1, ahead=ahead, until=start + 0.55 * seconds)
    left = runner.run(shared, jobs=jobs) + runner.run(alone, jobs=1, ahead=ahead)
    again = _crowded_out(runner.rows, cases)
    left += runner.run(again, jobs=1, ahead=ahead)
    print(f"{len(runner.rows)} rows in {time.monotonic() - start:.0f} s; no time for {len(left)}: "
          + "; ".join(case.name for case in left), flush=True)  # fmt: skip


def _wanted(case: Case, only: str | None) -> bool:
    """only: names, groups, shapes or methods, separated by commas."""
    words = {case.name, case.group, case.shape, case.method}
    return not only or any(word in words for word in only.split(","))


def _crowded_out(rows: list[Row], cases: list[Case]) -> list[Case]:
    """Cases that ran out of memory beside others, and may fit alone."""
    short = {row["name"] for row in rows if row.get("out_of_memory")}
    return [case for case in cases if case.name in short and not case.alone]


# ------------------------------------------------------------------- collecting and judging


def read_rows(files: list[str]) -> list[Row]:
    """The rows of these JSON-lines files; of one case the last without an error."""
    rows: dict[str, Row] = {}
    for file in files:
        for line in Path(file).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["name"] not in rows or "error" not in row:
                rows[row["name"]] = row
    return list(rows.values())


def estimated(row: Row, torch_version: str | None = None) -> Row:
    """What `memory.estimate` says of the row's run: GiB by tier, and the parts."""
    from course_utils.memory.estimate import estimate

    case = find(row["name"], row.get("tiny", False))
    config = vram_cases.config(case.config_fields())
    found = estimate(
        config, case.made_recipe(), length=case.length, device="cuda", torch_version=torch_version
    )
    made: Row = {f"{tier}_gib": round(getattr(found, f"{tier}_gib"), 4) for tier in TIERS}
    return made | {"parts": {name: round(gib, 4) for name, gib in found.parts.items()}}


def with_estimates(rows: list[Row], torch_version: str | None = None) -> list[Row]:
    """The rows, with the present estimate under "estimated" where one can be compared.

    torch_version: what the rows were measured with.
    """
    names = {case.name for case in vram_cases.all_cases() if case.judged}

    def comparable(row: Row) -> bool:
        return row["name"] in names and "error" not in row

    return [
        row | {"estimated": estimated(row, torch_version)} if comparable(row) else row
        for row in rows
    ]


def error(row: Row, said: Row, tier: str) -> float | None:
    """(estimated - measured) / measured in percent; None where one of them is missing."""
    key = f"{tier}_gib"
    measured, guess = row["measured"].get(key), (said or {}).get(key)
    return 100 * (guess - measured) / measured if measured and guess is not None else None


def figures(rows: list[Row], tier: str, system: str = "estimated") -> Row | None:
    """Mean and worst error over the rows; `system`: "estimated", or one of the row's peers."""
    said = [row[system] if system == "estimated" else row.get("peers", {}).get(system)
            for row in rows]  # fmt: skip
    pairs = [(error(row, s, tier), row["name"]) for row, s in zip(rows, said, strict=True)]
    found = [(value, name) for value, name in pairs if value is not None]
    if not found:
        return None
    worst, name = max(found, key=lambda pair: abs(pair[0]))
    mean = statistics.mean(abs(value) for value, _ in found)
    return {
        "rows": len(found), "mean_error": round(mean, 2), "worst_error": round(worst, 2),
        "worst": name, "below": sum(value < 0 for value, _ in found),
    }  # fmt: skip


def summary(rows: list[Row]) -> Row:
    """Errors in percent of the measured figure, on rows that nothing was fitted to.

    mean_error: of the absolute values; worst_error: with its sign (below 0: too little was
    expected); below: how many rows were.  By tier, by group, and of the peers on the same rows;
    of the peers also on runs of transformers' Trainer, which is what they have in mind.
    """
    plain = [row for row in rows if row.get("what") == "plain" and "error" not in row]
    rows = [row for row in rows if "estimated" in row]
    unseen = [row for row in rows if not row["fitted"]]
    made: Row = {"about": "percent of the measured figure, on rows that nothing was fitted to"}
    made |= {tier: figures(unseen, tier) for tier in TIERS}
    made["whole_shapes_held_out"] = {
        tier: figures([r for r in unseen if r["shape"] in vram_cases.HELD_OUT], tier)
        for tier in TIERS
    }
    made["fitted_rows"] = {tier: figures([r for r in rows if r["fitted"]], tier) for tier in TIERS}
    groups = dict.fromkeys(row["group"] for row in unseen)
    made["groups"] = {
        group: {tier: figures([r for r in unseen if r["group"] == group], tier) for tier in TIERS}
        for group in groups
    }
    systems = dict.fromkeys(name for row in unseen for name in row.get("peers", {}))
    made["peers"] = {
        system: {tier: found for tier in TIERS if (found := figures(unseen, tier, system))}
        for system in systems
    }
    made["peers_on_plain_trainer"] = {
        system: {tier: found for tier in TIERS if (found := figures(plain, tier, system))}
        for system in systems
    }
    return made


def collect(files: list[str], name: str, notes: list[str] | None) -> Path:
    """Merge the rows into results/NAME.json, with the rule's split and the present estimates."""
    split = vram_cases.fitted(vram_cases.all_cases())
    rows = [row | {"fitted": split.get(row["name"], False)} for row in read_rows(files)]
    shared = {"steps": vram_cases.STEPS, "steps_alone": vram_cases.TIMED_STEPS}
    result = {"all_recipes": vram_cases.GRID | shared, "held_out_shapes": vram_cases.HELD_OUT}
    result["not_run"] = [name for name in split if name not in {row["name"] for row in rows}]
    path = common.write_result(name, result | {"rows": rows}, notes)
    return refresh(path)


def refresh(path: Path) -> Path:
    """Write the present estimates, and their summary, into a result file."""
    result = json.loads(path.read_text(encoding="utf-8"))
    rows = with_estimates(result.pop("rows"), result["versions"]["torch"])
    result |= {"summary": summary(rows), "rows": rows}
    text = json.dumps(result, indent=1)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")
    return path


def table(made: Row) -> str:
    """The summary as text."""
    lines = [made["about"]]

    def add(title: str, found: Row) -> None:
        for tier in TIERS:
            if figure := found.get(tier):
                lines.append(
                    f"{title:28} {tier:9} mean {figure['mean_error']:6.2f} %   worst "
                    f"{figure['worst_error']:+7.2f} % ({figure['worst']})   {figure['rows']} rows"
                )

    add("ours", made)
    add("ours, whole shapes held out", made["whole_shapes_held_out"])
    add("ours, rows fitted to", made["fitted_rows"])
    for kind in ("peers", "peers_on_plain_trainer", "groups"):
        for title, found in made[kind].items():
            add(title + (", plain Trainer" if "plain" in kind else ""), found)
    return "\n".join(lines)


def main() -> None:
    """The command line; see the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "action", nargs="?", choices=["run", "one", "ready", "collect", "peers", "list"]
    )
    parser.add_argument("what", nargs="*", help="one: the case's name; collect: the files")
    parser.add_argument("--only", help="run: names, groups, shapes or methods, with commas")
    parser.add_argument("--seconds", type=float, default=400, help="run: stop after these")
    parser.add_argument("--jobs", type=int, default=JOBS, help="run: processes at once")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try it on a CPU")
    parser.add_argument("--fitcheck", help="peers: the folder that fitcheck-llm was installed to")
    parser.add_argument("--note", action="append", help="collect: a remark to keep with the rows")
    parser.add_argument("--name", default="vram_grid", help="the file in results/, without .json")
    parser.add_argument("--summary", action="store_true", help="print the errors")
    parser.add_argument("--json", action="store_true", help="print them as JSON")
    given = parser.parse_args()
    path = RESULTS / f"{given.name}.json"
    if given.action in ("one", "ready"):
        one(given.what[0] if given.what else None, given.tiny)
    elif given.action == "run":
        run(common.lines_path("vram"), given.seconds, given.only, given.jobs, given.tiny)
    elif given.action == "collect":
        print(collect(given.what, given.name, given.note))
    elif given.action == "peers":
        from benchmarks import vram_peers

        vram_peers.fill(path, given.fitcheck)
        print(refresh(path))
    elif given.action == "list":
        split = vram_cases.fitted(vram_cases.all_cases())
        for case in vram_cases.all_cases():
            print(f"{vram_cases.need_gib(case):6.1f} GiB {'fit' if split[case.name] else '   '} "
                  f"{'alone' if case.alone else '     '} {case.name}")  # fmt: skip
    if given.summary:
        kept = json.loads(path.read_text(encoding="utf-8"))
        made = summary(with_estimates(kept["rows"], kept["versions"]["torch"]))
        print(json.dumps(made, indent=1) if given.json else table(made))


if __name__ == "__main__":
    sys.exit(main())
