"""The bundled tiny Bloom: small, loadable as any Bloom is, and able to tell a story."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BloomForCausalLM

from workers.tiny_bloom import FOLDER, PROMPTS
from workers.tiny_bloom.corpus import stories
from workers.tiny_bloom.scoring import Bigram, nats_per_token
from workers.tiny_bloom.train import EOS_ID, PAD_ID, encode, held_out_stories, main, training_stories

MAX_BYTES = 3_000_000
MARGIN_NATS = 1.5
"""How much better than a bigram model, in nats per token; the shipped weights are ahead by 1.99."""

HELD_OUT = 300
PHRASE_WORDS = 6
"""A story may say a short phrase twice; six words in a row, thrice, is a loop."""


@pytest.fixture(scope="module")
def model() -> BloomForCausalLM:
    return BloomForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


@pytest.fixture(scope="module")
def prompts() -> list[dict[str, str | int]]:
    return [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def completions(model: BloomForCausalLM, prompts: list[dict[str, str | int]]) -> list[list[int]]:
    """Return the greedy completion of every bundled prompt, as token ids, in one left-padded batch."""
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    batch = tokenizer([prompt["prompt"] for prompt in prompts], return_tensors="pt", padding=True)
    longest = max(int(prompt["max_tokens"]) for prompt in prompts)
    out = model.generate(**batch, max_new_tokens=longest, do_sample=False)
    rows = out[:, batch["input_ids"].shape[1] :].tolist()
    return [row[: int(prompt["max_tokens"])] for row, prompt in zip(rows, prompts, strict=True)]


@pytest.mark.fast
def test_the_weights_are_under_three_megabytes() -> None:
    """The weights file is under 3 MB, and so is the whole model with its tokenizer."""
    files = [path for path in FOLDER.iterdir() if path.suffix in {".safetensors", ".json"}]
    assert (FOLDER / "model.safetensors") in files
    assert sum(path.stat().st_size for path in files) < MAX_BYTES


@pytest.mark.fast
def test_the_file_is_laid_out_as_published_bloom_files_are() -> None:
    """Tensors are named without `transformer.`, the tied head is left out, and about a million numbers remain."""
    weights = load_file(FOLDER / "model.safetensors")
    assert {name.split(".")[0] for name in weights} == {"word_embeddings", "word_embeddings_layernorm", "h", "ln_f"}
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    assert 800_000 < sum(weight.numel() for weight in weights.values()) < 1_300_000


def test_transformers_loads_it_without_a_missing_key(recwarn: pytest.WarningsRecorder) -> None:
    """`from_pretrained` takes the folder: no key is missing or unexpected, the head is the embedding."""
    model, report = BloomForCausalLM.from_pretrained(FOLDER, output_loading_info=True)
    assert not any(report.values()), report
    assert not recwarn.list
    assert model.config.architectures == ["BloomForCausalLM"]
    assert model.lm_head.weight is model.transformer.word_embeddings.weight
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(FOLDER))


@pytest.mark.fast
@pytest.mark.parametrize(
    "text",
    [
        "The goat climbed the wall.",
        "  two  spaces,\ttabs\nand a line's end \n",
        "牛は草を食べます。今天下雨。",
        "דג, दूध गरम है, الماء بارد",
        "🐄👩‍🌾🏳️‍🌈 and 🪿",
        "\u0000 \ufeff e\u0301 don't we 've",
    ],
)
def test_the_tokenizer_gives_back_any_text(tokenizer: Tokenizer, text: str) -> None:
    """Any UTF-8 text comes back byte for byte, without an unknown token, from both ways of loading the tokenizer."""
    ids = tokenizer.encode(text).ids
    assert min(ids) > PAD_ID
    assert tokenizer.decode(ids) == text
    loaded = AutoTokenizer.from_pretrained(FOLDER)
    assert loaded(text)["input_ids"] == ids
    assert loaded.decode(ids) == text


@pytest.mark.fast
def test_special_tokens_have_the_ids_that_the_config_names(tokenizer: Tokenizer) -> None:
    """<s>, </s> and <pad> in the tokenizer are the model's bos, eos and pad, each read as one token."""
    config = json.loads((FOLDER / "config.json").read_text())
    for name in ("bos", "eos", "pad"):
        token = json.loads((FOLDER / "special_tokens_map.json").read_text())[f"{name}_token"]
        assert tokenizer.encode(token).ids == [config[f"{name}_token_id"]]


@pytest.mark.fast
def test_the_corpus_follows_from_its_seed() -> None:
    """The same seed tells the same stories, another seed tells others, and no template mark is left in them."""
    told = list(stories(7, 50))
    assert told == list(stories(7, 50))
    assert len(set(told) & set(stories(8, 50))) < 10
    assert not any(mark in story for story in told for mark in "{}[]|")


