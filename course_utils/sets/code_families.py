"""The families of the code set; `code` explains what a family is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from course_utils.sets.code_task import Task
from course_utils.sets.dice import Dice
from course_utils.sets.words import listed

FAMILIES: dict[str, Callable[[Dice], Task]] = {}
Maker = Callable[[Dice], Task]

NUMBER_LISTS = ("numbers", "values", "items", "scores", "amounts")
WORD_LISTS = ("words", "names", "labels", "tags")
TEXTS = ("text", "line", "title", "message")
TABLES = ("stock", "prices", "counts", "points")
RECORDS = ("rows", "records", "users", "orders")
FIELDS = listed(
    """
    age, price, size, score, weight, year, level, total, width, height, length, rating, rank,
    votes, pages, stars, floor, seats, speed, distance
    """
)
WORDS = listed(
    """
    apple, boat, cloud, delta, eagle, fig, green, house, iris, jam, kiwi, lamp, moon, north,
    ocean, pear, queen, river, sun, tea, unit, violet, wind, yak, ant, bell, corn, dune, elm,
    fox, goat, hill, ink, jet, kite, leaf
    """
)


def family(name: str) -> Callable[[Maker], Maker]:
    """Register a maker under the family's name."""

    def register(maker: Maker) -> Maker:
        FAMILIES[name] = maker
        return maker

    return register


def ints(around: int = 0, spread: int = 12) -> Callable[[Dice], tuple[list[int]]]:
    """Draw a list of whole numbers near a value, so that borders are hit."""

    def draw(dice: Dice) -> tuple[list[int]]:
        near = [around, around + 1, around - 1]
        far = [around + dice.number(-spread, spread) for _ in range(dice.number(0, 4))]
        return (dice.sample(near + far, dice.number(1, 3 + len(far))),)

    return draw


def word_list(dice: Dice) -> tuple[list[str]]:
    """Draw two to five words."""
    return (dice.sample(WORDS, dice.number(2, 5)),)


def table(around: int) -> Callable[[Dice], tuple[dict[str, int]]]:
    """Draw a dict from words to numbers near a value."""

    def draw(dice: Dice) -> tuple[dict[str, int]]:
        keys = dice.sample(WORDS, dice.number(2, 4))
        return ({key: around + dice.number(-2, 2) for key in keys},)

    return draw


def records(field: str, around: int) -> Callable[[Dice], tuple[list[dict[str, Any]]]]:
    """Draw two to four dicts with an id and one field near a value."""

    def draw(dice: Dice) -> tuple[list[dict[str, Any]]]:
        values = [around + dice.number(-2, 2) for _ in range(dice.number(2, 4))]
        return ([{"id": i + 1, field: value} for i, value in enumerate(values)],)

    return draw


@family("keep_compare")
def keep_compare(dice: Dice) -> Task:
    xs, k = dice.pick(NUMBER_LISTS), dice.number(-9, 60)
    sign, word, off = dice.pick(((">", "greater than", ">="), ("<", "less than", "<=")))
    name = f"{'above' if sign == '>' else 'below'}_{abs(k)}" + ("_neg" if k < 0 else "")
    does = dice.pick(("returns the {xs} {w} {k}", "keeps only the {xs} {w} {k}"))
    body = "[n for n in {} if n {} {}]"
    wrong = (body.format(xs, off, k), body.format(xs, "<>"["<>".index(sign) - 1], k))
    wrong += (f"[n {sign} {k} for n in {xs}]", f"len([n for n in {xs} if n {sign} {k}])")
    filled = does.format(xs=xs, w=word, k=k)
    return Task(name, xs, filled, body.format(xs, sign, k), wrong, ints(k))


@family("keep_multiples")
def keep_multiples(dice: Dice) -> Task:
    xs, k = dice.pick(NUMBER_LISTS), dice.number(2, 45)
    does = dice.pick(
        ("keeps the {xs} that are divisible by {k}", "returns the multiples of {k} in {xs}")
    )
    wrong = (f"[n for n in {xs} if n % {k}]", f"[n for n in {xs} if n // {k}]")
    wrong += (f"[n * {k} for n in {xs}]",)
    body = f"[n for n in {xs} if n % {k} == 0]"
    return Task(f"multiples_of_{k}", xs, does.format(xs=xs, k=k), body, wrong, ints(k * 2, k * 3))


