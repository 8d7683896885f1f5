"""One case of the memory grid in this process: its model on the card, its run, its peaks."""

from __future__ import annotations

import contextlib
import gc
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks import gpu_common as common
from benchmarks import vram_cases
from benchmarks.gpu_common import GIB, MARK, Row
from benchmarks.vram_cases import Case
from course_utils import fp8

READY, GO = "READY", "GO"  # what a child says before it takes the card, and what it waits for


# --------------------------------------------------------------------- the model of a case


def random_model(config: Any, dtype: torch.dtype, four_bit: bool, place: torch.device) -> Any:
    """A causal LM with random weights made on `place`, one matrix at a time.

    four_bit: the linear layers but the output layer in NF4 with double quantization, as
    `models.load(quantize=True)` holds them; each is quantized before the next is made.
    """
    from transformers import AutoModelForCausalLM

    from course_utils import models

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    torch.manual_seed(common.SEED)
    if four_bit:
        for name, layer in models.linear_layers(model).items():
            model.set_submodule(name, _four_bit(layer, dtype, place))
        _say_four_bit(model, dtype)
    _materialize(model, place)
    decoder = getattr(model, model.base_model_prefix)
    if hasattr(decoder, "rotary_emb"):  # its frequencies are computed, not loaded
        decoder.rotary_emb = type(decoder.rotary_emb)(config).to(place)
    left = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if left:
        raise RuntimeError(f"buffers without values: {', '.join(left)}")
    gc.collect()
    if place.type == "cuda":
        torch.cuda.empty_cache()
    return model


def _four_bit(layer: torch.nn.Module, dtype: torch.dtype, place: torch.device) -> torch.nn.Module:
    from bitsandbytes.nn import Linear4bit, Params4bit

    made = Linear4bit(
        layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=dtype,
        quant_type="nf4", compress_statistics=True, device="meta",
    )  # fmt: skip
    weight = torch.empty(layer.weight.shape, dtype=dtype, device=place).normal_(0, 0.02)
    made.weight = Params4bit(
        weight, requires_grad=False, quant_type="nf4", compress_statistics=True
    ).to(place)
    return made


def _say_four_bit(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """What `from_pretrained` notes on a model in 4 bits, for PEFT and the Trainer."""
    from transformers import BitsAndBytesConfig
    from transformers.quantizers import AutoHfQuantizer

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )  # fmt: skip
    model.hf_quantizer = AutoHfQuantizer.from_config(config, pre_quantized=False)
    model.quantization_method = config.quant_method
    model.is_loaded_in_4bit = model.is_quantized = True


def _materialize(model: torch.nn.Module, place: torch.device) -> None:
    """Values for all parameters that have none yet; tied ones stay one."""
    made: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.is_meta:
                continue
            if id(parameter) not in made:
                value = torch.empty_like(parameter, device=place)
                if value.dim() > 1:
                    value.normal_(0, 0.02)
                else:
                    value.fill_(0.0 if name == "bias" else 1.0)
                made[id(parameter)] = torch.nn.Parameter(value)
            setattr(module, name, made[id(parameter)])


def base(case: Case, place: torch.device) -> Any:
    """The model that the case starts from, on the card."""
    full_fp32 = case.method == "full" and case.made_recipe().base_precision != "bf16"
    wide = case.dtype == "fp32" or full_fp32
    dtype = torch.float32 if wide else torch.bfloat16
    config = vram_cases.config(case.config_fields())
    return random_model(config, dtype, case.method == "qlora", place).eval()


def tokenizer() -> Any:
    """A tokenizer of one word: `training.run` asks it for the padding token alone."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<pad>": 0}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<pad>")


@contextlib.contextmanager
def model_folder(fields: dict[str, Any]) -> Iterator[str]:
    """A folder with a random model of this config in bf16, as one would come from the Hub."""
    from course_utils import memory, models

    place = models.device()
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(vram_cases.config(fields), torch.bfloat16, False, place)
        model.save_pretrained(folder)
        del model
        memory.free_memory(place)
        yield folder


def encoded(rows: list[list[int]]) -> Any:
    """Rows of tokens as `encoding.encode` would hand them over, all of them labelled."""
    from course_utils.encoding import Encoded, EncodingReport

    count, longest = sum(map(len, rows)), max(map(len, rows))
    report = EncodingReport(len(rows), count, count, longest, 0, sequences=len(rows))
    return Encoded([{"input_ids": row, "labels": row} for row in rows], report)


# ----------------------------------------------------------------------- measuring one case


class Meter(common.StepMeter):
    """StepMeter that keeps the peak of the whole run, and looks at the card after each step."""

    def __init__(self, warm: int, before_mib: float | None) -> None:
        super().__init__(warm)
        self.before_mib, self.context = before_mib, 0.0

    def start(self) -> None:
        """From here on peaks count."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            self._reset()
        self.peak = self.reserved = 0

    def on_step_begin(self, args, state, control, **kwargs):
        self._begin()

    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        if state.global_step == state.max_steps:
            self.look()

    def on_train_end(self, args, state, control, **kwargs):
        """What comes after the steps counts too: the stock layers get their weights back."""

    def look(self) -> None:
        """Note what the process holds beyond what the allocator has reserved."""
        if self.before_mib is not None:
            used = (card_used_mib() - self.before_mib) / 1024
            self.context = max(self.context, used - torch.cuda.memory_reserved() / GIB)

    def memory(self) -> Row:
        """The figures in GiB; on a CPU there are none."""
        if not torch.cuda.is_available():
            return {}
        self._note()
        found = {"allocated_gib": self.peak / GIB, "reserved_gib": self.reserved / GIB}
        if self.before_mib is not None:
            found |= {"process_gib": self.reserved / GIB + self.context}
            found |= {"context_gib": self.context}
        return {name: round(value, 4) for name, value in found.items()}


