"""Every published layout of a Bloom loads to the same tokens; what can't be served is refused with its reason."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.workload import random_weights, save_bloom, save_config
from farm.errors import ModelRefused
from tests.engine.driving import bloom, one
from workers.engine.bloom import Bloom
from workers.engine.checkpoint import BloomConfig, find_checkpoint, find_config
from workers.engine.engine import Engine

SHAPE = BloomConfig(vocab=300, hidden=32, layers=2, heads=4)
PROMPT = [10, 40, 90, 200]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint as published: one file, names without prefix, tied head."""
    return save_bloom(tmp_path / "bloom", SHAPE, scale=6.0)


def tokens(model: Bloom) -> list[int]:
    return one(Engine(model, prefill_budget=64), PROMPT, max_tokens=12, ignore_eos=True).ids


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def prefixed(folder: Path) -> None:
    """As save_pretrained writes it."""
    save_file({f"transformer.{name}": tensor for name, tensor in weights(folder).items()}, folder / "model.safetensors")


def sharded(folder: Path) -> None:
    """Two files and an index."""
    tensors = weights(folder)
    (folder / "model.safetensors").unlink()
    where = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in set(where.values()):
        save_file({name: tensors[name] for name in tensors if where[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def explicit_head(folder: Path) -> None:
    """The tied head stored once more."""
    tensors = weights(folder)
    save_file({**tensors, "lm_head.weight": tensors["word_embeddings.weight"].clone()}, folder / "model.safetensors")


def old_names(folder: Path) -> None:
    """config.json as the first Blooms had it."""
    config = json.loads((folder / "config.json").read_text())
    config["n_embed"], config["num_attention_heads"] = config.pop("hidden_size"), config.pop("n_head")
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("layout", [prefixed, sharded, explicit_head, old_names])
def test_every_layout_gives_the_same_tokens(folder: Path, layout: Callable[[Path], None]) -> None:
    """How the file is laid out changes nothing."""
    expected = tokens(bloom(folder))
    layout(folder)
    assert tokens(bloom(folder)) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_are_computed_in_float32(folder: Path, dtype: torch.dtype) -> None:
    """The tokens are those of the rounded weights in a float32 file."""
    rounded = {name: tensor.to(dtype) for name, tensor in weights(folder).items()}
    save_file({name: tensor.float() for name, tensor in rounded.items()}, folder / "model.safetensors")
    expected = tokens(bloom(folder))
    save_file(rounded, folder / "model.safetensors")
    assert tokens(bloom(folder)) == expected


def test_a_head_of_its_own_is_used(folder: Path) -> None:
    """An untied head decides the tokens."""
    tied = tokens(bloom(folder))
    head = random_weights(SHAPE, seed=5)["word_embeddings.weight"]
    save_file({**weights(folder), "lm_head.weight": head}, folder / "model.safetensors")
    save_config(folder, SHAPE, tie_word_embeddings=False)
    assert tokens(bloom(folder)) != tied


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_model_computes_in_half_precision_when_asked(folder: Path, dtype: str) -> None:
    """FARM_MODEL__DTYPE is honoured by weights, cache and fingerprint."""
    from farm.settings import EngineSettings, ModelSettings

    half = Bloom(ModelSettings(id=str(folder), dtype=dtype), EngineSettings(threads=1, max_slots=2, max_context=128))
    assert len(tokens(half)) == 12
    assert half.ready.fingerprint != bloom(folder).ready.fingerprint


def test_the_fingerprint_follows_the_weights(folder: Path) -> None:
    """The same files give the same fingerprint, other weights or another configuration a different one."""
    first = find_checkpoint(str(folder)).fingerprint("float32")
    assert find_checkpoint(str(folder)).fingerprint("float32") == first
    changed = weights(folder)
    changed["ln_f.bias"] += 1
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    second = find_checkpoint(str(folder)).fingerprint("float32")
    save_config(folder, SHAPE, layer_norm_epsilon=1e-6)
    assert len({first, second, find_checkpoint(str(folder)).fingerprint("float32")}) == 3


def pickled_only(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def bad_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def other_architecture(folder: Path) -> None:
    save_config(folder, SHAPE, model_type="llama", architectures=["LlamaForCausalLM"])


def classifier(folder: Path) -> None:
    save_config(folder, SHAPE, architectures=["BloomForSequenceClassification"])


def remote_code(folder: Path) -> None:
    save_config(folder, SHAPE, auto_map={"AutoModelForCausalLM": "modeling.Mine"})


def quantized(folder: Path) -> None:
    save_config(folder, SHAPE, quantization_config={"quant_method": "gptq"})


def missing_shard(folder: Path) -> None:
    sharded(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def shard_elsewhere(folder: Path) -> None:
    sharded(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00002", "../model-00002"))


def missing_tensor(folder: Path) -> None:
    save_file(
        {k: v for k, v in weights(folder).items() if k != "h.1.mlp.dense_4h_to_h.bias"}, folder / "model.safetensors"
    )


def other_shape(folder: Path) -> None:
    save_config(folder, SHAPE, hidden_size=64)


def missing_layer(folder: Path) -> None:
    save_config(folder, SHAPE, n_layer=3)


def missing_head(folder: Path) -> None:
    save_config(folder, SHAPE, tie_word_embeddings=False)


def not_a_number(folder: Path) -> None:
    tensors = weights(folder)
    tensors["h.0.mlp.dense_h_to_4h.weight"][3, 5] = torch.nan
    save_file(tensors, folder / "model.safetensors")


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def integers(folder: Path) -> None:
    save_file({name: tensor.to(torch.int8) for name, tensor in weights(folder).items()}, folder / "model.safetensors")


def odd_heads(folder: Path) -> None:
    save_config(folder, SHAPE, n_head=5)


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (pickled_only, "pickled weights only"),
        (no_weights, "no model.safetensors"),
        (no_config, "no config.json"),
        (no_tokenizer, "no tokenizer.json"),
        (bad_tokenizer, "can't be read as a tokenizer"),
        (other_architecture, "LlamaForCausalLM"),
        (classifier, "BloomForSequenceClassification"),
        (remote_code, "auto_map"),
        (quantized, "quantized"),
        (missing_shard, "lacks 1 of 2 shards: model-00002"),
        (shard_elsewhere, "lacks 1 of 2 shards"),
        (missing_tensor, "h.1.mlp.dense_4h_to_h.bias"),
        (other_shape, "has shape"),
        (missing_layer, "h.2.input_layernorm"),
        (missing_head, "lm_head.weight"),
        (not_a_number, "h.0.mlp.dense_h_to_4h.weight holds NaN"),
        (truncated, "can't be read as safetensors"),
        (integers, "I8"),
        (odd_heads, "no multiple of n_head"),
        (broken_config, "not JSON"),
    ],
)
def test_a_checkpoint_that_cannot_be_served_is_refused_with_its_reason(
    folder: Path, damage: Callable[[Path], None], reason: str
) -> None:
    """The operator reads what is wrong, and nothing is run or guessed."""
    damage(folder)
    with pytest.raises(ModelRefused, match=r".+") as refused:
        bloom(folder)
    assert reason in str(refused.value)


@pytest.mark.parametrize("id", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_folder_that_is_missing_is_refused(id: str) -> None:
    """A path is never taken for a hub id."""
    with pytest.raises(ModelRefused, match="does not exist"):
        find_checkpoint(id)


def test_a_hub_id_that_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without network and without a cached copy the reason names both ways out."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelRefused, match="FARM_MODEL__REVISION"):
        find_checkpoint("bigscience/no-such-bloom", "main")


def test_a_hub_that_is_away_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without network an id that is not in the cache is refused in a moment: by its name, with what to do."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    began = time.monotonic()
    with pytest.raises(ModelRefused, match=r"bigscience/no-such-bloom is no folder.*no network.*hf download"):
        find_checkpoint("bigscience/no-such-bloom")
    with pytest.raises(ModelRefused, match=r"bigscience/no-such-bloom is no folder.*no network.*hf download"):
        find_config("bigscience/no-such-bloom")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("constant", "value"), [("HF_HUB_OFFLINE", True), ("ENDPOINT", "http://127.0.0.1:1")], ids=["told", "away"]
)
def test_a_hub_snapshot_is_taken_from_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, constant: str, value: object
) -> None:
    """A revision that was downloaded before serves without network, whether that is known beforehand or not."""
    commit = "0" * 40
    repo = tmp_path / "models--someone--bloom"
    save_bloom(repo / "snapshots" / commit, SHAPE)
    (repo / "refs").mkdir()
    (repo / "refs" / "v1").write_text(commit)
    monkeypatch.setattr(f"huggingface_hub.constants.{constant}", value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert find_checkpoint("someone/bloom", "v1").config == SHAPE


def test_too_little_memory_for_keys_and_values_is_refused(folder: Path) -> None:
    """The reason gives the sizes and the setting."""
    wide = save_bloom(folder.parent / "wide", BloomConfig(vocab=260, hidden=1024, layers=2, heads=4))
    with pytest.raises(ModelRefused, match="FARM_ENGINE__KV_BYTES"):
        bloom(wide, kv_bytes=1 << 16)
