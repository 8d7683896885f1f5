"""Run by `tests/test_estimate_shared.py` in several processes: the bytes that one of them holds."""

import json
import sys
from pathlib import Path

import tiny_models
import torch
from torch import distributed

from course_utils import loss, models, training
from course_utils.memory.dryrun import shard
from course_utils.processes import leave
from course_utils.recipes import Recipe

TINY = {"vocab_size": tiny_models.FEW}


def ddp(recipe: Recipe, folder: Path) -> dict:
    """DDP's own account of its buckets, after a training of ours."""
    made, plain = [], torch.nn.parallel.DistributedDataParallel.__init__

    def init(self, *args, **options):
        plain(self, *args, **options)
        made.append(self)

    torch.nn.parallel.DistributedDataParallel.__init__ = init
    training.run(
        recipe, tiny_models.encoded(16), model=tiny_models.model("llama", **TINY),
        tokenizer=models.load_tokenizer(), output_dir=folder,
    )  # fmt: skip
    said = made[0]._get_ddp_logging_data()
    names = ("bucket_sizes", "rebuilt_bucket_sizes", "gradient_as_bucket_view")
    return {name: said[name] for name in names}


def fsdp(recipe: Recipe, kind: str) -> dict:
    """Bytes of the parts of weights, gradients and optimizer states, after a step."""
    distributed.init_process_group("gloo")
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (distributed.get_world_size(),))
    model = tiny_models.model(kind, **TINY)
    loss._KNOWN[model] = True
    if recipe.method != "full":
        model = model.to(torch.bfloat16)
    model = training.prepare(model, recipe).train()
    with loss.answers_only(model):
        shard(model, mesh, recipe)
        model.set_force_sum_reduction_for_comms(True)  # gloo makes no means
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4)
        tokens = torch.arange(64).view(2, 32)
        if recipe.method == "full":
            model(input_ids=tokens, labels=tokens).loss.backward()
        else:  # the chunked loss runs a backward pass of its own in the middle of the forward one
            model(input_ids=tokens).logits.float().mean().backward()
        optimizer.step()
    own = {"weights": bytes_of(model.parameters()), "gradients": bytes_of(p.grad for p in trained)}
    states = [s[name] for s in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    own["optimizer"] = sum(s.to_local().nbytes for s in states)
    everyone = [None] * distributed.get_world_size()
    distributed.all_gather_object(everyone, own)
    return {"processes": everyone}


def bytes_of(tensors) -> int:
    """Of their parts here, padding included; tensors that share memory count once."""
    storages = [tensor.to_local().untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def main() -> None:
    """Arguments: output file, "ddp" or "fsdp", a tiny model's name, recipe fields as JSON."""
    result, sharding, kind, fields = sys.argv[1:]
    recipe = Recipe(**{"model": "tiny", "group_by_length": False} | json.loads(fields))
    done = ddp(recipe, Path(result).parent / "run") if sharding == "ddp" else fsdp(recipe, kind)
    if distributed.get_rank() == 0:
        Path(result).write_text(json.dumps(done), encoding="utf-8")
    leave(0)


if __name__ == "__main__":
    main()
