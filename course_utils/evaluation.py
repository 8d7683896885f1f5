"""What a model can do: answers, task scores with an interval, held-out loss, side by side."""

from __future__ import annotations

import contextlib
import functools
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from . import scoring
from .data import Conversation, Message
from .encoding import batches, encode, parse_prompt, render
from .errors import CourseError
from .loss import mean_loss
from .models import output_layer

Progress = Callable[[int, int], None]  # (answers done, answers in all)


@dataclass(frozen=True)
class Reply:
    """What a model said: the text, its tokens (the end not counted), and whether it ended itself.

    ended: False where `max_new_tokens` cut it off.
    """

    text: str
    tokens: int
    ended: bool


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[Message]],
    **options: Any,
) -> list[str]:
    """The texts of `replies`, which takes the same options."""
    return [reply.text for reply in replies(model, tokenizer, prompts, **options)]


@torch.no_grad()
def replies(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[Message]],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 32,
    temperature: float | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
) -> list[Reply]:
    """The model's answers, in the prompts' order, without prompt and special tokens.

    A prompt is a question or a conversation that ends where the answer should begin.
    temperature: None picks the likeliest token each time (repeatable), else samples.
    max_new_tokens: per answer; the prompt does not count.  Raises CourseError for numbers that
    nothing can be generated with.
    """
    if max_new_tokens < 1 or batch_size < 1 or (temperature or 0) < 0:
        raise CourseError(
            "max_new_tokens and batch_size must be at least 1 and temperature not below 0 (now "
            f"{max_new_tokens}, {batch_size} and {temperature})."
        )
    _check_sampling(temperature, seed)
    if seed is not None:
        torch.manual_seed(seed)
    texts = [_asked(prompt, tokenizer) for prompt in prompts]
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))  # long with long: less padding
    answers = [Reply("", 0, False)] * len(texts)
    stops = stop_tokens(model, tokenizer)
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            members = order[start : start + batch_size]
            batch = left_padded([texts[i] for i in members], tokenizer, model)
            _check_room(model, batch["input_ids"].shape[1], max_new_tokens)
            produced = generate_tokens(model, tokenizer, batch, max_new_tokens, temperature)
            for i, tokens in zip(members, produced, strict=True):
                answers[i] = _reply(tokens.tolist(), stops, tokenizer)
            if progress:
                progress(min(start + batch_size, len(order)), len(order))
    finally:
        model.train(was_training)
    return answers


def _check_sampling(temperature: float | None, seed: int | None) -> None:
    """Whether logits can be divided by this temperature, and torch takes this seed."""
    if temperature and not 1e-6 <= temperature <= 1e6:  # also NaN
        raise CourseError(
            f"temperature is {temperature} and must be 0, for the likeliest answer, or between "
            "0.000001 and 1000000: about 0.7 gives varied answers."
        )
    if seed is not None and abs(seed) >= 2**63:
        raise CourseError("The seed has too many digits: take a number of 18 at most, such as 0.")


def _check_room(model: nn.Module, prompt: int, new: int) -> None:
    """Whether the model has positions for a prompt and its answer, both in tokens."""
    most = getattr(model.config, "max_position_embeddings", None)
    if most and prompt + new > most:
        raise CourseError(
            f"A prompt of {prompt:,} tokens and {new:,} new ones are more than the {most:,} that "
            "this model reads: shorten the prompt, or lower max_new_tokens."
        )


def _reply(tokens: list[int], stops: list[int], tokenizer: PreTrainedTokenizerBase) -> Reply:
    """One row of a batch, up to where it ended: behind that is padding."""
    count = next((i for i, token in enumerate(tokens) if token in stops), None)
    text = tokenizer.decode(tokens[:count], skip_special_tokens=True).strip()
    return Reply(text, len(tokens) if count is None else count, count is not None)


def _asked(prompt: str | Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> str:
    messages = parse_prompt(prompt) if isinstance(prompt, str) else list(prompt)
    if not messages:
        raise CourseError("An empty conversation cannot be answered: give it a user message.")
    return render(messages, tokenizer, ask=True)


def left_padded(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, model: nn.Module
) -> dict[str, torch.Tensor]:
    """[batch, longest] ids and mask; on the left, so that every prompt ends where answers begin."""
    special = not tokenizer.chat_template
    rows = [tokenizer(text, add_special_tokens=special)["input_ids"] for text in texts]
    longest = max(map(len, rows))
    pad = tokenizer.pad_token_id or 0
    place = next(model.parameters()).device
    return {
        "input_ids": torch.tensor([[pad] * (longest - len(r)) + r for r in rows], device=place),
        "attention_mask": torch.tensor(
            [[0] * (longest - len(r)) + [1] * len(r) for r in rows], device=place
        ),
    }


def generate_tokens(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    batch: dict[str, torch.Tensor],
    max_new_tokens: int,
    temperature: float | None = None,
    **options: Any,
) -> torch.Tensor:
    """[batch, new tokens] for left-padded prompts; `options` go to transformers' generate."""
    sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None}
    if temperature:
        sampling = {"do_sample": True, "temperature": temperature}
    with _ready_to_generate(model):
        output = model.generate(
            **batch,
            **sampling,
            **options,
            max_new_tokens=max_new_tokens,
            eos_token_id=stop_tokens(model, tokenizer),
            pad_token_id=tokenizer.pad_token_id or 0,
            use_cache=True,
        )
    return output[:, batch["input_ids"].shape[1] :]


