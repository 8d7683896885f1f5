"""Real lengths: what padding costs and packing saves on one GPU, ours beside Unsloth's.

    python -m benchmarks.peers_gpu build --tokenizer FOLDER   # the model, once (--shape 1b: small)
    python -m benchmarks.packing_gpu run --seconds 300        # rows go to $OUT/packing.jsonl
    python -m benchmarks.packing_gpu collect packing.jsonl    # writes results/packing_h200.json

Rows of random tokens as long as Alpaca's (alpaca_lengths.json), cut at 512; LoRA of rank 16 on all
linear layers, no checkpointing.  Systems:

- ours: `training.run`, rows packed to 4096 tokens, answers trained on
- unsloth: TRL's SFTTrainer with Unsloth's packing, the same lengths, answers trained on

Both with one such sequence a step, where what a trainer does between two steps weighs most, and
with four, one after the other (gradient accumulation, as in most recipes).  Beside them, once:

- plain: transformers' Trainer, 8 rows a step padded to the longest of them, answers trained on
- guide: the same with every row padded to 512 and trained on the prompt too

tokens_per_second counts prompt and answer tokens, padding not counted: the sum over the steps after
the warm-up by the sum of their seconds.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import gpu_common as common
from benchmarks.gpu_common import SEED, Case, Row, StepMeter

MODULE = "benchmarks.packing_gpu"
LENGTHS = Path(__file__).parent / "alpaca_lengths.json"
SYSTEMS = ("ours", "unsloth", "plain", "guide")
STEPS, WARM, BATCH = 30, 8, 8
CUT = 512  # tokens of a row at most
SEQUENCES = (1, 4)  # packed ones of a step
PACKED = {"7b": 4096, "1b": 4096, "tiny": 512}  # tokens of a packed sequence
IGNORE = -100


def token_rows(shape: str, sequences: int = 1) -> list[dict[str, list[int]]]:
    """Random rows of Alpaca's lengths, labels on answers: enough for `STEPS` steps of so many
    packed sequences."""
    pairs = json.loads(LENGTHS.read_text(encoding="utf-8"))["pairs"]
    draw, rows, total = random.Random(SEED), [], 0
    while total < (STEPS * sequences + 2) * PACKED[shape]:
        prompt, response = draw.choice(pairs)
        prompt = min(prompt, CUT - 1)
        ids = [draw.randrange(3, 32000) for _ in range(min(prompt + response, CUT))]
        rows.append({"input_ids": ids, "labels": [IGNORE] * prompt + ids[prompt:]})
        total += len(ids)
    return rows


class TokenMeter(StepMeter):
    """Counts each step's real tokens too, by looking at all that the model is given."""

    def __init__(self, warm: int) -> None:
        super().__init__(warm)
        self.counted: list[Any] = []  # numbers, or tensors on the GPU: it is not waited for here
        self.positions: list[int] = []  # padding counted
        self._seen: list[dict[str, Any]] = []  # of this step: several where it accumulates

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        model.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, module: Any, arguments: tuple, inputs: dict[str, Any]) -> None:
        self._seen.append(inputs)

    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        self.counted.append(sum(real_tokens(seen) for seen in self._seen))
        self.positions.append(sum(seen["input_ids"].numel() for seen in self._seen))
        self._seen.clear()

    def figures(self) -> Row:
        """Speed over all steps after the warm-up, with the share of positions that are tokens."""
        tokens = [int(count) for count in self.counted[self.warm :]]
        seconds = self.seconds[self.warm :]
        return super().figures() | {
            "tokens_per_second": round(sum(tokens) / sum(seconds), 1),
            "tokens_per_step": round(statistics.mean(tokens), 1),
            "share_of_positions": round(sum(tokens) / sum(self.positions[self.warm :]), 3),
            "mean_loss": round(statistics.mean(self.losses[self.warm :]), 4),
        }


def real_tokens(inputs: dict[str, Any]) -> Any:
    """Tokens of a batch that are not padding: a number or a tensor of one."""
    if inputs.get("attention_mask") is not None:
        return inputs["attention_mask"].sum()
    positions = inputs.get("position_ids")
    if positions is None:
        return inputs["input_ids"].numel()
    return (positions > 0).sum() + (positions == 1).sum()  # see encoding.count_tokens


