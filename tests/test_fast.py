"""The fast layers: the same loss and gradients as the stock layers, by every road through them."""

from __future__ import annotations

import dataclasses

import pytest
import tiny_models
import torch
from peft import LoraConfig, get_peft_model
from test_loss import assert_same, batch, loss_and_gradients

from course_utils import attention, fast, fp8, loss, models
from course_utils.encoding import Collator, pack
from course_utils.errors import CourseError

KINDS = ["llama", "untied", "mistral", "qwen2", "qwen3"]
FP32 = {"dtype": torch.float32}


def adapted(kind: str = "llama", targets=None, model=None, dropout: float = 0.0):
    """A small model with an adapter whose A and B are random, biases too."""
    model = model or tiny_models.model(kind, vocab_size=tiny_models.FEW)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith("_proj.bias"):
            parameter.data.normal_()
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=12,
        lora_dropout=dropout,
        target_modules=targets or models.target_modules(model),
        init_lora_weights=False,
    )
    return get_peft_model(model, config)


def fast_loss(model, inputs, **options):
    with loss.answers_only(model), fast.fast_layers(model, **{**FP32, **options}):
        return loss_and_gradients(model, inputs)


def packed_batch(count: int = 9, longest: int = 20) -> dict[str, torch.Tensor]:
    rows = pack(tiny_models.rows(count, longest=longest), 48)
    return Collator(0)(rows)


# --------------------------------------------------------------------- value and gradients


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointing"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_stock_layers(kind, checkpointing):
    model = adapted(kind)
    plain = loss_and_gradients(model, batch())
    assert_same(plain, fast_loss(model, batch(), checkpointing=checkpointing))


@pytest.mark.parametrize("every", [1, 2, 3])
def test_checkpointing_of_every_nth_layer(every):
    model = adapted(model=tiny_models.model("llama", num_hidden_layers=5))
    with fast.fast_layers(model, **FP32, checkpointing=every) as made:
        kept = [layer.checkpointing for layer in made.layers]
    assert kept == [n % every == 0 for n in range(4)] + [False]  # the last one's comes at once
    plain = loss_and_gradients(model, batch())
    assert_same(plain, fast_loss(model, batch(), checkpointing=every))


@pytest.mark.parametrize(
    "targets", [["q_proj", "v_proj"], ["o_proj"], ["up_proj", "down_proj"], ["k_proj", "gate_proj"]]
)
def test_adapters_on_some_layers_only(targets):
    model = adapted(targets=targets)
    assert_same(loss_and_gradients(model, batch()), fast_loss(model, batch()))


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_packed_rows_equal_the_stock_layers(kind):
    model, inputs = adapted(kind), packed_batch()
    with loss.answers_only(model):
        plain = loss_and_gradients(model, inputs)
    assert_same(plain, fast_loss(model, inputs))


def test_packed_equals_the_same_rows_unpacked():
    """Loss and gradients of rows one by one, and of the same rows behind each other."""
    model, rows = adapted(), tiny_models.rows(7)
    one_by_one = Collator(0)(rows)
    assert_same(
        fast_loss(model, one_by_one), fast_loss(model, Collator(0)(pack(rows, max_length=64)))
    )


def test_adapter_of_another_scale_for_each_layer():
    model = adapted()
    for layer in model.modules():
        if hasattr(layer, "lora_A"):
            layer.scaling["default"] = float(torch.rand(())) + 0.5
    assert_same(loss_and_gradients(model, batch()), fast_loss(model, batch()))


def test_gradients_accumulate():
    model = adapted()
    model.zero_grad()
    for seed in (0, 1):
        model(**batch(seed=seed)).loss.backward()
    plain = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with loss.answers_only(model), fast.fast_layers(model, **FP32):
        for seed in (0, 1):
            model(**batch(seed=seed)).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, plain[name], rtol=1e-3, atol=2e-5)


