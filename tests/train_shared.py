"""Run by `tests/test_processes.py` in several processes: a small training, its figures as JSON."""

import json
import signal
import sys
from pathlib import Path

import tiny_models
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule
from transformers import TrainerCallback

from course_utils import models, training
from course_utils.processes import leave, own_part, processes, weights_are_shared
from course_utils.recipes import Recipe


def allow_sharing_on_cpus() -> None:
    """accelerate shares weights out (FSDP) on GPUs only; PyTorch itself does it on CPUs too."""
    begin = AcceleratorState.__init__

    def init(self, *arguments, **keywords):
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        begin(self, *arguments, **keywords)

    AcceleratorState.__init__ = init


class _Interrupt(TrainerCallback):
    """Ctrl-C at this step, in the last of the processes only."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        last = processes().index == processes().count - 1
        if last and state.global_step + 1 == self.step:
            signal.raise_signal(signal.SIGINT)


def main() -> None:
    """Arguments: output file, run folder, recipe fields as JSON, checkpoint to go on from."""
    result, folder, fields, resume = sys.argv[1:]
    fields = json.loads(fields)
    interrupted = fields.pop("interrupt", None)
    recipe = Recipe(**{
        "model": "tiny", "method": "lora", "rank": 4, "alpha": 8, "learning_rate": 2e-2,
        "batch_size": 4, "max_length": 128, "precision": "fp32", "epochs": 2,
        "group_by_length": False,
    } | fields)  # fmt: skip
    rows = tiny_models.encoded(26)
    held_out = tiny_models.encoded(7)
    model = None  # the recipe's own, a folder
    if recipe.model == "tiny":
        model = tiny_models.model("llama", vocab_size=tiny_models.FEW)
    if weights_are_shared():
        allow_sharing_on_cpus()
    run = training.run(
        recipe, rows, held_out, model=model, tokenizer=models.load_tokenizer(),
        output_dir=folder, resume=resume or None, callbacks=[_Interrupt(interrupted)],
    )  # fmt: skip
    run.save(Path(folder) / "saved")
    if processes().main:
        units = sum(isinstance(module, FSDPModule) for module in run.model.modules())
        made = run.report.to_dict() | {
            "processes": processes().count, "units": units, "held": _held(run.model),
        }  # fmt: skip
        Path(result).write_text(json.dumps(made), encoding="utf-8")
    if processes().count > 1:
        leave(0)


def _held(model) -> float:
    """The share of the weights that this process holds between steps."""
    for unit in model.modules():
        if isinstance(unit, FSDPModule):
            unit.reshard()  # a forward pass leaves the last unit gathered, for a backward pass
    weights = list(model.parameters())
    return sum(own_part(w).numel() for w in weights) / sum(w.numel() for w in weights)


if __name__ == "__main__":
    main()
