"""The guide's numbers on memory, parameters and time."""

from __future__ import annotations

from .figures import Figure, cpu, gib, grid, mixed, packing, peers, percent, saving, times, yes
from .figures import Ref as _Ref
from .ledger import Claim
from .rules import (
    DEPENDS,
    FALSE,
    HOLDS,
    OFF,
    about,
    at_least,
    at_most,
    between,
    so,
)

PROCESS = "measured.process_gib"
ALPACA_ROWS = "Alpaca's rows, 3 epochs, packed"
_MEAN = packing("tokens_per_second"), _Ref("packing_h200", "lengths.mean_tokens")


def _minutes(rows: int):
    """Three epochs of so many rows."""
    return lambda rate, mean: rows * mean * 3 / rate / 60


def _hours_full(rows: int) -> Figure:
    refs = grid("full-bf16-4x512", "tokens_per_second"), _Ref("packing_h200", "lengths.mean_tokens")
    what = f"full fine-tuning in bf16, {rows:,} rows of Alpaca's mean length, 3 epochs"
    return Figure(what, refs, "h", lambda rate, mean: rows * mean * 3 / rate / 3600)


def _days(what: str, key: str) -> Figure:
    refs = grid("full-bf16-4x512", "tokens_per_second"), cpu("tokens-english", key)
    what = f"{what} of English text once, on one card"
    return Figure(what, refs, "days", lambda rate, billion: billion * 1e9 / rate / 86400)


def _card(name: str, what: str) -> Figure:
    return gib(f"{what}: all that the process holds on the card", grid(name, PROCESS))


_FULL = (
    gib("fp32 weights, mixed precision, 2 x 512 tokens", grid("full-fp32-amp")),
    gib("all in bf16, checkpointing, 1 x 512", grid("full-bf16")),
    gib(
        "all in bf16, paged 8-bit AdamW, checkpointing, 1 x 512",
        grid("full-bf16-paged8bit", PROCESS),
    ),
)
_LORA = (
    gib("r8 on q, v, fp32 weights, mixed precision, 4 x 512", grid("lora-fp32-amp")),
    gib("r8 on q, v, bf16, 4 x 512", grid("lora-bf16")),
    gib("r8 on q, v, bf16, checkpointing, offload, 4 x 512", grid("lora-bf16-checkpointing")),
    gib("r8 on q, v, bf16, checkpointing, 1 x 512", grid("lora-bf16-least")),
)
_QLORA = (
    gib("r8 on q, v, 2 x 512", grid("qlora")),
    gib("r8 on q, v, checkpointing, 2 x 512", grid("qlora-checkpointing")),
    gib("r8 on q, v, checkpointing, 1 x 256", grid("out-of-memory-cure")),
)
_ADAM = (
    "AdamW keeps two numbers for each weight beside its gradient: 16 bytes a parameter in fp32, 8 "
    "in bf16, and the guide's figure is the fp32 weights alone."
)
_BASE = (
    "The frozen weights of a 7B alone take all that the guide allows; activations come on top, "
    "and follow from batch, length and checkpointing."
)

