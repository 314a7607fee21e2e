"""Find a Bloom checkpoint and say whether it can be served: from a folder, the model hub or the farm's own package.

Reads config.json and the files' names; tensors are ``weights``' affair. Never opens a pickle or runs a model's code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farm.errors import ModelRefused

PACKAGED = {"tiny-bloom": "tiny_bloom"}
"""Models that come with the farm, and their folders in ``workers/``."""

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_WANTED = ["*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer.json"]
_ARCHITECTURES = {"BloomForCausalLM", "BloomModel"}
_HEAD_BYTES = 1 << 16
_HUB_S = 10.0  # how long the hub may take to say what it has


@dataclass(frozen=True, slots=True)
class BloomConfig:
    """The shape of a Bloom. ``hidden`` is ``heads`` x ``head_dim``."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    norm_eps: float = 1e-5
    residual_post_norm: bool = False
    tied: bool = True

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that may be loaded: its folder, shape, safetensors files and end-of-text tokens."""

    folder: Path
    config: BloomConfig
    files: tuple[Path, ...]
    eos_ids: frozenset[int]

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer.json"

    def fingerprint(self, dtype: str) -> str:
        """16 hex digits that change with configuration, weights or dtype.

        SHA-256 over config.json and each weight file's name, size, first and last 64 KiB: the head holds every tensor's
        name, shape and place, and reading 14 GB would double the load time.
        """
        digest = hashlib.sha256(dtype.encode() + (self.folder / "config.json").read_bytes())
        for path in self.files:
            size = path.stat().st_size
            digest.update(f"{path.name}:{size}:".encode())
            with path.open("rb") as file:
                digest.update(file.read(_HEAD_BYTES))
                file.seek(max(0, size - _HEAD_BYTES))
                digest.update(file.read(_HEAD_BYTES))
        return digest.hexdigest()[:16]


def find_checkpoint(model_id: str, revision: str | None = None) -> Checkpoint:
    """Resolve a model id to a checkpoint: a folder, a packaged model or a hub id.

    Raises ModelRefused with the reason: nothing there, pickled weights only, another architecture, remote code,
    quantized, or shards missing.
    """
    folder = _folder(model_id, revision, _download)
    config = _config(folder)
    files = _weight_files(folder)
    shape = _shape(config, folder)
    return Checkpoint(folder, shape, files, _eos_ids(folder, config, shape.vocab))


def find_config(model_id: str, revision: str | None = None) -> BloomConfig:
    """The shape of a model whose weights need not be here: of a hub id, config.json alone is downloaded.

    Raises ModelRefused with the reason, as ``find_checkpoint`` does.
    """
    folder = _folder(model_id, revision, _download_config)
    return _shape(_config(folder), folder)


def _config(folder: Path) -> dict[str, Any]:
    """The folder's config.json. Raises ModelRefused unless it is one of a Bloom."""
    config = _read_json(folder / "config.json")
    if config is None:
        raise ModelRefused(f"{folder} has no config.json; FARM_MODEL__ID must name a checkpoint's folder")
    _check_kind(config, folder)
    return config


def _folder(model_id: str, revision: str | None, download: Callable[[str, str | None], Path]) -> Path:
    path = Path(model_id).expanduser()
    if path.is_dir():
        return path.resolve()
    if model_id in PACKAGED:
        packaged = Path(__file__).resolve().parent.parent / PACKAGED[model_id]
        if not packaged.is_dir():
            raise ModelRefused(
                f"{model_id} is not part of this installation: {packaged} is missing; install the farm again"
            )
        return packaged
    if path.is_absolute() or model_id.startswith((".", "~")) or model_id.count("/") > 1:
        raise ModelRefused(f"model folder {path} does not exist; set FARM_MODEL__ID to a folder or a hub id")
    try:
        return download(model_id, revision)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        if type(error).__name__ == "LocalEntryNotFoundError":  # the hub's, which is not imported for a folder
            reason = "no network, or it is told to be offline, and no copy is in its cache"
        at = f" at revision {revision}" if revision else ""
        raise ModelRefused(
            f"{model_id}{at} is no folder here and can't be had from the hub: {reason}; check FARM_MODEL__ID, "
            f"FARM_MODEL__REVISION and the network, or bring it here (where there is one: hf download {model_id} "
            "--local-dir DIR) and set FARM_MODEL__ID to its folder"
        ) from error