@family("drop_value")
def drop_value(dice: Dice) -> Task:
    xs, k = dice.pick(NUMBER_LISTS), dice.number(0, 40)
    does = dice.pick(("returns the {xs} without the value {k}", "removes every {k} from {xs}"))
    wrong = (f"[n for n in {xs} if n == {k}]", f"{xs}[1:]", f"[n for n in {xs} if n > {k}]")
    body = f"[n for n in {xs} if n != {k}]"
    return Task(f"without_{k}", xs, does.format(xs=xs, k=k), body, wrong, ints(k))


@family("sum_compare")
def sum_compare(dice: Dice) -> Task:
    xs, k = dice.pick(NUMBER_LISTS), dice.number(1, 60)
    sign, word, off = dice.pick(((">", "greater than", ">="), ("<", "less than", "<=")))
    name = f"sum_{'above' if sign == '>' else 'below'}_{k}"
    does = dice.pick(("returns the sum of the {xs} {w} {k}", "adds up all {xs} {w} {k}"))
    wrong = (f"sum({xs})", f"sum(n for n in {xs} if n {off} {k})")
    wrong += (f"sum(1 for n in {xs} if n {sign} {k})",)
    body = f"sum(n for n in {xs} if n {sign} {k})"
    return Task(name, xs, does.format(xs=xs, w=word, k=k), body, wrong, ints(k))


@family("count_compare")
def count_compare(dice: Dice) -> Task:
    xs, k = dice.pick(NUMBER_LISTS), dice.number(0, 60)
    sign, word, off = dice.pick(((">=", "at least", ">"), ("<=", "at most", "<")))
    name = f"count_{'min' if sign == '>=' else 'max'}_{k}"
    does = dice.pick(("counts the {xs} that are {w} {k}", "returns how many {xs} are {w} {k}"))
    wrong = (f"len({xs})", f"sum(1 for n in {xs} if n {off} {k})")
    wrong += (f"sum(n for n in {xs} if n {sign} {k})",)
    body = f"sum(1 for n in {xs} if n {sign} {k})"
    return Task(name, xs, does.format(xs=xs, w=word, k=k), body, wrong, ints(k))


@family("count_value")
def count_value(dice: Dice) -> Task:
    xs, k = dice.pick(NUMBER_LISTS), dice.number(0, 60)

    def draw(dice: Dice) -> tuple[list[int]]:
        return ([k + dice.number(0, 1) for _ in range(dice.number(2, 6))],)

    does = dice.pick(("returns how often {k} stands in {xs}", "counts how many {xs} equal {k}"))
    wrong = (f"{k} in {xs}", f"len({xs})", f"{xs}.index({k})", f"int({k} in {xs})")
    return Task(f"count_{k}", xs, does.format(xs=xs, k=k), f"{xs}.count({k})", wrong, draw)


@family("arithmetic_each")
def arithmetic_each(dice: Dice) -> Task:
    xs, k = dice.pick(NUMBER_LISTS), dice.number(2, 40)
    sign, name, text = dice.pick(
        (
            ("+", f"add_{k}", "adds {k} to each of the {xs}"),
            ("*", f"times_{k}", "multiplies each of the {xs} by {k}"),
            ("-", f"minus_{k}", "subtracts {k} from each of the {xs}"),
        )
    )
    other = {"+": "-", "*": "+", "-": "*"}[sign]
    wrong = (f"[n {other} {k} for n in {xs}]", f"sum(n {sign} {k} for n in {xs})")
    wrong += (f"[n {sign} {k} for n in {xs}][:1]",)
    does = f"{text.format(k=k, xs=xs)} and returns the list"
    return Task(name, xs, does, f"[n {sign} {k} for n in {xs}]", wrong, ints(3))


@family("clamp")
def clamp(dice: Dice) -> Task:
    low = dice.number(0, 40)
    high = low + dice.number(5, 50)
    arg = dice.pick(("n", "value", "x"))
    does = dice.pick(
        ("limits {a} to the range {l} to {h}", "returns {a}, but at least {l} and at most {h}")
    )
    wrong = (f"min({low}, max({high}, {arg}))", f"max({low}, {arg})", f"min({high}, {arg})")
    body = f"max({low}, min({high}, {arg}))"
    does = does.format(a=arg, l=low, h=high)
    return Task(
        f"clamp_{low}_{high}", arg, does, body, wrong, lambda d: (d.number(low - 20, high + 20),)
    )