MEMORY = (
    Claim(
        "1.3-full", "1.3, 3.1, 3.2, 5.1", "memory",
        "full fine-tuning of a 7B takes about 28 GB", about(28), _FULL,
        {OFF: _ADAM, DEPENDS: f"{_ADAM} Only 8-bit optimizer states come near it."},
    ),
    Claim(
        "10.2-full", "10.2", "memory", "full fine-tuning of a 7B with batch 4: from 28 GB on",
        about(28), (gib("all in bf16, checkpointing, 4 x 512", grid("full-bf16-4x512")),),
        {OFF: _ADAM},
    ),
    Claim(
        "3.1-code", "3.1", "memory", "its full fine-tuning code, as printed: about 28 GB for a 7B",
        about(28), (gib("transformers' Trainer, fp32, 2 x 512", grid("plain-full-fp32-amp")),),
        {OFF: "`from_pretrained` loads fp32, and mixed precision adds to that, it takes nothing."},
    ),
    Claim(
        "1.3-lora", "1.3, 3.2", "memory", "LoRA of a 7B takes about 12 GB", about(12), _LORA,
        {DEPENDS: _BASE, OFF: _BASE},
    ),
    Claim(
        "10.1-lora", "10.1", "memory", "LoRA of a 7B takes 10 to 15 GB", between(10, 15), _LORA,
        {DEPENDS: _BASE, OFF: _BASE},
    ),
    Claim(
        "3.2-code", "3.2", "memory", "its LoRA code, as printed: about 12 GB for a 7B", about(12),
        (gib("transformers' Trainer and PEFT, fp32, 4 x 512", grid("plain-lora-fp32-amp")),),
        {OFF: "The code loads the frozen weights in fp32, 4 bytes each, which is twice too much."},
    ),
    Claim(
        "1.3-qlora", "1.3", "memory", "QLoRA of a 7B takes about 4 GB", about(4), _QLORA,
        {DEPENDS: "That is the weights; training fits into little more where rows are few and "
                  "short and activations are computed again (checkpointing).",
         OFF: "That is the weights alone; activations, logits and adapters come on top."},
    ),
    Claim(
        "10.1-qlora", "10.1", "memory", "QLoRA of a 7B takes only 4 to 6 GB", between(4, 6), _QLORA,
        {HOLDS: "Layers that compute without copies, and a loss in chunks, keep it there.",
         DEPENDS: "With checkpointing it does; without, every layer's activations are kept."},
    ),
    Claim(
        "7.2-lora", "7.2", "memory", "the quick-start's LoRA takes 10 to 20 GB", between(10, 20),
        (
            gib("7B, r8 on q, v, bf16, 4 x 512", grid("lora-bf16")),
            gib("7B, r8 on q, v, bf16, checkpointing, offload, 4 x 512",
                grid("lora-bf16-checkpointing")),
            gib("135M, chapter 0", _Ref("quickstart", "peak_gib")),
        ),
        {DEPENDS: "The template trains a model of 124M, which needs far less; a 7B fits with "
                  "checkpointing.",
         OFF: "The template trains a model of 124M parameters, which needs far less."},
    ),
    Claim(
        "7.2-qlora", "7.2", "memory", "the quick-start's QLoRA takes less than 10 GB", at_most(10),
        _QLORA[:2],
        {HOLDS: "4-bit weights leave room for the activations of a thousand tokens.",
         DEPENDS: "With checkpointing it does."},
    ),
    Claim(
        "3.3-weights", "3.3", "memory", "a 7B's weights before quantization: about 14 GB",
        about(14),
        (
            gib("bf16, on the card", grid("weights-bf16")),
            gib("bf16, counted", cpu("nf4-double", "weights_7b_bf16_gib")),
        ),
        {HOLDS: "Two bytes a parameter; but the guide's own code loads fp32, which is twice it."},
    ),
    Claim(
        "3.3-nf4", "3.3", "memory", "a 7B's weights after 4-bit quantization: about 4 GB", about(4),
        (
            gib("NF4 with double quantization, on the card", grid("weights-nf4")),
            gib("NF4 with double quantization, counted", cpu("nf4-double", "weights_7b_gib")),
            gib("NF4 alone, counted", cpu("nf4", "weights_7b_gib")),
        ),
        {HOLDS: "Linear layers take half a byte a parameter and their scales; embeddings and "
                "output layer stay in 16 bits."},
    ),
    Claim(
        "3.3-saved", "3.3, 10.1", "memory", "4-bit quantization saves 70 % of the memory",
        about(70, 0.05),
        (
            percent("of a 7B's weights", cpu("nf4-double", "weights_7b_saved_percent")),
            saving("of training, checkpointing and offload, 4 x 1,024",
                   peers("qlora", True, "peak_gib"), peers("lora", True, "peak_gib")),
            saving("of training, 4 x 1,024", peers("qlora", False, "peak_gib"),
                   peers("lora", False, "peak_gib")),
        ),
        {DEPENDS: "It holds for the weights; activations, gradients and optimizer states are not "
                  "quantized, so the whole saves less."},
    ),
    Claim(
        "3.3-bits", "3.3", "memory", "quantized weights have 4 bits each", about(4, 0.05),
        (
            Figure("NF4 with double quantization", (cpu("nf4-double", "bits_per_parameter"),),
                   "bits"),
            Figure("NF4", (cpu("nf4", "bits_per_parameter"),), "bits"),
        ),
        {DEPENDS: "Each block of 64 weights has a scale; only where the scales are quantized too "
                  "do they weigh next to nothing."},
    ),
    Claim(
        "3.3-double", "3.3", "memory", "double quantization saves more memory",
        at_least(0, tolerance=0, implied=True),
        (saving("of the bytes of a quantized weight", cpu("nf4-double", "bits_per_parameter"),
                cpu("nf4", "bits_per_parameter")),),
        {HOLDS: "The scales of the blocks take 8 bits instead of 32."},
    ),
    Claim(
        "5.1-small", "5.1, 10.2", "memory", "small preset (QLoRA r8, 2 x 512): 4 to 6 GB",
        between(4, 6),
        (gib("with checkpointing, as it says, and offload", grid("preset-small")),),
        {HOLDS: "With checkpointing, which the preset has, and a loss in chunks.",
         OFF: "Embeddings, output layer and activations come on top of the 4-bit weights."},
    ),
    Claim(
        "5.1-small-card", "5.1", "memory", "small preset: for cards under 10 GB", at_most(10),
        (_card("preset-small", "with checkpointing and offload"),),
        {HOLDS: "The allocator's reserve and CUDA's own share fit too."},
    ),
    Claim(
        "5.1-medium", "5.1, 10.2", "memory", "medium preset (LoRA r16, 4 x 1,024): 10 to 15 GB",
        between(10, 15),
        (
            gib("as printed, without checkpointing", grid("preset-medium-no-checkpointing")),
            gib("with checkpointing and offload", grid("preset-medium")),
        ),
        {DEPENDS: "It takes checkpointing, which the guide leaves out of this preset, and what it "
                  "keeps has to wait in the machine's memory (offload).",
         OFF: "bf16 weights alone take nearly all of it."},
    ),
    Claim(
        "5.1-medium-card", "5.1", "memory", "medium preset: for cards of 10 to 20 GB", at_most(20),
        (
            _card("preset-medium-no-checkpointing", "as printed"),
            _card("preset-medium", "with checkpointing and offload"),
        ),
        {DEPENDS: "Only with checkpointing and offload, and then on the larger of these cards.",
         HOLDS: "On the upper half of these cards.",
         OFF: "It does not fit the largest of these cards."},
    ),
    Claim(
        "5.1-large", "5.1, 10.2", "memory", "large preset (LoRA r32 + FFN, 8 x 2,048): 15 to 20 GB",
        between(15, 20),
        (
            gib("as printed, without checkpointing", grid("preset-large-no-checkpointing")),
            gib("with checkpointing and offload", grid("preset-large")),
        ),
        {OFF: "16,384 tokens a step: what the layers keep of them is more than the weights.",
         DEPENDS: "16,384 tokens a step fit with checkpointing, which the guide leaves out, where "
                  "what it keeps waits in the machine's memory (offload)."},
    ),
    Claim(
        "5.4-memory", "5.4, 9", "memory", "batch 1 and 256 tokens with QLoRA cure out of memory",
        at_least(0, tolerance=0, implied=True),
        (saving("less than LoRA in bf16 with 4 x 512", grid("out-of-memory-cure"),
                grid("lora-bf16")),),
        {HOLDS: "Fewer tokens a step and smaller weights; what is left is the weights."},
    ),
    Claim(
        "5.4-checkpointing", "5.4, 9", "memory", "gradient checkpointing saves memory",
        at_least(0, tolerance=0, implied=True),
        (
            saving("LoRA of a 7B, 4 x 1,024, with offload", peers("lora", True, "peak_gib"),
                   peers("lora", False, "peak_gib")),
            saving("QLoRA of a 7B, 4 x 1,024, with offload", peers("qlora", True, "peak_gib"),
                   peers("qlora", False, "peak_gib")),
        ),
        {HOLDS: "Layers keep their input alone (offload: in the machine's memory) and compute the "
                "rest again; it costs time."},
    ),
    Claim(
        "5.4-mixed", "5.4, 3.1", "memory", "out of memory: fp16 = True (mixed precision) saves",
        at_least(0, tolerance=0, implied=True),
        (
            saving("LoRA of a 135M on fp32 weights, 4 x 256 tokens: by autocast, against fp32",
                   mixed("fp32 weights, mixed precision", 4), mixed("all in fp32", 4)),
            saving("the same, 1 x 128 tokens",
                   mixed("fp32 weights, mixed precision", 1), mixed("all in fp32", 1)),
            saving("weights in 16 bits as well, 4 x 256", mixed("16-bit weights", 4),
                   mixed("all in fp32", 4), judged=False),
        ),
        {
            HOLDS: "Activations are kept in 16 bits. The weights stay in fp32, with a copy of 16 "
                   "bits beside them: weights held in 16 bits save more.",
            DEPENDS: "Activations are kept in 16 bits, but fp32 weights stay and get a copy of 16 "
                     "bits beside them: with few tokens that costs more than it saves. Hold frozen "
                     "weights in 16 bits.",
        },
    ),
    Claim(
        "5.4-batch", "5.4, 9, 5.3", "memory", "a smaller batch takes less memory",
        at_least(0, tolerance=0, implied=True),
        (saving("QLoRA of a 7B: 2 x 512 against 4 x 512", grid("qlora"), grid("qlora-4x512")),),
        {HOLDS: "Activations shrink with the tokens of a step; the weights stay."},
    ),
)  # fmt: skip