def test_an_update_is_seen_by_the_next_step():
    model = adapted()
    with loss.answers_only(model), fast.fast_layers(model, **FP32):
        before = loss_and_gradients(model, batch())
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.mul_(1.5)
        after = loss_and_gradients(model, batch())
    assert before[0] != after[0]
    assert_same(loss_and_gradients(model, batch()), after)


def test_four_bit_base_equals_the_stock_layers(four_bit):
    assert_same(loss_and_gradients(four_bit, batch()), fast_loss(four_bit, batch()))


def test_bf16_is_within_rounding():
    model = adapted()
    (value, _), (short, _) = (
        fast_loss(model, batch()),
        fast_loss(model.to(torch.bfloat16), batch(), dtype=torch.bfloat16),
    )
    torch.testing.assert_close(value, short.float(), rtol=0.02, atol=0.02)


def last_states(dtype: torch.dtype, adapter: float) -> torch.Tensor:
    """Of a model whose residual is large; adapter: standard deviation of its adapters' B."""
    model = adapted(targets=["o_proj", "down_proj"])
    model.get_input_embeddings().weight.data *= 64
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_().mul_(adapter)
        parameter.data = parameter.data.bfloat16().to(dtype)
    ids = torch.arange(512).view(8, 64)
    with torch.no_grad(), fast.fast_layers(model, dtype=dtype):
        return fast.decoder_of(model)(input_ids=ids).last_hidden_state.float()


def test_in_bf16_a_small_adapter_counts_beside_a_large_residual():
    wide, short = (
        last_states(dtype, 2e-3) - last_states(dtype, 0)
        for dtype in (torch.float32, torch.bfloat16)
    )
    share = (wide * short).sum() / wide.square().sum()
    assert share > 0.9  # added to the sum of residual and product, less than half of it is left


# ------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
def test_attention_by_products_equals_torchs_own(heads, monkeypatch):
    torch.manual_seed(0)
    q = torch.randn(2, 7, heads[0], 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, 7, heads[1], 8, dtype=torch.float64, requires_grad=True) for _ in "kv")
    rows, weight = attention.Rows.lines(torch.zeros(2, 7)), torch.randn(2, 7, heads[0], 8)
    made = []
    for most, repeat in ((attention.SCORES, False), (0, False), (0, heads[0] != heads[1])):
        monkeypatch.setattr(attention, "SCORES", most)
        monkeypatch.setattr(attention, "_takes_no_shared_heads", lambda q, k, say=repeat: say)
        out = attention.attend(q, k, v, rows)
        made.append((out, *torch.autograd.grad((out * weight).sum(), (q, k, v))))
    for ours, own, repeated in zip(*made, strict=True):
        torch.testing.assert_close(ours, own)
        torch.testing.assert_close(repeated, own)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_in_fp32_a_gpu_keeps_no_scores_where_heads_are_shared():
    q = torch.randn(1, 4096, 8, 64, device="cuda", requires_grad=True)
    k, v = (torch.randn(1, 4096, 2, 64, device="cuda", requires_grad=True) for _ in "kv")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    attention.attend(q, k, v, attention.Rows.lines(q[..., 0, 0])).sum().backward()
    scores = 8 * 4096 * 4096 * 4
    assert torch.cuda.max_memory_allocated() - before < scores / 4


def test_rows_are_told_apart_by_their_positions():
    rows = attention.Rows.packed(torch.tensor([[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]]))
    assert rows.starts.tolist() == [0, 3, 5, 7, 8, 9, 10]
    assert rows.longest == 3


# ----------------------------------------------------------------------- where it does not go


def test_the_model_is_its_own_again_afterwards():
    model = adapted()
    before = loss_and_gradients(model, batch())
    fast_loss(model, batch())
    assert "forward" not in fast.decoder_of(model).__dict__
    sizes = {p.untyped_storage().nbytes() == p.nbytes for p in model.parameters()}
    assert sizes == {True}  # q, k and v no longer share a storage, which saving would refuse
    assert_same(before, loss_and_gradients(model, batch()))