@family("slice")
def slice_ends(dice: Dice) -> Task:
    xs, k = dice.pick(NUMBER_LISTS + WORD_LISTS), dice.number(2, 11)
    name, text, body = dice.pick(
        (
            (f"first_{k}", "returns the first {k} of the {xs}", f"{xs}[:{k}]"),
            (f"last_{k}", "returns the last {k} of the {xs}", f"{xs}[-{k}:]"),
            (f"skip_{k}", "returns the {xs} without the first {k}", f"{xs}[{k}:]"),
            (f"drop_last_{k}", "returns the {xs} without the last {k}", f"{xs}[:-{k}]"),
        )
    )
    name = f"{name}_{xs}"
    right = ("[:{}]", "[-{}:]", "[{}:]", "[:-{}]")
    wrong = tuple(xs + s.format(k) for s in right if xs + s.format(k) != body) + (f"{xs}[{k}]",)
    draw = (
        (lambda d: (d.sample(WORDS, k + d.number(1, 4)),))
        if xs in WORD_LISTS
        else (lambda d: (d.sample(range(1, 50), k + d.number(1, 4)),))
    )
    return Task(name, xs, text.format(k=k, xs=xs), body, wrong, draw)


@family("every_kth")
def every_kth(dice: Dice) -> Task:
    xs, k, start = dice.pick(NUMBER_LISTS), dice.number(2, 9), dice.number(0, 5)
    nth = {2: "2nd", 3: "3rd"}.get(k, f"{k}th")
    does = dice.pick(
        (
            f"returns every {nth} of the {xs}, starting at index {start}",
            f"starts at index {start} of {xs} and takes each {nth} element",
        )
    )
    body = f"{xs}[{start}::{k}]" if start else f"{xs}[::{k}]"
    wrong = (f"{xs}[{start}:{k}]", f"{xs}[{start + 1}::{k}]", f"{xs}[{start}::{k + 1}]")
    return Task(
        f"every_{k}_from_{start}",
        xs,
        does,
        body,
        wrong,
        lambda d: (d.sample(range(60), 2 * k + start + 2),),
    )


@family("starts_ends")
def starts_ends(dice: Dice) -> Task:
    xs, letter = dice.pick(WORD_LISTS), dice.pick("abcdefghiklmnoprstuw")
    verb = dice.pick(("start", "end"))
    does = dice.pick(("keeps the {xs} that {v} with '{c}'", "returns all {xs} that {v} with '{c}'"))
    other = "end" if verb == "start" else "start"
    body = '[w for w in {} if w.{}swith("{}")]'
    wrong = (body.format(xs, other, letter), f"[w for w in {xs} if {letter!r} in w]")
    wrong += (f"[w.{verb}swith({letter!r}) for w in {xs}]",)

    def draw(dice: Dice) -> tuple[list[str]]:
        extra = [letter + "x" + dice.pick(WORDS), dice.pick(WORDS) + letter, f"q{letter}q"]
        return (dice.sample([*dice.sample(WORDS, 2), *extra], dice.number(3, 5)),)

    filled = does.format(xs=xs, v=verb, c=letter)
    return Task(f"{verb}_with_{letter}", xs, filled, body.format(xs, verb, letter), wrong, draw)


@family("word_length")
def word_length(dice: Dice) -> Task:
    xs, k = dice.pick(WORD_LISTS), dice.number(2, 14)
    sign, text, off = dice.pick(
        ((">", "longer than", ">="), ("<", "shorter than", "<="), ("==", "exactly as long as", ">"))
    )
    does = dice.pick(
        ("returns the {xs} that are {t} {k} letters", "keeps the {xs} {t} {k} letters")
    )
    name = {">": "longer_than", "<": "shorter_than", "==": "length"}[sign] + f"_{k}"
    wrong = (f"[w for w in {xs} if len(w) {off} {k}]", f"[len(w) for w in {xs}]")
    wrong += (f"[w for w in {xs} if len(w) != {k}]",)

    def draw(dice: Dice) -> tuple[list[str]]:
        letters = "abcdefghijklmnopqrst"
        sizes = [k, k + 1, k - 1, dice.number(1, 12)]
        return (["".join(dice.sample(letters, size)) for size in dice.sample(sizes, 3)],)

    body = f"[w for w in {xs} if len(w) {sign} {k}]"
    return Task(name, xs, does.format(xs=xs, t=text, k=k), body, wrong, draw)


SEPARATORS = (
    ("-", "a hyphen", "hyphen"), ("_", "an underscore", "underscore"), (" ", "a space", "space"),
    ("/", "a slash", "slash"), (";", "a semicolon", "semicolon"), ("|", "a bar", "bar"),
    (":", "a colon", "colon"), (", ", "a comma and a space", "comma"), (".", "a dot", "dot"),
    ("+", "a plus sign", "plus"), ("#", "a hash sign", "hash"), ("=", "an equals sign", "equals"),
)  # fmt: skip