def ours(case: Case, meter: StepMeter) -> None:
    """`training.run` with packing; `case["recipe"]` may set more fields."""
    from course_utils import training
    from course_utils.encoding import Encoded, EncodingReport
    from course_utils.recipes import from_dict

    rows = token_rows(case["shape"], case["sequences"])
    lengths = [len(row["input_ids"]) for row in rows]
    labelled = sum(label != IGNORE for row in rows for label in row["labels"])
    report = EncodingReport(len(rows), sum(lengths), labelled, max(lengths), 0, len(rows))
    fields = {
        "model": str(common.model_folder(case["shape"])), "method": "lora", "rank": common.RANK,
        "alpha": common.ALPHA, "learning_rate": common.RATE, "schedule": "constant", "warmup": 0.0,
        "batch_size": 1, "gradient_accumulation": case["sequences"], "max_steps": STEPS,
        "max_length": CUT, "packing": True, "pack_length": PACKED[case["shape"]],
        "group_by_length": False, "precision": "bf16", "seed": SEED,
    }  # fmt: skip
    recipe = from_dict(fields | case.get("recipe", {}))
    with tempfile.TemporaryDirectory() as folder:
        training.run(recipe, Encoded(rows, report), output_dir=folder, callbacks=[meter])


def unsloth(case: Case, meter: StepMeter) -> None:
    """SFTTrainer, which Unsloth has patched, with `packing=True`."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    length = PACKED[case["shape"]]
    model, tokenizer = common.unsloth_model(case["shape"], "lora", False, length)
    rows = token_rows(case["shape"], case["sequences"])
    columns = {name: [row[name] for row in rows] for name in ("input_ids", "labels")}
    with tempfile.TemporaryDirectory() as folder:
        keywords = common.peer_arguments(1, STEPS, False, folder)
        keywords["gradient_accumulation_steps"] = case["sequences"]
        trainer = SFTTrainer(
            model=model, args=SFTConfig(**keywords, max_length=length, packing=True),
            train_dataset=Dataset.from_dict(columns), processing_class=tokenizer,
            callbacks=[meter],
        )  # fmt: skip
        if "seq_lengths" not in next(iter(trainer.train_dataset)):
            raise RuntimeError("Unsloth did not pack these rows")
        trainer.train()


def padded(rows: list[dict[str, list[int]]], pad: int) -> list[dict[str, list[int]]]:
    """Every row filled up to `CUT` with masked padding, labels on the prompt too."""
    made = []
    for row in rows:
        ids, missing = row["input_ids"], CUT - len(row["input_ids"])
        labels, mask = ids + [IGNORE] * missing, [1] * len(ids) + [0] * missing
        made.append({"input_ids": ids + [pad] * missing, "labels": labels, "attention_mask": mask})
    return made


def peer_trainer(case: Case, meter: StepMeter) -> None:
    """transformers' Trainer on padded rows."""
    from transformers import Trainer, TrainingArguments, default_data_collator

    from course_utils.encoding import Collator

    model = common.peft_model(case["shape"], "lora", checkpointing=False)
    rows, pad = token_rows(case["shape"]), model.config.pad_token_id
    guide = case["system"] == "guide"
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            **common.peer_arguments(BATCH, STEPS, False, folder), remove_unused_columns=False
        )
        trainer = Trainer(
            model=model, args=arguments, train_dataset=padded(rows, pad) if guide else rows,
            data_collator=default_data_collator if guide else Collator(pad), callbacks=[meter],
        )  # fmt: skip
        trainer.train()


TRAIN = {"ours": ours, "unsloth": unsloth, "plain": peer_trainer, "guide": peer_trainer}


def measure(case: Case) -> Row:
    """Train one system for `STEPS` steps, in this process."""
    meter = TokenMeter(WARM)
    TRAIN[case["system"]](case, meter)
    return meter.figures()


def cases(shape: str, only: str | None, recipe: str | None) -> list[Case]:
    """One case a system and number of sequences; all train LoRA without checkpointing."""
    about, made = {"method": "lora", "checkpointing": False, "shape": shape}, []
    extra = {"recipe": json.loads(recipe)} if recipe else {}
    for sequences in SEQUENCES:
        for name in common.named(only, SYSTEMS):
            if sequences == 1 or name in SYSTEMS[:2]:  # the others pack nothing
                case = {"system": name, **about, "sequences": sequences}
                made.append(case | (extra if name == "ours" else {}))
    return made


def collect(files: list[str], name: str, notes: list[str] | None) -> Path:
    """Merge the rows of one run into `results/NAME.json`, with the ratios ours / peer."""
    rows = common.read_rows(files)
    lengths = json.loads(LENGTHS.read_text(encoding="utf-8"))
    about = {key: value for key, value in lengths.items() if key != "pairs"}
    summary = common.ratios(rows, "ours", SYSTEMS[1:])
    return common.write_result(name, {"lengths": about, "summary": summary, "rows": rows}, notes)


def main() -> None:
    """The command line; see the top of this file."""
    parser = common.parser(__doc__, ["run", "one", "collect"], name="packing_h200")
    given = parser.parse_args()
    if given.action == "one":
        common.answer(json.loads(given.what[0]), measure)
    elif given.action == "run":
        wanted = cases(given.shape, given.only, given.recipe)
        common.run(MODULE, wanted, common.lines_path("packing"), given.seconds)
    else:
        print(collect(given.what, given.name, given.note))


if __name__ == "__main__":
    sys.exit(main())