def test_generation_inside_the_block_uses_the_stock_layers():
    model = adapted().eval()
    ids = torch.tensor([[5, 6, 7]])
    plain = model.generate(input_ids=ids, max_new_tokens=5, do_sample=False)
    with loss.answers_only(model), fast.fast_layers(model, **FP32):
        again = model.generate(input_ids=ids, max_new_tokens=5, do_sample=False)
    assert plain.tolist() == again.tolist()


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "phi3"])
def test_other_families_are_refused_with_the_reason(kind):
    model = adapted(kind)
    assert "not built like Llama" in fast.why_not(model)
    with pytest.raises(CourseError, match="not built like Llama"), fast.fast_layers(model, **FP32):
        pass


def test_what_it_cannot_run_is_named():
    assert "dropout" in fast.why_not(adapted(dropout=0.1))
    assert "other than LoRA" in fast.why_not(tiny_models.model())
    model = adapted()
    model.merge_adapter()
    assert "merged" in fast.why_not(model)
    windowed = adapted(model=tiny_models.model("mistral", sliding_window=16))
    assert fast.why_not(windowed, longest=16) is None
    assert "window of 16" in fast.why_not(windowed, longest=17)


# ------------------------------------------------------------------------------------- fp8


def test_a_small_vocabulary_is_enough_to_be_checked():
    model = adapted(model=tiny_models.model("llama", vocab_size=64))
    with fast.fast_layers(model, dtype=torch.float32):
        model(input_ids=torch.arange(8)[None])


def test_dropout_in_the_attention_is_for_the_stock_layers():
    model = adapted(model=tiny_models.model("llama", attention_dropout=0.1))
    assert fast.why_not(model) == "the model has dropout in its attention"


def test_fp8_base_is_within_its_rounding():
    """Loss and gradients of a base in fp8 beside fp32: e4m3 rounds by up to 6 % a number."""
    model = adapted()
    (value, grads), (short, grads_too) = (
        fast_loss(model, batch()),
        fast_loss(model, batch(), base_precision="fp8"),
    )
    torch.testing.assert_close(short, value, rtol=0.02, atol=0.05)
    name = next(n for n in grads if "layers.0.self_attn.q_proj.lora_A" in n)
    for one in (name, name.replace("lora_A", "lora_B")):
        apart = (grads[one] - grads_too[one]).norm() / grads[one].norm()
        assert 1e-4 < apart < 0.4  # weights ten times the usual: 0.33 here


@pytest.fixture
def four_bit(tmp_path):
    """A small model in 4 bits with an adapter."""
    tiny_models.model(vocab_size=tiny_models.FEW).save_pretrained(tmp_path)
    base = models.load(tmp_path, quantize=True, on="cpu", dtype=torch.float32)
    models.keep_4bit_trainable(base)
    return adapted(model=base)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, "4 bits"])
def test_gradients_in_fp8_leave_the_loss_alone(kind, checkpointing, request):
    """Only what passes back through frozen weights is rounded; above the last adapter nothing."""
    model = request.getfixturevalue("four_bit") if kind == "4 bits" else adapted(kind)
    plain = fast_loss(model, batch(), checkpointing=checkpointing)
    short = fast_loss(model, batch(), checkpointing=checkpointing, gradient_precision="fp8")
    assert torch.equal(short[0], plain[0])
    last = max(int(name.split("layers.")[1].split(".")[0]) for name in plain[1])
    apart = {
        name: float((grad - short[1][name]).norm() / grad.norm()) for name, grad in plain[1].items()
    }
    untouched = [name for name in apart if f"layers.{last}.mlp.down_proj" in name]
    assert untouched and all(apart.pop(name) == 0 for name in untouched)
    assert all(1e-4 < value < 0.2 for value in apart.values()), apart