def stop_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: the model's own, and the tokenizer's."""
    own = model.generation_config.eos_token_id
    own = own if isinstance(own, list) else [own]
    return sorted({i for i in [*own, tokenizer.eos_token_id] if i is not None})


def computing(model: nn.Module) -> Any:
    """Autocast where a short base carries an fp32 adapter; else nothing."""
    first = next(model.parameters())
    if _is_short(model):
        return torch.autocast(first.device.type, first.dtype)
    return contextlib.nullcontext()


def _is_short(model: nn.Module) -> bool:
    dtype = next(model.parameters()).dtype
    return isinstance(model, PeftModel) and dtype in (torch.bfloat16, torch.float16)


@contextlib.contextmanager
def _ready_to_generate(model: nn.Module) -> Iterator[None]:
    """Inside the block, two things that cost a CPU half its time are put right.

    An fp32 adapter on a 16-bit base is held in 16 bits, which it would be computed in anyway: cast
    once and not at each of the many small steps.  And the output layer is given contiguous states:
    otherwise torch multiplies a frozen weight by the rows of a batch one by one, and copies it (57
    MB here) for each of them.
    """
    dtype = next(model.parameters()).dtype
    adapters = [p for n, p in model.named_parameters() if "lora_" in n] if _is_short(model) else []
    held = [(p, p.data) for p in adapters if p.dtype == torch.float32]
    head = output_layer(model)
    hook = head and head.register_forward_pre_hook(lambda _, states: (states[0].contiguous(),))
    for parameter, full in held:
        parameter.data = full.to(dtype)
    try:
        yield
    finally:
        for parameter, full in held:
            parameter.data = full
        if hook:
            hook.remove()


# ---------------------------------------------------------------------------------- scores


@dataclass(frozen=True)
class Answer:
    """One graded answer; `score` between 0 and 1; `tokens` and `ended` as in `Reply`."""

    question: str
    expected: str
    answer: str
    score: float
    kind: str = ""
    tokens: int = 0
    ended: bool = True


@dataclass(frozen=True)
class Score:
    """Graded answers of one model on one set of held-out questions."""

    answers: list[Answer] = field(default_factory=list)

    @property
    def value(self) -> float:
        """Mean over the answers, between 0 and 1."""
        return sum(a.score for a in self.answers) / len(self.answers)

    @property
    def by_kind(self) -> dict[str, float]:
        """Mean per kind of task."""
        kinds = defaultdict(list)
        for answer in self.answers:
            kinds[answer.kind].append(answer.score)
        return {kind: sum(scores) / len(scores) for kind, scores in sorted(kinds.items())}

    @property
    def ended(self) -> float:
        """The share of answers that ended by themselves, between 0 and 1."""
        return sum(a.ended for a in self.answers) / len(self.answers)

    def interval(
        self, level: float = 0.95, draws: int = 2000, seed: int = 0
    ) -> tuple[float, float]:
        """Bootstrap percentile interval of the mean (Efron 1979): answers redrawn with repeats."""
        scores, rng = [a.score for a in self.answers], random.Random(seed)
        means = sorted(sum(rng.choices(scores, k=len(scores))) / len(scores) for _ in range(draws))
        cut = int((1 - level) / 2 * draws)
        return means[cut], means[-cut - 1]

    def __str__(self) -> str:
        low, high = self.interval()
        return (
            f"{100 * self.value:.1f} % of {len(self.answers)} "
            f"(95 % interval {100 * low:.0f} to {100 * high:.0f})"
        )


def score(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    **options: Any,
) -> Score:
    """Ask every conversation's prompt and grade the answers; `options` go to `generate`."""
    if not conversations:
        raise CourseError("There is nothing to score: the list of conversations is empty.")
    for conversation in conversations:  # before minutes of answers, not after
        scoring.check_of(conversation)
    answers = replies(model, tokenizer, [c.prompt for c in conversations], **options)
    grades = [scoring.grade(a.text, c) for a, c in zip(answers, conversations, strict=True)]
    return Score(
        [
            Answer(question(c), c.answer, a.text, g, c.info.get("kind", ""), a.tokens, a.ended)
            for c, a, g in zip(conversations, answers, grades, strict=True)
        ]
    )


def question(conversation: Conversation) -> str:
    """What the user asks last."""
    return conversation.prompt[-1]["content"] if conversation.prompt else ""


def held_out_loss(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    *,
    max_length: int = 512,
    batch_size: int = 8,
) -> float:
    """Loss per answer token (nats) on conversations that were not trained on."""
    encoded = encode(conversations, tokenizer, max_length=max_length)
    rows = batches(encoded, batch_size, tokenizer.pad_token_id or 0)
    return mean_loss(model, rows, autocast=functools.partial(computing, model))


def side_by_side(before: Score, after: Score, count: int = 5) -> list[dict[str, Any]]:
    """The first `count` questions with both answers, as rows for `display.side_by_side`."""
    if [a.question for a in before.answers] != [a.question for a in after.answers]:
        raise CourseError("The two scores are of different questions: score the same list twice.")
    pairs = list(zip(before.answers, after.answers, strict=True))[:count]
    return [
        {
            "question": b.question,
            "expected": b.expected,
            "before": b.answer,
            "after": a.answer,
            "ok_before": b.score == 1,
            "ok_after": a.score == 1,
        }
        for b, a in pairs
    ]


def gain(before: Score, after: Score) -> Score:
    """After less before, question by question.

    Its `interval` is that of the gain: both answers to a question are redrawn together, so that
    what makes a question hard for both does not count as chance.
    """
    if [a.question for a in before.answers] != [a.question for a in after.answers]:
        raise CourseError("The two scores are of different questions: score the same list twice.")
    return Score(
        [
            replace(a, score=a.score - b.score)
            for b, a in zip(before.answers, after.answers, strict=True)
        ]
    )