def card_used_mib() -> float:
    """What all processes together hold on the first card, as nvidia-smi shows it."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def rows(case: Case) -> list[list[int]]:
    """Random tokens for all steps; packed, two rows share a sequence."""
    recipe = case.made_recipe()
    count, length = recipe.effective_batch * recipe.max_steps, case.length
    if recipe.packing:
        count, length = 2 * count, length // 2
    if recipe.base_precision == "fp8":  # its weights are rounded for a sample of so many
        count = max(count, -(-fp8.SAMPLE // length))
    draw = random.Random(common.SEED)
    top = case.config_fields()["vocab_size"]
    return [[draw.randrange(3, top) for _ in range(length)] for _ in range(count)]


def train(case: Case, place: torch.device, meter: Meter) -> Row:
    """`training.run` of the case's recipe."""
    from course_utils import training

    recipe, data = case.made_recipe(), encoded(rows(case))
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(tempfile.TemporaryDirectory())
        if case.loads:
            recipe = recipe.replace(model=stack.enter_context(model_folder(case.config_fields())))
        model = None if case.loads else base(case, place)
        meter.start()
        run = training.run(
            recipe, data, model=model, tokenizer=tokenizer(), output_dir=out, callbacks=[meter]
        )
    memory = run.report.memory
    reported = {"process_gib": memory.process_gib, "reserved_gib": memory.reserved_gib}
    return {
        "phases": memory.phases,
        "reported": {"allocated_gib": memory.peak_gib} | reported,
        "losses": [round(entry["loss"], 4) for entry in run.report.losses],
        "notes": run.report.notes,
    }


def plain(case: Case, place: torch.device, meter: Meter) -> Row:
    """transformers' Trainer, and PEFT for LoRA, as guides use them."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import Trainer, TrainingArguments, default_data_collator

    recipe, model = case.made_recipe(), base(case, place)
    if case.method == "qlora":
        model = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=bool(recipe.checkpointing),
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )  # fmt: skip
    if case.method != "full":
        targets = list(recipe.targets)
        model = get_peft_model(
            model, LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=targets,
                              task_type="CAUSAL_LM"),
        )  # fmt: skip
    data = [
        {"input_ids": row, "labels": row, "attention_mask": [1] * len(row)} for row in rows(case)
    ]
    meter.start()
    checkpointing = bool(recipe.checkpointing)
    with tempfile.TemporaryDirectory() as folder:
        keywords = common.peer_arguments(recipe.batch_size, recipe.max_steps, checkpointing, folder)
        trainer = Trainer(
            model=model, args=TrainingArguments(**keywords), train_dataset=data,
            callbacks=[meter], data_collator=default_data_collator,
        )  # fmt: skip
        trainer.train()
    return {"losses": meter.losses}


def weights(case: Case, place: torch.device, meter: Meter) -> Row:
    """The model on the card, and nothing else."""
    model = base(case, place)
    meter.start()
    meter.look()
    return {"parameters": sum(p.numel() for p in model.parameters())}


WHAT: dict[str, Callable[[Case, torch.device, Meter], Row]] = {
    "train": train,
    "plain": plain,
    "weights": weights,
}


def measure(case: Case, before_mib: float | None) -> Row:
    """The case's figures, in this process."""
    from course_utils import models

    place = models.device()
    meter = Meter(vram_cases.WARM, before_mib)
    try:
        found = WHAT[case.what](case, place, meter)
    except torch.OutOfMemoryError as error:
        return {"error": " ".join(str(error).split())[:300], "out_of_memory": True}
    found["measured"] = meter.memory()
    recipe, timed = case.made_recipe(), meter.seconds[meter.warm :]
    if case.alone and timed:
        tokens = recipe.effective_batch * case.length
        found["tokens_per_second"] = round(tokens / statistics.median(timed), 1)
    return found


def one(name: str | None, tiny: bool) -> None:
    """The child: get ready, wait for the card, measure, print the row; no name: only get ready."""
    from course_utils import training  # noqa: F401  the slow imports, before the card is taken

    print(READY, flush=True)
    word, *before = sys.stdin.readline().split() or ["stop"]
    if word != GO or name is None:
        return
    case = find(name, tiny)
    since = time.perf_counter()
    row = case.to_dict() | measure(case, float(before[0]) if before else None)
    row["seconds"] = round(time.perf_counter() - since, 1)
    print(MARK + json.dumps(row | common.facts()), flush=True)


def find(name: str, tiny: bool) -> Case:
    """The case of this name."""
    (case,) = [case for case in vram_cases.all_cases() if case.name == name]
    return case.small() if tiny else case