@family("join")
def join(dice: Dice) -> Task:
    xs, k = dice.pick(WORD_LISTS), dice.number(2, 5)
    mark, text, name = dice.pick(SEPARATORS)
    part, chosen = dice.pick((("first", f"{xs}[:{k}]"), ("last", f"{xs}[-{k}:]")))
    does = dice.pick(
        (
            "joins the {p} {k} of the {xs} with {t}",
            "returns the {p} {k} {xs} as one string with {t} between them",
        )
    )
    wrong = (f"{mark!r}.join({xs})", f'"".join({chosen})', f"{mark!r}.join({chosen}) + {mark!r}")
    body = f"{quoted(mark)}.join({chosen})"
    filled = does.format(p=part, k=k, xs=xs, t=text)
    return Task(
        f"join_{part}_{k}_{name}", xs, filled, body, wrong, lambda d: (d.sample(WORDS, k + 2),)
    )


@family("split")
def split(dice: Dice) -> Task:
    arg = dice.pick(TEXTS)
    mark, text, name = dice.pick(tuple(s for s in SEPARATORS if len(s[0]) == 1))
    part, index = dice.pick((("", ""), ("first", "[0]"), ("second", "[1]"), ("last", "[-1]")))
    if part:
        does = f"splits {arg} at each occurrence of {text} and returns the {part} part"
    else:
        does = f"splits {arg} into a list at each occurrence of {text}"
    others = tuple(f"{arg}.split({mark!r}){i}" for i in ("", "[0]", "[1]", "[-1]") if i != index)
    wrong = (*others, f"{arg}.split(',')", f"list({arg})", f"{arg}.replace({mark!r}, '')")
    body = f"{arg}.split({quoted(mark)}){index}"
    name = f"{part}_by_{name}" if part else f"split_{name}"
    return Task(
        name, arg, does, body, wrong, lambda d: (mark.join(d.sample(WORDS, d.number(3, 4))),)
    )


def quoted(text: str) -> str:
    """A string literal with double quotes, as most Python code has it."""
    return f'"{text}"'


@family("change_case")
def change_case(dice: Dice) -> Task:
    xs, k = dice.pick(WORD_LISTS), dice.number(1, 7)
    method, text = dice.pick(
        (("upper", "upper case"), ("lower", "lower case"), ("capitalize", "capitalized form"))
    )
    side, cut, off = dice.pick((("first", f"[:{k}]", f"[{k}:]"), ("last", f"[-{k}:]", f"[:-{k}]")))
    letters = "letter" if k == 1 else f"{k} letters"
    does = dice.pick(
        (
            "returns the {s} {l} of each of the {xs} in {t}",
            "cuts each of the {xs} to its {s} {l} and puts it in {t}",
        )
    )
    wrong = (f"[w.{method}() for w in {xs}]", f"[w{cut} for w in {xs}]")
    wrong += (f"[w.{method}() for w in {xs}]{cut}", f"[w{off}.{method}() for w in {xs}]")

    def draw(dice: Dice) -> tuple[list[str]]:
        cases = (str.upper, str.lower, str.title, str.swapcase)
        return ([dice.pick(cases)(dice.pick(WORDS) + dice.pick(WORDS)) for _ in range(3)],)

    filled = does.format(s=side, l=letters, xs=xs, t=text)
    return Task(
        f"{side}_{k}_{method}", xs, filled, f"[w{cut}.{method}() for w in {xs}]", wrong, draw
    )


@family("replace")
def replace(dice: Dice) -> Task:
    arg = dice.pick(TEXTS)
    (old, old_text, old_name), (new, new_text, new_name) = dice.sample(SEPARATORS, 2)
    does = f"replaces {old_text} by {new_text} everywhere in {arg}"
    wrong = (f"{arg}.replace({new!r}, {old!r})", f"{arg}.replace({old!r}, '')")
    wrong += (f"{arg}.replace({old!r}, {new!r}, 1)",)
    body = f"{arg}.replace({quoted(old)}, {quoted(new)})"

    def draw(dice: Dice) -> tuple[str]:
        return (dice.pick((old, new, old)).join(dice.sample(WORDS, dice.number(2, 4))),)

    return Task(f"{old_name}_to_{new_name}", arg, does, body, wrong, draw)