def _download(model_id: str, revision: str | None) -> Path:
    """The hub's files in the local cache, as they are there if the hub can't be reached.

    Raises ModelRefused when they are pickled, the hub's errors otherwise.
    """
    from huggingface_hub import snapshot_download  # here because it takes 0.3 s, and a folder needs no hub

    names = _hub_names(model_id, revision)
    if names is not None and not any(name.endswith(".safetensors") for name in names):
        raise ModelRefused(_no_safetensors(model_id))
    is_away = names is None
    return Path(snapshot_download(model_id, revision=revision, allow_patterns=_WANTED, local_files_only=is_away))


def _download_config(model_id: str, revision: str | None) -> Path:
    """The folder of the hub's config.json in the local cache. Raises the hub's errors."""
    from huggingface_hub import hf_hub_download  # 0.3 s, as above

    is_away = _hub_names(model_id, revision) is None
    return Path(hf_hub_download(model_id, "config.json", revision=revision, local_files_only=is_away)).parent


def _hub_names(model_id: str, revision: str | None) -> list[str] | None:
    """The names of a model's files on the hub; None if that can't be reached. Raises the hub's errors.

    One call without retries: without a network the hub's other calls would try again for 23 s.
    """
    from httpx2 import TransportError
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return None
    try:
        files = HfApi().model_info(model_id, revision=revision, timeout=_HUB_S).siblings or []
    except TransportError:
        return None
    return [file.rfilename for file in files]


def _read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is no file. Raises ModelRefused for anything else."""
    if not path.is_file():
        return None
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelRefused(f"{path} is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise ModelRefused(f"{path} is not a JSON object")
    return body


def _check_kind(config: dict[str, Any], folder: Path) -> None:
    kind, architectures = config.get("model_type"), config.get("architectures") or ["BloomForCausalLM"]
    if "auto_map" in config:
        raise ModelRefused(f"{folder} wants to run its own code (auto_map in config.json), which the farm never does")
    if kind != "bloom" or not _ARCHITECTURES.intersection(architectures):
        raise ModelRefused(
            f"{folder} holds {', '.join(map(str, architectures))} of type {kind!r}; the farm serves BloomForCausalLM"
        )
    if "quantization_config" in config:
        raise ModelRefused(f"{folder} is quantized; the farm loads fp16, bf16 and fp32 weights")


def _shape(config: dict[str, Any], folder: Path) -> BloomConfig:
    """The shape in config.json. Raises ModelRefused for one that is no Bloom's."""

    def number(*names: str) -> int:
        value = next((config[name] for name in names if config.get(name) is not None), None)
        if not isinstance(value, int) or value < 1:
            raise ModelRefused(f"{folder / 'config.json'} gives no positive {names[0]}")
        return value

    shape = BloomConfig(
        vocab=number("vocab_size"),
        hidden=number("hidden_size", "n_embed"),
        layers=number("n_layer", "num_hidden_layers"),
        heads=number("n_head", "num_attention_heads"),
        norm_eps=float(config.get("layer_norm_epsilon", 1e-5)),
        residual_post_norm=bool(config.get("apply_residual_connection_post_layernorm", False)),
        tied=bool(config.get("tie_word_embeddings", True)),
    )
    if shape.hidden % shape.heads:
        raise ModelRefused(f"{folder}: hidden_size {shape.hidden} is no multiple of n_head {shape.heads}")
    return shape


def _weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files, all there. Raises ModelRefused."""
    single = folder / "model.safetensors"
    if single.is_file():
        return (single,)
    index = _read_json(folder / "model.safetensors.index.json")
    if index is None:
        raise ModelRefused(_no_safetensors(str(folder), any(any(folder.glob(pattern)) for pattern in _PICKLED)))
    names = sorted({str(name) for name in index.get("weight_map", {}).values()})
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing or not names:
        raise ModelRefused(
            f"{folder} lacks {len(missing)} of {len(names)} shards: {', '.join(missing[:3])}; download it again"
        )
    return tuple(folder / name for name in names)


def _no_safetensors(place: str, pickled: bool = True) -> str:
    if pickled:
        return f"{place} holds pickled weights only, which can run code when opened; convert them to safetensors"
    return f"{place} holds no model.safetensors and no index of shards"


def _eos_ids(folder: Path, config: dict[str, Any], vocab: int) -> frozenset[int]:
    """End-of-text tokens of the vocabulary: generation_config.json's, else config.json's, as transformers does."""
    generation = _read_json(folder / "generation_config.json") or {}
    eos = generation.get("eos_token_id", config.get("eos_token_id", 2))
    ids = eos if isinstance(eos, list) else [eos]
    return frozenset(id for id in ids if isinstance(id, int) and 0 <= id < vocab)
