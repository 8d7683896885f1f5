"""A chat in the notebook: answers appear while they are written, and one model stands by another.

Built from what ipywidgets 7.7 (Colab's) has, ``on_click`` and ``HTML``: see `widgets`.
"""

from __future__ import annotations

import html
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ipywidgets
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from course_utils.data import Message
from course_utils.dialogue import Stream, fit_history
from course_utils.errors import CourseError

from .style import COLORS
from .widgets import view

REDRAW_SECONDS = 0.05  # between two pictures of an answer that grows
ENDS = {"ended": "ended by itself", "stopped": "stopped", "cut off": "cut off"}
_BUBBLE = "border-radius:8px;padding:5px 9px;margin:4px 0;white-space:pre-wrap;line-height:1.4"
_SIDES = {
    "user": f"{_BUBBLE};margin-left:18%;background:rgba(45,108,193,.14)",
    "assistant": f"{_BUBBLE};margin-right:10%;background:rgba(128,140,160,.16)",
    "system": f"{_BUBBLE};opacity:.6;font-size:85%",
}
_COLUMN = "overflow-wrap:anywhere;padding:2px 8px"


@dataclass
class Voice:
    """One side of the chat: a model, what was said to it and by it, and how its answers ended."""

    name: str
    model: nn.Module
    adapter: bool = True  # False: with its adapter switched off
    messages: list[Message] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # one for each answer


class ChatBox:
    """The chat.  ``text`` is the line to write in; ``send``, ``stop`` and ``clear`` are buttons;
    ``panels`` holds the HTML of each voice by name, ``status`` a line on what is going on.
    """

    def __init__(
        self,
        voices: Sequence[Voice],
        tokenizer: PreTrainedTokenizerBase,
        *,
        system: str | None = None,
        max_new_tokens: int = 64,
        context_tokens: int = 1024,
    ) -> None:
        self._tokenizer, self._most, self._room = tokenizer, max_new_tokens, context_tokens
        self._system = [{"role": "system", "content": system}] if system else []
        self.voices = {voice.name: voice for voice in voices}
        self._stop, self._turn = threading.Event(), threading.Lock()
        self._worker: threading.Thread | None = None
        self._failed = ""
        layout = ipywidgets.Layout(width="60%")
        self.text = ipywidgets.Text(placeholder="Write a message", layout=layout)
        self.send, self.stop, self.clear = map(_button, ("Send", "Stop", "Clear"))
        self.stop.disabled = True
        self.status = ipywidgets.HTML()
        share = f"{100 / max(1, len(self.voices)):.0f}%"
        self.panels = {
            name: ipywidgets.HTML(layout=ipywidgets.Layout(width=share)) for name in self.voices
        }
        self._forget()
        self.send.on_click(self._on_send)
        self.stop.on_click(lambda _: self.interrupt())
        self.clear.on_click(self._on_clear)
        with warnings.catch_warnings():  # ipywidgets 8 would rather have no Enter key
            warnings.simplefilter("ignore", DeprecationWarning)
            self.text.on_submit(self._on_send)
        line = ipywidgets.HBox([self.text, self.send, self.stop, self.clear])
        self.box = ipywidgets.VBox(
            [ipywidgets.HBox(list(self.panels.values())), line, self.status],
        )

    # --------------------------------------------------------------------------- what it does

    def ask(self, text: str) -> dict[str, str]:
        """Say `text` to every voice and wait: name -> answer.  As the button does, in a cell."""
        self._begin(text)
        self._worker.join()
        if self._failed:
            raise CourseError(self._failed)
        return {name: voice.messages[-1]["content"] for name, voice in self.voices.items()}

    def interrupt(self) -> None:
        """End the answers after the token that the model is at; what was written stays."""
        self._stop.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until nobody writes any more; whether that is so."""
        if self._worker is not None:
            self._worker.join(seconds)
        return not self.busy

    @property
    def busy(self) -> bool:
        """Whether an answer is being written."""
        return self._worker is not None and self._worker.is_alive()

    def _begin(self, text: str) -> None:
        """Start the answers in a thread, so that the kernel can still hear the stop button."""
        if not text.strip():
            raise CourseError("There is nothing to send: write a message first.")
        with self._turn:
            if self.busy:
                raise CourseError("The last message is still being answered: wait, or stop it.")
            self._failed = ""
            self._worker = threading.Thread(target=self._answer, args=(text.strip(),), daemon=True)
            self._set_busy(True)
            self._worker.start()

    def _answer(self, text: str) -> None:
        """In the thread: one voice after the other, since they share the machine's cores."""
        try:
            for voice in self.voices.values():
                voice.messages.append({"role": "user", "content": text})
                voice.messages.append({"role": "assistant", "content": ""})
                voice.notes.append("")
                self._draw(voice)
            for voice in self.voices.values():
                self._speak(voice)
            self.status.value = ""
        except Exception as error:
            self._failed = f"{type(error).__name__}: {error}".replace("CourseError: ", "")
            said = html.escape(self._failed)
            self.status.value = f'<span style="color:{COLORS["bad"]}">{said}</span>'
            self._take_back()
        finally:
            self._set_busy(False)

    def _take_back(self) -> None:
        """After a mistake: the message where it was not answered, so that it can be sent again."""
        for voice in self.voices.values():
            if voice.messages and voice.messages[-1] == {"role": "assistant", "content": ""}:
                del voice.messages[-2:], voice.notes[-1]
                self._draw(voice)

    def _speak(self, voice: Voice) -> None:
        """Stream one voice's answer into its panel."""
        self._stop.clear()  # the button ends the answer that is being written, not the next one's
        self.status.value = html.escape(f"{voice.name} is writing ...")
        prompt = fit_history(voice.messages[:-1], self._tokenizer, self._room)
        stream = Stream(
            voice.model, self._tokenizer, prompt, max_new_tokens=self._most, stop=self._stop,
            adapter=voice.adapter,
        )  # fmt: skip
        began = drawn = time.perf_counter()
        for piece in stream:
            voice.messages[-1]["content"] += piece
            if (now := time.perf_counter()) - drawn >= REDRAW_SECONDS:
                self._draw(voice)
                drawn = now
        seconds = time.perf_counter() - began
        voice.messages[-1]["content"] = voice.messages[-1]["content"].strip()
        voice.notes[-1] = f"{stream.tokens} tokens in {seconds:.1f} s, {ENDS[stream.end]}"
        self._draw(voice)

    # ---------------------------------------------------------------------------- the buttons

    def _on_send(self, _: Any) -> None:
        text = self.text.value
        if self.busy or not text.strip():
            return
        self.text.value = ""
        self._begin(text)

    def _on_clear(self, _: Any) -> None:
        if not self.busy:
            self._forget()

    def _forget(self) -> None:
        """Begin a new chat."""
        self.status.value = ""
        for voice in self.voices.values():
            voice.messages, voice.notes = list(self._system), []
            self._draw(voice)

    def _set_busy(self, busy: bool) -> None:
        self.send.disabled = self.clear.disabled = busy
        self.stop.disabled = not busy

    # -------------------------------------------------------------------------- what is shown

    def _draw(self, voice: Voice) -> None:
        self.panels[voice.name].value = _column(voice)

    def __repr__(self) -> str:
        parts = []
        for voice in self.voices.values():
            notes = iter(voice.notes)
            lines = [f"[{voice.name}]"]
            for message in voice.messages:
                note = next(notes, "") if message["role"] == "assistant" else ""
                note = f"  ({note})" if note else ""
                lines.append(f"{message['role'] + ':':11}{message['content']}{note}")
            parts.append("\n".join(lines))
        return "\n\n".join(parts)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        columns = "".join(
            f'<td style="vertical-align:top;text-align:left">{_column(voice)}</td>'
            for voice in self.voices.values()
        )
        still = f'<table style="width:100%;table-layout:fixed"><tr>{columns}</tr></table>'
        return view(self.box, {"text/plain": repr(self), "text/html": still})


