"""The guide's numbers on data: how much is needed, how long rows are, what becomes of them."""

from __future__ import annotations

from dataclasses import replace

from .figures import Figure, Ref, cpu, needed, percent, times
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
)

CASE = "case_instruction"  # the whole instruction set, end to end
_PER_PARAMETER = 20  # tokens: compute-optimal training, arXiv:2203.15556
_GPT3_TOKENS = 300e9  # arXiv:2005.14165, section 2.2


def _pairs(count: int) -> Ref:
    """Score in % after training on so many pairs, mean of two seeds."""
    return Ref(CASE, "score_percent", {"name": f"pairs-{count}"})


FEW = (30, 100)  # tickets, of 260


def _few(method: str, rows: int, figure: str) -> Ref:
    """Of `benchmarks/tuning_settings.py`: so many tickets, so often that updates are as many."""
    rate = {"full": "1e-04", "lora": "3e-03"}[method]
    return Ref("tuning_tasks", f"rules.rows.at.{rows} {method} {rate} {300 // rows}.{figure}")


def _optimal_gb(what: str, parameters: float | None = None) -> Figure:
    """English text for compute-optimal training: of a 7B as counted, or of so many parameters."""
    size = cpu("tokens-english", "bytes_per_token")
    if parameters:
        return Figure(what, (size,), "GB", lambda b: _PER_PARAMETER * parameters * b / 1e9)
    refs = size, cpu("7b-full", "trainable")
    return Figure(what, refs, "GB", lambda b, count: _PER_PARAMETER * count * b / 1e9)


def _billion(what: str, text: str, size: str) -> Figure:
    return Figure(what, (cpu(f"tokens-{text}", f"billion_tokens_in_{size}"),), "billion tokens")


_TOKENS = "A token is few bytes of English text, fewer of Chinese."
_RULE = "By the rule of 20 tokens a parameter (arXiv:2203.15556)"

PRETRAINING = (
    Claim(
        "2.2-7b-least", "2.2", "data", "pretraining a 7B takes at least 100 GB of text",
        about(100),
        (_optimal_gb("20 tokens a parameter, English"),),
        {OFF: f"{_RULE} it takes more; models in use were trained on far more than that."},
    ),
    Claim(
        "2.2-7b-better", "2.2", "data", "pretraining a 7B: better 1 TB (1,000 GB) and more",
        at_most(1000), (_optimal_gb("20 tokens a parameter, English"),),
        {HOLDS: f"{_RULE} 1 TB is enough."},
    ),
    Claim(
        "2.2-7b-tokens", "2.2", "data", "that is billions of tokens (read as 1 to 10)",
        between(1, 10),
        (
            _billion("100 GB of English", "english", "100_gb"),
            _billion("1 TB of English", "english", "1_tb"),
            _billion("100 GB of Chinese", "chinese", "100_gb"),
        ),
        {OFF: _TOKENS},
    ),
    Claim(
        "2.2-175b-least", "2.2", "data", "pretraining a 175B takes at least 1 TB (1,000 GB)",
        about(1000),
        (Figure("the 300 billion tokens of GPT-3 (arXiv:2005.14165), as English text",
                (cpu("tokens-english", "bytes_per_token"),), "GB",
                lambda size: _GPT3_TOKENS * size / 1e9),),
        {HOLDS: "It is what GPT-3 saw, which later work holds to be far too little for its size."},
    ),
    Claim(
        "2.2-175b-better", "2.2", "data", "pretraining a 175B: better 10 TB (10,000 GB) and more",
        about(10_000), (_optimal_gb("20 tokens a parameter, English", 175e9),),
        {HOLDS: f"{_RULE}."},
    ),
    Claim(
        "2.2-175b-tokens", "2.2", "data", "that is tens of billions of tokens (read as 10 to 100)",
        between(10, 100), (_billion("1 TB of English", "english", "1_tb"),), {OFF: _TOKENS},
    ),
)  # fmt: skip