@family("count_word")
def count_word(dice: Dice) -> Task:
    arg, word = dice.pick(TEXTS), dice.pick(WORDS)
    does = dice.pick(
        (
            "counts the word '{w}' in {a}, in upper or lower case",
            "returns how often the word '{w}' stands in {a}, ignoring case",
        )
    )
    wrong = (f"{arg}.split().count({word!r})", f"{arg}.lower().count({word!r})")
    wrong += (f"{word!r} in {arg}", f"len({arg}.split())")
    body = f'{arg}.lower().split().count("{word}")'

    def draw(dice: Dice) -> tuple[str]:
        parts = [word, word.upper(), word.title(), f"{word}s", dice.pick(WORDS), f"x{word}"]
        return (" ".join(dice.sample(parts, dice.number(2, 6))),)

    return Task(f"count_{word}", arg, does.format(w=word, a=arg), body, wrong, draw)


@family("affix")
def affix(dice: Dice) -> Task:
    xs, word = dice.pick(WORD_LISTS), dice.pick(WORDS)
    mark = dice.pick("-_:/.")
    front = dice.chance(0.5)
    piece = f"{word}{mark}" if front else f"{mark}{word}"
    text = f"puts '{piece}' {'before' if front else 'after'} each of the {xs}"
    body, opposite = f'["{piece}" + w for w in {xs}]', f'[w + "{piece}" for w in {xs}]'
    if not front:
        body, opposite = opposite, body
    wrong = (opposite, f'"{piece}".join({xs})', f'[w + "{mark}" for w in {xs}]')
    name = f"{'prefix' if front else 'suffix'}_{word}"
    return Task(name, xs, f"{text} and returns the list", body, wrong, word_list)


@family("get_default")
def get_default(dice: Dice) -> Task:
    arg, key = dice.pick(TABLES), dice.pick(WORDS)
    default = dice.number(0, 20)
    does = dice.pick(
        (
            "returns the value of '{k}' in the dict {a}, or {d} if it is not there",
            "looks up '{k}' in {a} and falls back to {d}",
        )
    )
    wrong = (f"{arg}[{key!r}]", f"{arg}.get({key!r})", f"{arg}.get({key!r}, {default + 1})")
    wrong += (f"{default}",)

    def draw(dice: Dice) -> tuple[dict[str, int]]:
        other = {dice.pick(WORDS) + "s": dice.number(1, 50)}
        return (other | {key: dice.number(30, 90)} if dice.chance(0.5) else other,)

    body = f'{arg}.get("{key}", {default})'
    return Task(f"{key}_or_{default}", arg, does.format(k=key, a=arg, d=default), body, wrong, draw)


@family("pluck")
def pluck(dice: Dice) -> Task:
    rows, field, k = dice.pick(RECORDS), dice.pick(FIELDS), dice.number(1, 40)
    sign, text, off = dice.pick(((">", "is above", ">="), ("<", "is below", "<=")))
    body = '[r["id"] for r in {} if r["{}"] {} {}]'
    wrong = (body.format(rows, field, off, k), f'[r["id"] for r in {rows}]')
    wrong += (f'[r for r in {rows} if r["{field}"] {sign} {k}]', f'[r["{field}"] for r in {rows}]')
    does = dice.pick(
        (
            "returns the 'id' of each dict in {r} whose '{f}' {t} {k}",
            "lists the 'id' of those {r} whose '{f}' {t} {k}",
        )
    ).format(r=rows, f=field, t=text, k=k)
    name = f"ids_{field}_{text.split()[1]}_{k}"
    return Task(name, rows, does, body.format(rows, field, sign, k), wrong, records(field, k))


@family("sum_field")
def sum_field(dice: Dice) -> Task:
    rows, field = dice.pick(RECORDS), dice.pick(FIELDS)
    call, text = dice.pick((("sum", "sum"), ("max", "largest value"), ("min", "smallest value")))
    does = dice.pick(
        (
            f"returns the {text} of '{field}' over the dicts in {rows}",
            f"takes the list of dicts {rows} and returns the {text} of '{field}'",
        )
    )
    others = [f'{other}(r["{field}"] for r in {rows})' for other in ("sum", "max", "min")]
    body = f'{call}(r["{field}"] for r in {rows})'
    wrong = (*(other for other in others if other != body), f'{rows}[0]["{field}"]', f"len({rows})")
    return Task(f"{call}_{field}", rows, does, body, wrong, records(field, 20))


