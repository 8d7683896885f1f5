"""Early stopping: end a run whose held-out loss no longer falls, and keep its best weights.

What is trained goes to a file at each new lowest loss, so that it takes no memory meanwhile.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

BEST, LOOKS = "best.safetensors", "looks.json"


class BestLook:
    """The look with the lowest held-out loss so far, and how many there were since.

    patience: looks without a new lowest loss after which the run ends.  folder: of the run, where
    the weights of the best look are kept.  writes: whether this process is the one that does it.
    """

    def __init__(self, patience: int, folder: Path, writes: bool = True) -> None:
        self.patience, self.folder, self.writes = patience, Path(folder), writes
        self.step, self.loss, self.since = 0, math.inf, 0
        self.last = -1  # the step up to which looks have counted

    def look(self, step: int, loss: float, model: nn.Module) -> bool:
        """Note the loss at a step; True where the run should end here."""
        if step <= self.last:
            return False
        self.last = step
        if loss < self.loss:
            self.step, self.loss, self.since = step, loss, 0
            if self.writes:
                self.folder.mkdir(parents=True, exist_ok=True)
                save_file(_trained(model), self.folder / BEST)
        else:
            self.since += 1
        return self.since >= self.patience

    @property
    def found(self) -> bool:
        """Whether there was a look with a loss."""
        return math.isfinite(self.loss)

    def keep_in(self, checkpoint: Path, step: int) -> None:
        """Write what a resumed run needs to know into the folder of a checkpoint of `step`."""
        if self.writes and self.found:
            # where it begins is looked at once more, and counts as no look
            known = {"step": self.step, "loss": self.loss, "since": self.since, "last": step}
            shutil.copyfile(self.folder / BEST, checkpoint / BEST)  # first: it is what is read
            (checkpoint / LOOKS).write_text(json.dumps(known), encoding="utf-8")

    def read_from(self, checkpoint: Path) -> None:
        """Go on counting where the run of a checkpoint stood; nothing where it did not count."""
        if not (checkpoint / LOOKS).is_file():
            return
        for name, value in json.loads((checkpoint / LOOKS).read_text(encoding="utf-8")).items():
            setattr(self, name, value)
        if self.writes:
            with safe_open(checkpoint / BEST, "pt"):
                pass  # where it is damaged, better now than when the run has ended
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkpoint / BEST, self.folder / BEST)

    @torch.no_grad()
    def bring_back(self, model: nn.Module) -> None:
        """Give the model the weights of the best look."""
        kept = load_file(self.folder / BEST)
        for name, weight in _parameters(model).items():
            weight.copy_(kept[name])

    def forget(self) -> None:
        """Remove the file with the weights."""
        if self.writes:
            (self.folder / BEST).unlink(missing_ok=True)

    def __str__(self) -> str:
        return f"the weights of step {self.step}, held-out loss {self.loss:.4f}, are kept"


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _trained(model: nn.Module) -> dict[str, Any]:
    """What is trained, as a file takes it; a weight that two layers share comes once."""
    return {name: weight.detach().contiguous() for name, weight in _parameters(model).items()}