_FIRST = (
    Figure("rows of chapter 0", (cpu("quickstart", "rows"),), "rows"),
    percent("held-out messages exactly right after it", Ref("quickstart", "score_after"),
            combine=lambda share: 100 * share, judged=False),
)  # fmt: skip
_EQUAL = "all sizes trained for as many steps"
_CURVE = (
    Figure(f"rows from which on more bring less than 5 points, {_EQUAL}",
           (needed("enough_rows"),), "rows", judged=False),
    percent("of held-out messages right then, at best", needed("best_percent"), judged=False),
)  # fmt: skip


def _more(what: str, many: Ref, few: Ref) -> Figure:
    return Figure(f"more {what}", (many, few), "points", lambda a, b: a - b)


_GAIN = _more(f"from 294 pairs than from 105, 21 kinds, {_EQUAL}", _pairs(294), _pairs(105))
_MORE = (
    _more(f"from 260 tickets than from 100, {_EQUAL}",
          needed("score_percent", "rows-260"), needed("score_percent", "rows-100")),
    _GAIN, *_CURVE,
)  # fmt: skip
_NARROW = (
    "A narrow format is learnt from far fewer, and more of them bring nothing; with more to tell "
    "apart, more rows still help. What 10,000 would bring is not measured here."
)

ROWS = (
    Claim(
        "2.2-task-least", "2.2", "data", "tuning for a task takes at least 1,000 rows",
        about(1000), _FIRST,
        {OFF: "A narrow format is learnt from fewer; broad abilities take more."},
    ),
    Claim(
        "2.2-task-better", "2.2", "data",
        "tuning for a task: better 10,000 to 100,000 rows (read as: more rows, better answers)",
        at_least(0, implied=True), _MORE, {DEPENDS: _NARROW},
    ),
    Claim(
        "2.2-task-enough", "2.2", "data", "10,000 rows are usually enough",
        at_most(10_000), _FIRST,
        {HOLDS: "A small part of them was, for this task: measure the curve of your own."},
    ),
    Claim(
        "2.2-instruction-least", "2.2", "data", "instruction tuning takes at least 1,000 pairs",
        about(1000),
        (Figure(f"pairs after which half of the best score is reached, 21 kinds, {_EQUAL}",
                (Ref(CASE, "half_of_best_pairs"),), "pairs"),
         percent("of held-out instructions right at best", Ref(CASE, "best_percent"),
                 judged=False)),
        {OFF: "Two pairs of each kind brought most of what fourteen did: what counts is how many "
              "kinds there are, and whether yours are among them."},
    ),
    Claim(
        "2.2-instruction-better", "2.2", "data",
        "instruction tuning: better 50,000 pairs and more (read as: more pairs, better answers)",
        at_least(0, implied=True),
        (_GAIN,
         _more("from 105 pairs than from 42", _pairs(105), _pairs(42))),
        {HOLDS: "The score still rises with the last pairs that this set has; what 50,000 would "
                "bring is not measured here."},
    ),
    Claim(
        "2.2-lora-least", "2.2", "data", "LoRA and QLoRA take at least 100 rows",
        about(100),
        (Figure(f"rows after which half of the best score is reached, {_EQUAL}",
                (needed("half_of_best_rows"),), "rows"),
         replace(_CURVE[0], judged=True), _CURVE[1]),
        {HOLDS: "With fewer, equally long training brought less than half of the best score.",
         DEPENDS: "On how good is good enough, and on the task: measure the curve of your own.",
         OFF: "How many it takes depends on the task: measure the curve of your own."},
    ),
    Claim(
        "2.2-lora-better", "2.2, 10.1", "data",
        "LoRA and QLoRA: better 1,000 to 10,000 rows (read as: more rows, better answers)",
        at_least(0, implied=True), _MORE, {DEPENDS: _NARROW},
    ),
    Claim(
        "2.2-lora-enough", "2.2", "data",
        "a few thousand rows (read as up to 5,000) are usually enough for LoRA",
        at_most(5000), _FIRST,
        {HOLDS: "A small part of them was, for this task: measure the curve of your own."},
    ),
    Claim(
        "2.2-lora-fewer", "2.2", "data", "LoRA needs fewer rows than full fine-tuning",
        at_most(1, tolerance=0, implied=True),
        (
            *(times(f"held-out loss over full fine-tuning's, {rows} tickets, as many updates, each "
                    "at its best rate", _few("lora", rows, "loss"), _few("full", rows, "loss"))
              for rows in FEW),
            *(percent(f"right answers after {rows} tickets, {name}", _few(method, rows, "score"),
                      judged=False)
              for rows in FEW for method, name in (("full", "full"), ("lora", "LoRA"))),
        ),
        {HOLDS: "From the same rows its held-out loss is lower, with both seeds; of right answers "
                "only from 100. In longer runs on all tickets the two end level."},
    ),
)  # fmt: skip