@family("keys_where")
def keys_where(dice: Dice) -> Task:
    arg, k = dice.pick(TABLES), dice.number(1, 60)
    sign, text, off = dice.pick(((">", "greater than", ">="), ("<", "less than", "<=")))
    does = dice.pick(
        (
            "returns the keys of {a} whose value is {t} {k}",
            "lists the keys in the dict {a} with a value {t} {k}",
        )
    )
    body = "[key for key, value in {}.items() if value {} {}]"
    wrong = (body.format(arg, off, k), f"list({arg})")
    wrong += (f"[value for key, value in {arg}.items() if value {sign} {k}]",)
    name = f"keys_{'above' if sign == '>' else 'below'}_{k}"
    filled = does.format(a=arg, t=text, k=k)
    return Task(name, arg, filled, body.format(arg, sign, k), wrong, table(k))


@family("map_values")
def map_values(dice: Dice) -> Task:
    arg, k = dice.pick(TABLES), dice.number(2, 30)
    sign, text = dice.pick((("+", "raised by"), ("*", "multiplied by"), ("-", "lowered by")))
    does = f"returns the dict {arg} with each value {text} {k}"
    body = f"{{key: value {sign} {k} for key, value in {arg}.items()}}"
    wrong = (f"[value {sign} {k} for value in {arg}.values()]", f"dict({arg})")
    wrong += (body.replace(f" {sign} {k}", f" {'-' if sign != '-' else '+'} {k}"),)
    name = {"+": "raise_by", "*": "scale_by", "-": "lower_by"}[sign]
    return Task(f"{name}_{k}", arg, does, body, wrong, table(9))


@family("filter_dict")
def filter_dict(dice: Dice) -> Task:
    arg, k = dice.pick(TABLES), dice.number(1, 60)
    does = dice.pick(
        (
            "keeps the entries of the dict {a} with a value of at least {k}",
            "returns a dict of the entries in {a} whose value is at least {k}",
        )
    )
    body = f"{{key: value for key, value in {arg}.items() if value >= {k}}}"
    wrong = (
        body.replace(">=", ">"),
        body.replace(">=", "<"),
        f"[v for v in {arg}.values() if v >= {k}]",
    )
    return Task(f"at_least_{k}", arg, does.format(a=arg, k=k), body, wrong, table(k))


@family("sort_by")
def sort_by(dice: Dice) -> Task:
    rows, field, down = dice.pick(RECORDS), dice.pick(FIELDS), dice.chance(0.5)
    text = "from high to low" if down else "from low to high"
    does = dice.pick(
        (
            f"sorts the dicts in {rows} by '{field}' {text}",
            f"returns {rows} ordered by '{field}', {text}",
        )
    )
    ascending = f'sorted({rows}, key=lambda r: r["{field}"])'
    descending = f'sorted({rows}, key=lambda r: r["{field}"], reverse=True)'
    body, opposite = (descending, ascending) if down else (ascending, descending)
    wrong = (opposite, f"{rows}[::-1]", f'sorted(r["{field}"] for r in {rows})')

    def draw(dice: Dice) -> tuple[list[dict[str, Any]]]:
        values = dice.sample(range(1, 60), dice.number(3, 4))
        return ([{"id": i + 1, field: value} for i, value in enumerate(values)],)

    name = f"{rows}_by_{field}" + ("_down" if down else "")
    return Task(name, rows, does, body, wrong, draw)


@family("label")
def label(dice: Dice) -> Task:
    arg, k = dice.pick(("n", "value", "x", "score")), dice.number(-5, 90)
    high, low = dice.pick(
        (
            ("high", "low"),
            ("pass", "fail"),
            ("yes", "no"),
            ("hot", "cold"),
            ("big", "small"),
            ("fast", "slow"),
            ("full", "free"),
        )
    )
    does = dice.pick(
        (
            "returns '{h}' if {a} is at least {k}, else '{l}'",
            "gives '{h}' for {a} of {k} or more and '{l}' otherwise",
        )
    )
    body = f'"{high}" if {arg} >= {k} else "{low}"'
    wrong = (body.replace(">=", ">"), body.replace(">=", "<"), f"{arg} >= {k}", f"{high!r}")
    does = does.format(h=high, a=arg, k=k, l=low)
    return Task(f"{high}_or_{low}", arg, does, body, wrong, lambda d: (k + d.number(-2, 2),))


