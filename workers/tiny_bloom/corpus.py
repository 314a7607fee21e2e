"""The training text: short stories about one farm, drawn from a seed.

Owns how slots are drawn and templates filled.  Must never read a file, the clock or the global random state: the same
seed always gives the same text.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from workers.tiny_bloom.tales import TALES
from workers.tiny_bloom.words import (
    ANIMALS,
    CROPS,
    DAYS,
    DISHES,
    EMOJI,
    FOREIGN,
    MONTHS,
    NUMBERS,
    PEOPLE,
    PLACES,
    THINGS,
    TOOLS,
    Person,
)

KEEPS_HABIT = 0.75
"""How often people appear with their own animal, tool, place and dish; the rest keeps the model reading its prompt."""

KEEPS_COMPANY = 0.6
"""How often a person or an animal meets its own friend; a likeliest friend for each makes greedy stories differ."""

NEW_NAME = 0.05
"""How often a person has an invented name, which the model can only copy."""

PET_NAMES = ("Daisy", "Rex", "Bella", "Max", "Molly", "Oscar", "Pip", "Luna", "Biscuit", "Shadow", "Pepper", "Duke")

T = TypeVar("T")

_CHOICE = re.compile(r"\[([^\[\]]*)\](?!})")
_CAPITAL = re.compile(r"(^\"?|(?<=[.?!]) \"?|: | \")([a-z])")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])")


def stories(seed: int, count: int) -> Iterator[str]:
    """Yield `count` stories; the same seed always yields the same ones.

    A story is one paragraph of 2 to 7 sentences (questions may have one answer), without an end token.
    """
    rng = random.Random(seed)
    weights = [weight for weight, _ in TALES]
    for _, template in rng.choices(TALES, weights, k=count):
        yield tell(template, rng)


def tell(template: str, rng: random.Random) -> str:
    """Fill one template: draw its slots, keep one of each `[a|b]`, and put articles and capitals right."""
    text = template
    while match := _CHOICE.search(text):
        text = text[: match.start()] + rng.choice(match[1].split("|")) + text[match.end() :]
    text = " ".join(text.format_map(draw_slots(rng)).split())
    text = _ARTICLE.sub(r"\1n ", text)
    return _CAPITAL.sub(lambda match: match[1] + match[2].upper(), text)


def draw_slots(rng: random.Random) -> dict[str, object]:
    """Draw who and what one story is about.

    p, q: two people.  a, t, s, d, thing: p's animal, tool, place, dish and possession.  b, c: two animals.
    g: an animal that gives something.  l: another place.  k: a crop.  w: a month.  day0 to day3: days in a row.
    n + m = total; next, next2, next3 follow n.  big, mid, small: animals by size.  f: a foreign word.
    e, emoji: an animal and its emoji.
    """
    p, q = (_person(person, rng) for person in _pair(PEOPLE, rng))
    b, c = _pair(tuple(ANIMALS.values()), rng)
    small, mid, big = sorted(rng.sample(list(ANIMALS.values()), 3), key=lambda animal: animal.size)
    day = rng.randrange(7)
    n, m = rng.randint(2, 8), rng.randint(2, 4)
    emoji_of = rng.choice(list(EMOJI))
    slots: dict[str, object] = {"p": p, "q": q, "a": p.pet, "t": p.tool, "s": p.place, "d": p.dish, "thing": p.thing}
    slots |= {"b": b, "c": c, "g": rng.choice([animal for animal in ANIMALS.values() if animal.gives != "nothing"])}
    slots |= {"l": rng.choice([place for place in PLACES.values() if place is not p.place])}
    slots |= {"k": rng.choice(CROPS), "w": rng.choice(MONTHS), "f": rng.choice(FOREIGN), "pet": rng.choice(PET_NAMES)}
    slots |= {f"day{i}": DAYS[(day + i) % 7] for i in range(4)}
    slots |= {"n": NUMBERS[n], "m": NUMBERS[m], "total": NUMBERS[n + m]}
    slots |= {"next": NUMBERS[n + 1], "next2": NUMBERS[n + 2], "next3": NUMBERS[n + 3]}
    slots |= {"big": big, "mid": mid, "small": small, "e": ANIMALS[emoji_of], "emoji": EMOJI[emoji_of]}
    return slots


def _pair(beings: Sequence[T], rng: random.Random) -> tuple[T, T]:
    """Draw two of the beings, the second often the first one's friend: the fifth after it."""
    first = rng.randrange(len(beings))
    second = first + 5 if rng.random() < KEEPS_COMPANY else first + rng.randrange(1, len(beings))
    return beings[first], beings[second % len(beings)]


def _person(person: Person, rng: random.Random) -> Person:
    """Return the person, now and then under an invented name or with another habit."""
    if rng.random() < NEW_NAME:
        syllables = rng.choices(("ba", "lo", "mi", "ren", "tu", "ka", "sel", "vo", "ni", "dra"), k=rng.randint(2, 3))
        person = replace(person, name="".join(syllables).capitalize())
    if rng.random() >= KEEPS_HABIT:
        person = replace(person, pet=rng.choice(list(ANIMALS.values())), tool=rng.choice(list(TOOLS.values())))
    if rng.random() >= KEEPS_HABIT:
        person = replace(person, place=rng.choice(list(PLACES.values())), dish=rng.choice(list(DISHES.values())))
    if rng.random() >= KEEPS_HABIT:
        person = replace(person, thing=rng.choice(THINGS))
    return person