PARAMETERS = (
    Claim(
        "1.3-all", "1.3, 3.2", "parameters", "full fine-tuning updates 100 % of a 7B's parameters",
        about(100, 0),
        (
            percent("trainable", cpu("7b-full", "share_percent")),
            Figure("trainable", (cpu("7b-full", "trainable"),), "parameters", judged=False),
        ),
        {HOLDS: "By definition."},
    ),
    Claim(
        "1.3-share", "1.3, 10.1", "parameters", "LoRA updates 0.1 to 1 % of the parameters",
        between(0.1, 1),
        (
            percent("7B, r8 on q, v", cpu("7b-lora-r8-qv", "share_percent")),
            percent("r16 on q, k, v, o", cpu("7b-lora-r16-attention", "share_percent")),
            percent("r8 on all linear layers", cpu("7b-lora-r8-linear", "share_percent")),
            percent("r32 on all linear layers", cpu("7b-lora-r32-linear", "share_percent")),
        ),
        {DEPENDS: "It grows with rank and with the layers chosen; the guide's own smallest and "
                  "largest setting lie outside."},
    ),
    Claim(
        "3.2-parameters", "3.2, 5.1", "parameters", "LoRA r8 trains about 10M parameters of a 7B",
        about(10e6),
        (Figure("r8 on q, v", (cpu("7b-lora-r8-qv", "trainable"),), "parameters"),),
        {OFF: "r x (inputs + outputs) for each of 64 layers; no usual choice of layers gives 10M: "
              "all attention 8.4M, all linear 20M."},
    ),
    Claim(
        "3.2-share", "3.2", "parameters", "that is 0.14 % of them", about(0.14),
        (percent("r8 on q, v", cpu("7b-lora-r8-qv", "share_percent")),),
        {OFF: "It follows from the 10M, which are too many for these layers."},
    ),
    Claim(
        "3.2-saved", "3.2", "parameters", "LoRA saves 99.86 % of the parameters",
        about(99.86, 0.01),
        (percent("fewer trained ones, r8 on q, v", cpu("7b-lora-r8-qv", "saved_percent")),),
        {HOLDS: "Of trained parameters; the frozen ones stay in memory, so memory falls far less."},
    ),
    Claim(
        "5.1-small-share", "5.1", "parameters", "small preset trains about 0.1 % of a 7B",
        about(0.1), (percent("r8 on q, v", cpu("7b-lora-r8-qv", "share_percent")),),
        {OFF: "Two of the seven linear layers of a block, at rank 8, are less."},
    ),
    Claim(
        "5.1-medium-parameters", "5.1", "parameters", "medium preset trains about 20M parameters",
        about(20e6),
        (Figure("r16 on q, k, v, o", (cpu("7b-lora-r16-attention", "trainable"),), "parameters"),),
        {HOLDS: "Rounded up."},
    ),
    Claim(
        "5.1-medium-share", "5.1", "parameters", "medium preset trains about 0.3 % of a 7B",
        about(0.3),
        (percent("r16 on q, k, v, o", cpu("7b-lora-r16-attention", "share_percent")),),
        {HOLDS: "Rounded up."},
    ),
    Claim(
        "3.3-printed", "3.3", "parameters",
        "the share that its QLoRA code prints is the share that is trained",
        about(1, 0.05),
        (
            times("7B, r8 on q, v: printed share over the real one",
                  cpu("nf4-double", "share_7b_by_numel_percent"),
                  cpu("7b-lora-r8-qv", "share_percent")),
            Figure("the embedded model in 4 bits: real parameters over counted ones",
                   (cpu("packed-count", "factor"),), "x"),
        ),
        {OFF: "`numel` of a 4-bit weight counts bytes, and a byte holds two weights."},
    ),
    Claim(
        "5.3-parameters", "5.3", "parameters", "a larger rank has more parameters",
        at_least(1, tolerance=0, implied=True),
        (times("r64 over r8, on q, v", cpu("7b-lora-r64-qv", "trainable"),
               cpu("7b-lora-r8-qv", "trainable")),),
        {HOLDS: "In proportion."},
    ),
    Claim(
        "9-gpt2", "9, 3.2", "parameters", "GPT-2's layer for adapters is c_attn", so(),
        (yes("found in GPT2LMHeadModel", cpu("layers-gpt2", "found")),),
        {HOLDS: "One layer for q, k and v; c_proj and c_fc can be adapted too."},
    ),
    Claim(
        "9-llama", "9", "parameters", "LLaMA's are q_proj and v_proj", so(),
        (yes("found in LlamaForCausalLM", cpu("layers-llama", "found")),),
        {HOLDS: "They are two of seven; 'all-linear' names all."},
    ),
    Claim(
        "9-bert", "9", "parameters", "BERT's are query and value", so(),
        (yes("found in BertForMaskedLM", cpu("layers-bert", "found")),),
        {HOLDS: "BERT is no causal model, so its adapters are for other tasks than this course's."},
    ),
)  # fmt: skip