def test_it_predicts_unseen_stories_far_better_than_a_bigram_model(
    model: BloomForCausalLM, tokenizer: Tokenizer
) -> None:
    """On stories it never saw, it beats the bigram model of its own training text by 1.5 nats per token or more."""
    seen = training_stories()
    held_out = encode(tokenizer, held_out_stories(seen, HELD_OUT))
    assert len(held_out) > HELD_OUT // 2
    bigram = Bigram.fit(encode(tokenizer, seen), tokenizer.get_vocab_size())
    assert nats_per_token(model, held_out) < bigram.nats_per_token(held_out) - MARGIN_NATS


@pytest.mark.fast
def test_a_bigram_model_is_a_distribution() -> None:
    """The baseline is honest: its probabilities over the next token sum to one, and it prefers what it saw."""
    bigram = Bigram.fit([[0, 1, 2, 1], [0, 1]], vocab_size=4, k=0.5)
    losses = [bigram.nats_per_token([[1, token]]) for token in range(4)]
    assert sum(torch.exp(-torch.tensor(losses))) == pytest.approx(1)
    assert min(range(4), key=losses.__getitem__) == 2


@pytest.mark.fast
def test_demo_prompts_are_distinct_and_short(prompts: list[dict[str, str | int]]) -> None:
    """There are some 48 prompts with distinct ids and texts, and each leaves the model room to finish."""
    assert 40 <= len(prompts) <= 56
    assert len({prompt["custom_id"] for prompt in prompts}) == len(prompts)
    assert len({prompt["prompt"] for prompt in prompts}) == len(prompts)
    assert all(set(prompt) == {"custom_id", "prompt", "max_tokens"} for prompt in prompts)
    assert all(32 <= int(prompt["max_tokens"]) <= 128 for prompt in prompts)


def test_every_demo_prompt_gets_its_own_readable_story(completions: list[list[int]], tokenizer: Tokenizer) -> None:
    """Greedy completions are distinct, printable, in plain sentences, and never loop."""
    texts = [tokenizer.decode(ids) for ids in completions]
    assert len(set(texts)) == len(texts)
    for text in texts:
        assert text.isprintable()
        assert "\ufffd" not in text
        words = text.split()
        phrases = Counter(tuple(words[i : i + PHRASE_WORDS]) for i in range(len(words) - PHRASE_WORDS + 1))
        assert not phrases or max(phrases.values()) < 3, text
        assert text.rstrip()[-1] in '.!?"', text


def test_stories_end_by_themselves_at_many_lengths(completions: list[list[int]]) -> None:
    """Every greedy completion stops at </s> within its max_tokens, after anything from a few tokens to dozens."""
    lengths = [ids.index(EOS_ID) for ids in completions]
    assert len(set(lengths)) > len(lengths) // 3
    assert min(lengths) >= 3
    assert max(lengths) > 40


def test_greedy_output_answers_the_prompt(completions: list[list[int]], tokenizer: Tokenizer) -> None:
    """What the prompt names comes back in the completion: the model reads its context, as no bigram model can."""
    prompts = [json.loads(line)["prompt"] for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    stories_by_prompt = dict(zip(prompts, map(tokenizer.decode, completions), strict=True))
    for prompt, expected in (
        ("Question: What does a donkey eat?", "thistles"),
        ("Question: What day comes after Thursday?", "Friday"),
        ("On Friday, Clara went to the market. On Saturday,", "she"),
        ("I live in a hive and I eat nectar.", "bee"),
        ("The old scythe was broken.", "scythe"),
        ("Tara had four hens. She bought three more at the market.", "seven hens"),
    ):
        assert expected in stories_by_prompt[prompt]


def test_training_writes_a_folder_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three steps of the shipped recipe write every file, and the last line printed is the figures."""
    threads = str(torch.get_num_threads())
    main(["--out", str(tmp_path), "--steps", "3", "--stories", "400", "--held-out", "40", "--threads", threads])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    shipped = {path.name for path in FOLDER.iterdir() if path.suffix in {".safetensors", ".json"}}
    assert {path.name for path in tmp_path.iterdir()} == shipped
    model, report = BloomForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert figures["parameters"] == model.num_parameters()
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token_id == EOS_ID


@pytest.mark.fast
def test_training_refuses_nonsense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A step count below one is refused with the option, the value and the limit."""
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--steps", "0"])
    assert "--steps must be 1 or more, not 0" in capsys.readouterr().err
