"""What a training run did and cost, as one object that prints well and saves as JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from datetime import datetime
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import Any

from .errors import CourseError
from .memory import MemoryReport

PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets")


@dataclass
class RunReport:
    """A run's figures.

    losses: one dict a step: step, loss (nats per answer token), learning_rate, grad_norm.
    validation_losses: (step, loss) pairs; step 0 is before training.
    tokens: prompt and answer tokens trained on, padding not counted.
    seconds: training alone, without loading and evaluation.
    stopped: "finished", or why the run ended early.
    began: when the run did, before any resumption; local time.
    """

    recipe: dict[str, Any]
    device: str
    precision: str
    trainable_parameters: int
    total_parameters: int
    rows: int
    truncated: int
    steps: int = 0
    tokens: int = 0
    answer_tokens: int = 0
    seconds: float = 0.0
    losses: list[dict[str, float]] = field(default_factory=list)
    validation_losses: list[tuple[int, float]] = field(default_factory=list)
    memory: MemoryReport | None = None
    versions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    stopped: str = "finished"
    output_dir: str | None = None
    began: str = field(default_factory=lambda: datetime.now().isoformat())

    @property
    def tokens_per_second(self) -> float:
        """Prompt and answer tokens a second of training, padding not counted."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def trainable_share(self) -> float:
        """Trainable over all parameters, between 0 and 1."""
        return self.trainable_parameters / self.total_parameters

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields["memory"] = self.memory.to_dict() if self.memory else None
        return {**fields, "tokens_per_second": round(self.tokens_per_second, 1)}

    def save(self, path: str | Path) -> Path:
        """Write the report as JSON."""
        path = Path(path)
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8", newline="\n")
        return path

    def __str__(self) -> str:
        lines = [
            f"{self.recipe['method']} on {self.recipe['model']}: {self.stopped} after "
            f"{self.steps} steps, {self.seconds:.0f} s",
            f"  trainable   {self.trainable_parameters:,} of {self.total_parameters:,} parameters "
            f"({100 * self.trainable_share:.2f} %)",
            f"  tokens      {self.tokens:,} ({self.answer_tokens:,} in answers), "
            f"{self.tokens_per_second:,.0f} a second",
        ]
        if self.losses:
            first, last = self.losses[0]["loss"], self.losses[-1]["loss"]
            lines.append(f"  loss        {first:.3f} -> {last:.3f}")
        if self.validation_losses:
            first, last = self.validation_losses[0][1], self.validation_losses[-1][1]
            lines.append(f"  validation  {first:.3f} -> {last:.3f}")
        lines.append(f"  memory      {self.memory}")
        lines.append(f"  device      {self.device}, {self.precision}")
        return "\n".join(lines + [f"  note        {note}" for note in self.notes])


def load_report(path: str | Path) -> RunReport:
    """Read a report that `RunReport.save` wrote."""
    try:
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
        fields.pop("tokens_per_second", None)
        memory = fields.pop("memory", None)
        if memory:
            memory.pop("peak_gib", None)
            memory = MemoryReport(**memory)
        fields["validation_losses"] = [tuple(pair) for pair in fields.get("validation_losses", [])]
        return RunReport(**fields, memory=memory)
    except (OSError, ValueError, TypeError) as error:
        raise CourseError(f"{path} is no report of a training run ({error}).") from error


def versions() -> dict[str, str]:
    """Installed versions of what a run depends on."""
    found = {"python": python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