@family("three_labels")
def three_labels(dice: Dice) -> Task:
    arg, a = dice.pick(("n", "value", "x", "score")), dice.number(0, 50)
    b = a + dice.number(3, 40)
    low, middle, high = dice.pick(
        (
            ("low", "medium", "high"),
            ("small", "middle", "large"),
            ("cold", "warm", "hot"),
            ("slow", "normal", "fast"),
            ("free", "busy", "full"),
        )
    )
    does = f"returns '{low}' if {arg} is below {a}, '{middle}' if it is below {b}, else '{high}'"
    steps = (
        f"if {arg} < {a}:",
        f'    return "{low}"',
        f"if {arg} < {b}:",
        f'    return "{middle}"',
    )
    body = "\n".join((*steps, f'return "{high}"'))
    wrong = (body.replace("<", "<="), body.replace("<", ">"), f"{high!r}", f"{middle!r}")

    def draw(dice: Dice) -> tuple[int]:
        return (dice.pick((a, b)) + dice.number(-2, 2),)

    return Task(f"{low}_{middle}_{high}", arg, does, body, wrong, draw)


@family("format_text")
def format_text(dice: Dice) -> Task:
    first, unit = (
        dice.pick(("name", "item", "city", "user")),
        dice.pick(("kg", "EUR", "km", "pcs", "m", "min", "USD", "GB")),
    )
    gap = dice.pick((": ", " = ", " - ", " -> ", " | "))
    does = f"returns a string of {first}, '{gap}', n and ' {unit}'"
    body = f'f"{{{first}}}{gap}{{n}} {unit}"'
    wrong = (
        f'f"{{{first}}}{gap}{{n}}"',
        f'f"{{n}}{gap}{{{first}}} {unit}"',
        f'"{first}{gap}n {unit}"',
    )
    name = dice.pick(("show", "format", "describe")) + f"_{unit.lower()}"
    return Task(name, f"{first}, n", does, body, wrong, lambda d: (d.pick(WORDS), d.number(1, 99)))


@family("decimals")
def decimals(dice: Dice) -> Task:
    arg, k = dice.pick(("price", "x", "value", "amount", "rate")), dice.number(1, 4)
    unit = dice.pick(("EUR", "%", "kg", "USD", "km", "s", "cm", "GB", "ms", "mm"))
    does = dice.pick(
        (
            "formats {a} with {k} decimals, followed by ' {u}'",
            "returns {a} as text with {k} digits after the point and ' {u}' at the end",
        )
    )
    body = f'f"{{{arg}:.{k}f}} {unit}"'
    wrong = (f'f"{{{arg}}} {unit}"', f'f"{{{arg}:.{k + 1}f}} {unit}"', f'f"{{{arg}:.{k}f}}"')
    name = f"show_{arg}_{k}"
    does = does.format(a=arg, k=k, u=unit)
    return Task(name, arg, does, body, wrong, lambda d: (d.number(10, 9999) / 8,))


@family("pad")
def pad(dice: Dice) -> Task:
    arg, k = dice.pick(("n", "number", "code", "value")), dice.number(3, 9)
    mark = dice.pick(("", "#", "N", "ID", "T-", "No."))
    tail = f" and puts '{mark}' in front" if mark else ""
    does = f"writes {arg} with leading zeros, {k} digits in all{tail}"
    body = f'"{mark}" + str({arg}).zfill({k})' if mark else f"str({arg}).zfill({k})"
    wrong = (f"{mark!r} + str({arg})", f"{mark!r} + str({arg}).zfill({k + 1})")
    wrong += (f"{mark!r} + str({arg}) + '0' * {k}",)
    return Task(f"pad_{k}", arg, does, body, wrong, lambda d: (d.number(0, 120),))


@family("divisible")
def divisible(dice: Dice) -> Task:
    a, b = dice.pick([(a, b) for a in range(2, 14) for b in range(2, 14) if a % b and b % a])
    word = dice.pick(("and", "or"))
    does = f"returns True if n is divisible by {a} {word} by {b}"
    body = "n % {} == 0 {} n % {} == 0"
    wrong = (body.format(a, "or" if word == "and" else "and", b), f"n % {a} == 0", f"n % {b} == 0")
    wrong += (f"not (n % {a} == 0 {word} n % {b} == 0)",)

    def draw(dice: Dice) -> tuple[int]:
        return (dice.pick((a, b, a * b, 1)) * dice.number(1, 9) + dice.number(0, 1),)

    return Task(f"by_{a}_{word}_{b}", "n", does, body.format(a, word, b), wrong, draw)