_SETS = {
    "instruction": "embedded instruction set",
    "code": "embedded code set",
    "chat": "embedded chat set",
    "alpaca": "153 rows of Alpaca",
}


def _longer(length: int) -> tuple[Figure, ...]:
    return tuple(
        Figure(what, (cpu(f"padding-{name}", f"over_{length}"),), f"rows over {length} tokens")
        for name, what in _SETS.items()
    )


LENGTHS = (
    Claim(
        "2.4-length", "2.4, 4.1", "data", "its code pads every row to 512 tokens", about(512),
        (
            *(Figure(what, (cpu(f"padding-{name}", "mean_tokens"),), "tokens a row")
              for name, what in _SETS.items()),
            percent("of positions are then padding, instruction set",
                    cpu("padding-instruction", "wasted_percent"), judged=False),
            Figure("this course's LoRA step against that recipe, same rows, in tokens a second",
                   (Ref("cpu_speed", "ours_against_guide"),), "x", judged=False),
        ),
        {OFF: "Rows are much shorter, so most of what is computed is padding: pad to the longest "
              "row of a batch, or join rows (packing)."},
    ),
    Claim(
        "2.4-cut", "2.4, 5.1", "data", "max_length = 512 is enough for a row",
        at_most(0, implied=True),
        (
            *_longer(512),
            times("tokens a character, Chinese over English",
                  cpu("tokens-chinese", "tokens_per_character"),
                  cpu("tokens-english", "tokens_per_character"), judged=False),
        ),
        {HOLDS: "For these; count your own rows, Chinese ones above all, since cutting is silent.",
         DEPENDS: "Count your own rows, since cutting is silent."},
    ),
    Claim(
        "5.4-cut", "5.4", "data", "out of memory: max_length = 256 is enough for a row",
        at_most(0, implied=True), _longer(256),
        {HOLDS: "For these; count your own rows, since cutting is silent.",
         DEPENDS: "Where rows are longer they are cut, without a word."},
    ),
    Claim(
        "4.1-end", "4.1, 3.2", "data", "each row ends in end-of-text, so that stopping is learnt",
        at_least(100, implied=True),
        (percent("of rows keep the label of their end", cpu("end-of-text", "learnt_percent")),),
        {FALSE: "Its code makes that the padding token, and the collator ignores padding: the "
                "model never learns to stop."},
    ),
    Claim(
        "4.1-room", "4.1", "data", "its generate asks for 100 tokens", about(100),
        (
            Figure("mean room after the embedded sets' prompts", (cpu("answer-room",
                                                                      "mean_tokens"),), "tokens"),
            percent("of prompts leave none", cpu("answer-room", "none_percent"), judged=False),
        ),
        {OFF: "`max_length` counts the prompt; `max_new_tokens` does not."},
    ),
    Claim(
        "6.3-turns", "6.3", "data", "its code reads a conversation from its first two messages",
        at_least(100, implied=True),
        (percent("of the embedded chats' answers are kept", cpu("first-turn", "kept_percent")),),
        {OFF: "Later turns are lost, and with them what the dialogues are about."},
    ),
)  # fmt: skip

CLAIMS = (*PRETRAINING, *ROWS, *LENGTHS)