def test_a_weight_turned_into_fp8():
    matrix = torch.randn(96, 40) * torch.logspace(-3, 3, 96)[:, None]
    scale = fp8.row_scales(matrix)
    torch.testing.assert_close(scale[:, None], fp8.quantize_rows(matrix)[1])
    turned = fp8.turn(matrix, scale)
    assert turned.shape == (40, 96) and turned.is_contiguous() and turned.dtype == fp8.FP8
    torch.testing.assert_close(turned.t().float() * scale[:, None], matrix, rtol=0.07, atol=1e-3)


def test_weights_are_rounded_for_their_inputs():
    """Where inputs go along with each other, errors of a row are made to cancel."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 160, generator=generator)
    x = torch.randn(2000, 20, generator=generator) @ torch.randn(20, 160, generator=generator)
    x += 0.05 * torch.randn(2000, 160, generator=generator)
    right, apart = x @ weight.t(), []
    for short, scale in (fp8.quantize_rows(weight), fp8.quantize_for(weight, x)):
        assert torch.equal(scale, fp8.quantize_rows(weight)[1])
        apart.append(float((x @ (short.float() * scale).t() - right).norm() / right.norm()))
    assert apart[1] < apart[0] / 4, apart
    alone = torch.eye(160)[:, :160]  # inputs that have nothing in common: nearest is best
    nearest, fitted = fp8.quantize_rows(weight)[0], fp8.quantize_for(weight, alone)[0]
    assert torch.equal(nearest.float(), fitted.float())


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_weights_cannot_be_rounded_for_what_is_not_finite(value):
    with pytest.raises(CourseError, match="not finite"):
        fp8.quantize_for(torch.randn(4, 8), torch.full((16, 8), value))
    short, _ = fp8.quantize_for(torch.ones(4, 8), torch.zeros(16, 8))  # inputs that never come
    assert short.float().eq(448).all()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_a_sample_settles_the_rounding(kind):
    """With the sample's own rows, states are nearer to the model's than by nearest values."""
    model, ids = adapted(kind), torch.randint(3, tiny_models.FEW, (16, 24))
    sample = {"input_ids": ids.flatten()[None], "position_ids": torch.arange(24).repeat(16)[None]}

    def states(**options):
        with torch.no_grad(), fast.fast_layers(model, **FP32, **options):
            return fast.decoder_of(model)(input_ids=ids).last_hidden_state

    exact, nearest = states(), states(base_precision="fp8")
    fitted = states(base_precision="fp8", sample=sample)
    assert (fitted - exact).norm() < 0.98 * (nearest - exact).norm()


def test_weights_to_be_rounded_wait_outside():
    """So that a GPU holds one group of them at a time, and not all beside what rounding needs."""
    left, held = torch.nn.Linear(8, 4), torch.nn.Linear(8, 3)
    expected = torch.cat([left.weight, held.weight]).detach()
    weight = fp8.Fp8Weight([left, held], fast.Steps(), fit=True)
    assert left.weight.numel() == held.weight.numel() == 0 and weight.matrix is None
    made = weight.forward(x := torch.randn(32, 8))
    assert left.weight.numel() == held.weight.numel() == 0 and weight.matrix is not None
    assert (made - x @ expected.T).norm() < 0.1 * (x @ expected.T).norm()
    weight.restore()
    assert torch.equal(torch.cat([left.weight, held.weight]), expected)


def test_weights_come_back_from_a_sample_that_failed():
    model = adapted()
    before = {n: p.clone() for n, p in model.named_parameters()}
    sample = {name: torch.arange(8)[None] for name in ("input_ids", "position_ids")}
    with torch.no_grad():
        model.get_parameter(next(n for n in before if "layers.1.input_layernorm" in n)).fill_(
            float("inf")
        )
    options = FP32 | {"base_precision": "fp8", "sample": sample}
    with pytest.raises(CourseError, match="not finite"), fast.fast_layers(model, **options):
        pass
    assert "forward" not in fast.decoder_of(model).__dict__
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) or "layers.1.input_layernorm" in name, name


@pytest.mark.parametrize("options", [{}, {"base_precision": "fp8"}], ids=["fp32", "fp8"])
def test_weights_come_back_when_it_is_stopped_while_taking_them(monkeypatch, options):
    """By Ctrl-C, or for want of memory: half of a model without weights would be lost."""
    model = adapted()
    before = {n: p.clone() for n, p in model.named_parameters()}
    plain, groups = fast.Group._slots, []

    def stopped(group, dtype):
        groups.append(group)
        if len(groups) == 5:
            raise KeyboardInterrupt
        return plain(group, dtype)

    monkeypatch.setattr(fast.Group, "_slots", stopped)
    with pytest.raises(KeyboardInterrupt), fast.fast_layers(model, **FP32, **options):
        pass
    own = [layer.weight for group in groups for layer in group.bases]
    assert all(weight.untyped_storage().nbytes() == weight.nbytes for weight in own)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_a_gpu_without_fp8_has_no_kernels_that_write_it(monkeypatch):
    kernels = fast.Steps(*["kernel"] * len(dataclasses.fields(fast.Steps)))
    monkeypatch.setattr(fast, "gpu_steps", lambda: kernels)
    monkeypatch.setattr(fast.compat, "has_triton", lambda: True)
    for native in (True, False):
        monkeypatch.setattr(fp8, "native", lambda place, native=native: native)
        steps = fast.steps_for(torch.device("cuda"))
        assert steps.norm == steps.dequantize == "kernel"
        for name in ("quantize_rows", "turn", "round_columns"):
            assert (getattr(steps, name) == "kernel") == native
        assert steps.turn_four_bit == ("kernel" if native else None)
    assert fast.steps_for(torch.device("cpu")) == fast.Steps()


def test_fp8_gives_the_weights_back():
    model = adapted()
    before = {n: p.clone() for n, p in model.named_parameters()}
    with loss.answers_only(model), fast.fast_layers(model, **FP32, base_precision="fp8"):
        weight = model.get_parameter(next(n for n in before if "q_proj.base_layer" in n))
        assert weight.numel() == 0  # held in 8 bits only, meanwhile
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_quantized_rows_have_a_scale_each():
    x = torch.tensor([[1.0, -2.0, 0.5], [100.0, 0.0, -300.0], [0.0, 0.0, 0.0]])
    short, scale = fp8.quantize_rows(x)
    torch.testing.assert_close(short.float() * scale, x, rtol=0.07, atol=1e-6)
    assert short.float().abs().amax(1).tolist() == [448.0, 448.0, 0.0]


def test_padding_is_not_computed():
    """Only the tokens that the mask shows reach the layers, and the loss is the same."""
    model, seen = adapted(), []
    inputs = batch()
    with loss.answers_only(model), fast.fast_layers(model, **FP32) as decoder:
        states = decoder._states
        decoder._states = lambda ids, *more: seen.append(ids.numel()) or states(ids, *more)
        fast_too = loss_and_gradients(model, inputs)
    assert seen == [int(inputs["attention_mask"].sum())] and seen[0] < inputs["input_ids"].numel()
    assert_same(loss_and_gradients(model, inputs), fast_too)


def test_rows_padded_on_the_left():
    model, inputs = adapted(), batch()
    flipped = {name: value.flip(1) for name, value in inputs.items()}
    first = flipped["attention_mask"].argmax(dim=1)  # nothing real stands before it
    flipped["labels"][torch.arange(len(first)), first] = loss.IGNORE
    plain = loss_and_gradients(model, flipped)
    assert_same(plain, fast_loss(model, flipped))


def test_an_adapter_elsewhere_is_named():
    model = tiny_models.model(vocab_size=tiny_models.FEW)
    model.model.layers[0].unused = torch.nn.Linear(64, 64)
    assert "sits on" in fast.why_not(adapted(model=model, targets=["unused", "q_proj"]))
