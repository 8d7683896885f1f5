"""Plans: what fits, in the order of measured speed, and what would do where nothing fits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from course_utils import CourseError, recipes
from course_utils.memory import estimate, plan, plan_recipe, shape_of
from course_utils.memory.card import least_reserved, passes
from course_utils.memory.estimate import GIB, make_job, write
from course_utils.memory.ledger import MIB, Ledger, replay
from course_utils.memory.plan import LAUNCH_SECONDS, SECONDS, TOKENS, seconds_per_token
from course_utils.recipes import Recipe

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
SEVEN, ONE = "llama-2-7b", "llama-3.2-1b"


# -------------------------------------------------------------------------- what is chosen


@pytest.mark.parametrize(
    ("gib", "method", "checkpointing"),
    [(8, "qlora", True), (16, "qlora", False), (40, "lora", False), (141, "lora", False)],
)
def test_a_7b_model_on_cards_of_every_size(gib, method, checkpointing):
    made = plan(SEVEN, gib, length=1024)
    assert (made.recipe.method, bool(made.recipe.checkpointing)) == (method, checkpointing)
    assert made.recipe.effective_batch == 16 and made.recipe.dropout == 0
    assert made.recipe.offload == bool(made.recipe.checkpointing)
    assert made.best.needs_gib <= gib
    assert made.estimate.allocated_gib < gib - 1  # context and margin are no part of it
    assert "H200" in str(made) and not made.nearest


def test_more_memory_is_never_slower():
    shape = shape_of(ONE)
    made = [plan(shape, gib, length=1024) for gib in (4, 6, 8, 12, 24, 80)]
    seconds = [each.best.seconds for each in made if each.best]
    assert len(seconds) >= 4 and seconds == sorted(seconds, reverse=True)
    assert seconds[-1] < seconds[0]


def test_alternatives_are_slower_and_worth_it():
    made = plan(SEVEN, 16, length=1024)
    assert made.alternatives
    for choice in made.alternatives:
        assert choice.seconds >= made.best.seconds and choice.needs_gib <= 16
        assert choice.recipe.method == "lora" or choice.needs_gib < made.best.needs_gib
    assert any(choice.recipe.method == "lora" for choice in made.alternatives)


def test_what_was_traded_is_said():
    small, large = plan(SEVEN, 8, length=1024), plan(SEVEN, 80, length=1024)
    assert any("4-bit" in trade for trade in small.traded)
    assert any(trade.startswith("checkpointing: ") for trade in small.traded)
    assert large.traded == () and "nothing" in str(large)


def test_the_wish_is_kept():
    made = plan(ONE, 16, length=300, effective_batch=6, rank=4, targets=["q_proj", "v_proj"])
    recipe = made.recipe
    assert recipe.effective_batch == 6 and recipe.rank == 4 and recipe.max_length == 300
    assert recipe.targets == ("q_proj", "v_proj") and recipe.model == ONE
    only = plan(SEVEN, 16, length=512, methods=("lora",))
    assert {c.recipe.method for c in (only.best, *only.alternatives)} == {"lora"}


def test_a_recipe_of_ones_own_changes_only_in_what_results_do_not_depend_on():
    wish = Recipe(batch_size=8, gradient_accumulation=2, dropout=0.1, learning_rate=3e-4, seed=5)
    made = plan_recipe(wish, 6, model=ONE, fixed=("checkpointing",))
    free = ("batch_size", "gradient_accumulation", "offload")
    ours, theirs = made.recipe.to_dict(), wish.to_dict()
    assert all(ours[name] == theirs[name] for name in theirs if name not in free)
    assert made.recipe.effective_batch == 16


def test_full_fine_tuning_in_bf16_takes_half():
    wide = plan(ONE, 141, length=512, methods=("full",), effective_batch=1)
    short = plan(ONE, 141, length=512, methods=("full",), effective_batch=1, pure_bf16=True)
    assert short.recipe.base_precision == "bf16" and any("rounded" in t for t in short.traded)
    assert short.estimate.parts["weights"] == pytest.approx(wide.estimate.parts["weights"] / 2)


def test_on_the_cpu_the_budget_is_of_resident_memory():
    made = plan_recipe(Recipe(batch_size=16), 8, device="cpu")
    assert made.estimate.device == "cpu" and not made.recipe.offload
    assert made.recipe.method == "lora" and not made.recipe.checkpointing


# ------------------------------------------------------------------------- what does not fit


def test_an_impossible_wish_gets_the_nearest_possible_ones():
    made = plan(SEVEN, 6, length=4096)
    assert made.recipe is None and made.estimate is None and made.smallest.needs_gib > 6
    assert "nothing asked for fits" in str(made)
    named = [choice.traded[0] for choice in made.nearest]
    assert any("a smaller model, " in what and "B parameters" in what for what in named)
    assert any(what == "a card of 8 GiB" for what in named)
    fitting = [c for c in made.nearest if "card" not in c.traded[0]]
    assert fitting and all(choice.needs_gib <= 6 for choice in fitting)


def test_shorter_rows_are_as_long_as_can_be():
    rows = [200] * 90 + [8000] * 10
    made = plan("qwen2.5-7b", 8, lengths=rows, effective_batch=4)
    (shorter,) = [c for c in made.nearest if c.traded[0].startswith("rows of at most")]
    assert shorter.needs_gib <= 8 and "(10 of 100 rows are cut)" in shorter.traded[0]
    longer = plan("qwen2.5-7b", 8, length=shorter.length + 256, effective_batch=4)
    assert longer.best is None


def test_lora_alone_where_only_qlora_fits_names_qlora():
    made = plan(SEVEN, 8, length=512, methods=("lora",))
    assert made.best is None and "QLoRA instead" in [c.traded[0] for c in made.nearest]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"vram_gib": 0}, "vram_gib is 0"),
        ({"vram_gib": True}, "vram_gib is True"),
        ({"vram_gib": 8, "methods": ("lore",)}, "methods is"),
        ({"vram_gib": 8, "methods": ()}, "methods is"),
        ({"vram_gib": 8, "length": 10**6}, "reads at most"),
        ({"vram_gib": 8, "targets": ["c_attn"]}, "no layer called c_attn"),
        ({"vram_gib": 8, "rank": 0}, "rank is 0"),
    ],
)
def test_what_cannot_be_is_named(fields, said):
    with pytest.raises(CourseError, match=said):
        plan(SEVEN, **fields)


def test_plans_are_plain_values_too():
    fits, not_ = plan(ONE, 24, length=256), plan("llama-2-13b", 7, length=256)
    for made in (fits, not_):
        fields = json.loads(json.dumps(made.to_dict()))
        assert fields["vram_gib"] == made.vram_gib
        assert len(fields["nearest"]) == len(made.nearest)
    assert fits.best and not_.best is None and not_.nearest
    assert recipes.from_dict(fits.to_dict()["best"]["recipe"]) == fits.recipe


def test_gradients_in_fp8_stay_where_they_can():
    recipe = Recipe(model="llama-2-7b", gradient_precision="fp8", max_length=512)
    found = plan_recipe(recipe, 24, methods=("lora", "full"))
    assert found.recipe.method == "lora" and found.recipe.gradient_precision == "fp8"
    sharded = plan_recipe(recipe, 11, methods=("lora",), gpus=2)  # by the stock layers alone
    assert sharded.recipe.gradient_precision == "auto" and not sharded.recipe.fast


# --------------------------------------------------------------------------------- speed


def test_the_ranking_is_what_was_measured():
    """The table repeats benchmarks/results/peers_h200.json, which the package does not ship."""
    result = json.loads((RESULTS / "peers_h200.json").read_text(encoding="utf-8"))
    rows = {(r["system"], r["method"], r["checkpointing"]): r for r in result["rows"]}
    for layers, system in (("fast", "ours"), ("stock", "trl")):
        for (method, checkpointing), seconds in SECONDS[layers].items():
            row = rows[system, method, checkpointing]
            assert row["batch"] * row["length"] == TOKENS
            assert seconds == pytest.approx(row["seconds_per_step"], rel=0.05)
    shape, recipe = shape_of("llama-2-7b"), Recipe(method="full", checkpointing=True)
    full = seconds_per_token(shape, recipe, TOKENS) * TOKENS * 6.88e9 / shape.parameters
    assert full == pytest.approx(rows["ours", "full", True]["seconds_per_step"], rel=0.05)


def test_the_model_of_speed_gives_back_what_it_was_made_from():
    shape = shape_of("llama-2-7b")
    for (method, checkpointing), seconds in SECONDS["fast"].items():
        recipe = Recipe(method=method, checkpointing=checkpointing)
        made = seconds_per_token(shape, recipe, TOKENS) * TOKENS * 6.88e9 / shape.parameters
        assert made == pytest.approx(seconds)
    short = seconds_per_token(shape, Recipe(), 64) * 64
    assert short == pytest.approx(LAUNCH_SECONDS[False])  # the CPU is the limit
    by_every = [seconds_per_token(shape, Recipe(checkpointing=n), TOKENS) for n in (True, 2, 4)]
    assert by_every == sorted(by_every, reverse=True)


# ------------------------------------------------------------------- the card's allocator


def test_a_full_allocator_gives_back_what_it_does_not_use():
    ledger = Ledger()
    for _ in range(2):  # 64 MiB, let go, then 96: reserved one after the other
        for size in (64, 96):
            ledger.new("activations", "x", size * MIB, width=1).drop()
    assert replay(ledger).reserved == 160 * MIB
    assert passes(ledger, 96 * MIB) and not passes(ledger, 95 * MIB)
    assert least_reserved(ledger, 0, 160 * MIB) == 96 * MIB
    held = [ledger.new("weights", "w", 64 * MIB, width=1) for _ in range(2)]
    assert held and passes(ledger, 160 * MIB)
    assert not passes(ledger, 150 * MIB)  # one sits in the 96, which cannot be given back then


def test_a_run_passes_with_what_it_reserves_and_not_below_its_tensors():
    recipe = Recipe(checkpointing=True, offload=True, batch_size=4)
    made = estimate(ONE, recipe, length=512)
    ledger, _ = write(make_job(ONE, recipe, length=512))
    assert passes(ledger, int(made.reserved_gib * GIB) + MIB)
    assert not passes(ledger, int(made.allocated_gib * GIB) - MIB)


# ------------------------------------------------------------------------------- presets


@pytest.mark.parametrize(
    ("name", "gib"), [("SMALL", 6), ("SMALL", 8), ("MEDIUM", 16), ("LARGE", 24)]
)
def test_the_presets_fit_the_cards_they_are_for(name, gib):
    preset = getattr(recipes, f"RECOMMENDED_CONFIG_{name}")
    fields = ("batch_size", "checkpointing", "offload")
    made = plan_recipe(preset, gib, model=SEVEN, fixed=fields)
    assert made.recipe == preset
    # and what they give up for it is needed: with the guide's dropout the larger two do not fit
    guide = preset.replace(dropout=0.1, offload=False)
    assert (plan_recipe(guide, gib, model=SEVEN, fixed=fields).best is None) == (name != "SMALL")


def test_a_length_of_nothing_is_refused():
    with pytest.raises(CourseError, match="max_length is 0"):
        plan("llama-2-7b", 8, length=0)