@family("top")
def top(dice: Dice) -> Task:
    xs, k = dice.pick(NUMBER_LISTS), dice.number(2, 12)
    text, order = dice.pick((("largest", ", reverse=True"), ("smallest", "")))
    chosen, other = f"sorted({xs}{order})[:{k}]", f"sorted({xs})[-{k}:]"
    if dice.chance(0.5):
        name, body = f"sum_{text}_{k}", f"sum({chosen})"
        does = dice.pick(
            (f"returns the sum of the {k} {text} {xs}", f"adds up the {k} {text} {xs}")
        )
        wrong = (f"sum({xs})", f"sum({xs}[:{k}])", chosen, f"sum(sorted({xs}{order})[:{k - 1}])")
    else:
        name, body = f"{text}_{k}", chosen
        does = f"returns the {k} {text} {xs} in a sorted list, {text} first"
        wrong = (f"sorted({xs})", f"{xs}[:{k}]", other, f"sorted({xs}{order})[:{k + 1}]")

    def draw(dice: Dice) -> tuple[list[int]]:
        return (dice.sample(range(90), k + dice.number(1, 3)),)

    return Task(name, xs, does, body, wrong, draw)


@family("mean_default")
def mean_default(dice: Dice) -> Task:
    xs, k = dice.pick(NUMBER_LISTS), dice.number(0, 40)
    does = dice.pick(
        (
            "returns the mean of the {xs}, or {k} if the list is empty",
            "computes the average of {xs} and returns {k} for an empty list",
        )
    )
    body = f"sum({xs}) / len({xs}) if {xs} else {k}"
    wrong = (f"sum({xs}) / len({xs})", f"sum({xs}) if {xs} else {k}", f"max({xs}, default={k})")
    name = dice.pick(("mean", "average")) + f"_or_{k}"

    def draw(dice: Dice) -> tuple[list[int]]:
        return ([2 * dice.number(1, 30) for _ in range(dice.pick((0, 2, 4)))],)

    return Task(name, xs, does.format(xs=xs, k=k), body, wrong, draw)


@family("word_dict")
def word_dict(dice: Dice) -> Task:
    xs, k = dice.pick(WORD_LISTS), dice.number(2, 15)
    value, text = dice.pick(
        (
            ("len(w)", "its length"),
            ("w.upper()", "its upper case form"),
            ("w[0]", "its first letter"),
        )
    )
    does = dice.pick(
        (
            "returns a dict from each of the {xs} with at least {k} letters to {t}",
            "maps each of the {xs} that has {k} or more letters to {t}",
        )
    )
    body = f"{{w: {value} for w in {xs} if len(w) >= {k}}}"
    wrong = (f"{{w: {value} for w in {xs}}}", body.replace(">=", ">"), f"[{value} for w in {xs}]")

    def draw(dice: Dice) -> tuple[list[str]]:
        sizes = dice.sample([k, k + 1, k - 1, k - 1], 3)
        return (["".join(dice.sample("abcdefghijklmnopq", size)) for size in sizes],)

    filled = does.format(xs=xs, k=k, t=text)
    return Task(f"dict_from_{k}", xs, filled, body, wrong, draw)


@family("convert")
def convert(dice: Dice) -> Task:
    arg = dice.pick(("n", "x", "hours", "units"))
    a, b = dice.sample(range(2, 80), 2)
    does = dice.pick(
        (f"multiplies {arg} by {a} and adds {b}", f"returns {a} times {arg}, plus {b}")
    )
    wrong = (
        f"{arg} * {b} + {a}",
        f"{arg} * {a} - {b}",
        f"{arg} * ({a} + {b})",
        f"{arg} + {a} * {b}",
    )
    name = dice.pick(("cost", "convert", "scale", "fee"))
    return Task(name, arg, does, f"{arg} * {a} + {b}", wrong, lambda d: (d.number(0, 12),))


@family("any_all")
def any_all(dice: Dice) -> Task:
    xs, k = dice.pick(NUMBER_LISTS), dice.number(0, 60)
    call, text = dice.pick((("any", "any of the {xs} is"), ("all", "all {xs} are")))
    sign, word, off = dice.pick(((">", "greater than", ">="), ("<", "less than", "<=")))
    does = f"checks whether {text.format(xs=xs)} {word} {k}"
    body = f"{call}(n {sign} {k} for n in {xs})"
    other = "all" if call == "any" else "any"
    wrong = (f"{other}(n {sign} {k} for n in {xs})", f"{call}(n {off} {k} for n in {xs})")
    wrong += (f"[n {sign} {k} for n in {xs}]",)

    def draw(dice: Dice) -> tuple[list[int]]:
        step = 1 if sign == ">" else -1
        pool = [k, k + step, k + 2 * step, k - step]
        return ([dice.pick(pool) for _ in range(dice.number(1, 4))],)

    name = f"{call}_{'above' if sign == '>' else 'below'}_{k}"
    return Task(name, xs, does, body, wrong, draw)