TIME = (
    Claim(
        "1.3-pretraining-time", "1.3", "time",
        "pretraining takes weeks to months (read as 7 to 180 days)",
        between(7, 180),
        (
            _days("the guide's 100 GB", "billion_tokens_in_100_gb"),
            _days("its 1 TB", "billion_tokens_in_1_tb"),
        ),
        {HOLDS: "At one card's measured rate.",
         DEPENDS: "It is tokens over rate: clusters buy time with cards.",
         OFF: "It is tokens over rate, and one card is not a cluster."},
    ),
    Claim(
        "1.3-full-time", "1.3", "time", "full fine-tuning takes hours to days (read as 1 to 168 h)",
        between(1, 168), (_hours_full(10_000), _hours_full(100_000)),
        {OFF: "Tokens over rate: on one such card its recommended rows take less.",
         DEPENDS: "Tokens over rate: on one such card its fewest recommended rows take less.",
         HOLDS: "It is tokens over rate."},
    ),
    Claim(
        "1.3-lora-time", "1.3", "time", "LoRA takes minutes to hours (read as 1 to 1,440 minutes)",
        between(1, 1440),
        (
            Figure(f"7B, 10,000 of {ALPACA_ROWS}", _MEAN, "minutes", _minutes(10_000)),
            Figure(f"7B, 50,000 of {ALPACA_ROWS}", _MEAN, "minutes", _minutes(50_000)),
            Figure("135M, chapter 0", (_Ref("quickstart", "train_seconds"),), "minutes",
                   lambda seconds: seconds / 60),
        ),
        {HOLDS: "Tokens over rate; rows without padding and a fast step make it minutes."},
    ),
    Claim(
        "1.3-qlora-time", "1.3", "time", "QLoRA is as quick as LoRA",
        about(1),
        (
            times("tokens a second, QLoRA over LoRA, 7B, checkpointing and offload",
                  peers("qlora", True, "tokens_per_second"),
                  peers("lora", True, "tokens_per_second")),
            times("without checkpointing", peers("qlora", False, "tokens_per_second"),
                  peers("lora", False, "tokens_per_second")),
            times("in TRL, checkpointing",
                  peers("qlora", True, "tokens_per_second", "trl"),
                  peers("lora", True, "tokens_per_second", "trl")),
        ),
        {HOLDS: "Weights are unpacked once for thousands of tokens, which costs little."},
    ),
    Claim(
        "3.2-time", "2.2, 3.1, 3.2", "time", "LoRA trains faster than full fine-tuning",
        at_least(1, tolerance=0, implied=True),
        (
            times("tokens a second, LoRA over full, 7B, bf16, checkpointing, in TRL",
                  peers("lora", True, "tokens_per_second", "trl"),
                  peers("full", True, "tokens_per_second", "trl")),
            times("in transformers' Trainer",
                  peers("lora", True, "tokens_per_second", "plain"),
                  peers("full", True, "tokens_per_second", "plain")),
            times("in this course's, with layers of its own and offload for LoRA",
                  peers("lora", True, "tokens_per_second"),
                  peers("full", True, "tokens_per_second")),
        ),
        {HOLDS: "No gradients and no optimizer step for the frozen weights.",
         DEPENDS: "No gradients and no optimizer step for the frozen weights, but small steps more "
                  "for each adapter, which take longer than that in stock layers.",
         FALSE: "The passes through the layers are the same."},
    ),
)  # fmt: skip

CLAIMS = (*MEMORY, *PARAMETERS, *TIME)