def chat(
    speaking: nn.Module | Mapping[str, nn.Module],
    tokenizer: PreTrainedTokenizerBase,
    *,
    system: str | None = None,
    max_new_tokens: int = 64,
    context_tokens: int = 1024,
) -> ChatBox:
    """A chat with one model, or with several side by side (name -> model), each with its own past.

    A PEFT model by itself speaks twice: as "base", with its adapter switched off, and as "tuned";
    so two chats need the memory of one model.  system: a message that stands above the chat.
    max_new_tokens: of an answer.  context_tokens: a prompt's at most; older turns are forgotten.
    """
    if max_new_tokens < 1 or context_tokens < 1:
        raise CourseError(
            f"max_new_tokens and context_tokens must be at least 1 (now {max_new_tokens} and "
            f"{context_tokens})."
        )
    if isinstance(speaking, PeftModel):
        voices = [Voice("base", speaking, adapter=False), Voice("tuned", speaking)]
    elif isinstance(speaking, nn.Module):
        voices = [Voice("model", speaking)]
    else:
        voices = [Voice(name, model) for name, model in speaking.items()]
    if not voices:
        raise CourseError("There is nobody to chat with: give a model, or a dict of them.")
    return ChatBox(
        voices, tokenizer, system=system, max_new_tokens=max_new_tokens,
        context_tokens=context_tokens,
    )  # fmt: skip


def _button(name: str) -> ipywidgets.Button:
    return ipywidgets.Button(description=name, layout=ipywidgets.Layout(width="70px"))


def _column(voice: Voice) -> str:
    """A voice's chat as HTML; all that was written is shown as text."""
    notes, parts = iter(voice.notes), [f"<b>{html.escape(voice.name)}</b>"]
    for message in voice.messages:
        text = html.escape(message["content"]) or "…"
        parts.append(f'<div style="{_SIDES[message["role"]]}">{text}</div>')
        if message["role"] == "assistant" and (note := next(notes, "")):
            parts.append(f'<div style="opacity:.6;font-size:80%">{html.escape(note)}</div>')
    return f'<div style="{_COLUMN}">{"".join(parts)}</div>'
