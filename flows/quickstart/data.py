"""The quick start's data: chats with a tiny assistant that reads a sentence, knows opposites and says lists backwards.

    user       Ben gives Olga the red key. Who has the key now?
    assistant  Olga has the red key.
    user       Who gave it away?
    assistant  Ben gave it to Olga.
    user       Say the opposite: The old lamp is cold.
    assistant  The new lamp is warm.
    user       Say it backwards: the cup, the ring, the book.
    assistant  The book, the ring, the cup.

Nothing can be learned by heart. Before a chat is written, the pairs of people, the coloured things, the sentences and
the lists are dealt: each goes to the training part or to the held-out part. No held-out answer stands in the training
part.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import orjson

NAMES = (
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Felix",
    "Grace",
    "Hugo",
    "Iris",
    "Jonas",
    "Kate",
    "Leo",
    "Olga",
)
COLOURS = ("red", "blue", "green", "white", "black", "yellow", "brown", "grey")
THINGS = ("key", "lamp", "book", "cup", "hat", "ball", "box", "chair", "bag", "coin", "ring", "map", "pen", "clock")
OPPOSITES = (
    ("old", "new"),
    ("big", "small"),
    ("warm", "cold"),
    ("clean", "dirty"),
    ("full", "empty"),
    ("heavy", "light"),
    ("open", "closed"),
    ("wet", "dry"),
)
OPPOSITE_OF = {**dict(OPPOSITES), **{second: first for first, second in OPPOSITES}}
HELD_OUT_SHARE = 0.15

TRAIN_FILE, HELD_OUT_FILE = "train.jsonl", "heldout.jsonl"

Message = dict[str, str]
Row = dict[str, list[Message]]
"""`{"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}, ...]}`"""

Exchange = tuple[str, str]
"""(question of the user, answer of the assistant)"""

Sentence = tuple[str, str, str]
"""(adjective, thing, adjective): "The old lamp is cold.\""""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Material:
    """What the chats of one part are made of; the two parts have none of it in common.

    Attributes:
        people: two people, either of whom gives.
        objects: (colour, thing).
        sentences: a sentence and its opposite, either of which is asked for, with its adjectives in either order.
        lists: three things, asked for in any order.
    """

    people: Sequence[tuple[str, str]]
    objects: Sequence[tuple[str, str]]
    sentences: Sequence[tuple[Sentence, Sentence]]
    lists: Sequence[tuple[str, ...]]


def generate(seed: int = 0, rows: int = 4000, held_out_rows: int = 100) -> tuple[list[Row], list[Row]]:
    """Return (training rows, held-out rows); the same arguments always give the same rows."""
    rng = random.Random(seed)
    train, held_out = _dealt(rng)
    return [_row(train, rng) for _ in range(rows)], [_row(held_out, rng) for _ in range(held_out_rows)]


def write(folder: Path) -> None:
    """Write `train.jsonl` and `heldout.jsonl` into a folder."""
    for name, rows in zip((TRAIN_FILE, HELD_OUT_FILE), generate(), strict=True):
        (folder / name).write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))


def read(path: Path) -> list[Row]:
    """Return the rows of a file that `write` wrote."""
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def questions(rows: Iterable[Row]) -> list[tuple[list[Message], str]]:
    """Return (the chat up to a question, the right answer) for every turn of the assistant."""
    return [
        (row["messages"][:turn], message["content"])
        for row in rows
        for turn, message in enumerate(row["messages"])
        if message["role"] == "assistant"
    ]


def _dealt(rng: random.Random) -> tuple[Material, Material]:
    """Return the material of (training part, held-out part)."""
    people, other_people = _split(list(itertools.combinations(NAMES, 2)), rng)
    objects, other_objects = _split(list(itertools.product(COLOURS, THINGS)), rng)
    sentences, other_sentences = _split(_sentences(), rng)
    lists, other_lists = _split(list(itertools.combinations(THINGS, 3)), rng)
    return (
        Material(people, objects, sentences, lists),
        Material(other_people, other_objects, other_sentences, other_lists),
    )


def _split(items: list[Item], rng: random.Random) -> tuple[list[Item], list[Item]]:
    rng.shuffle(items)
    held_out = round(len(items) * HELD_OUT_SHARE)
    return items[held_out:], items[:held_out]


def _sentences() -> list[tuple[Sentence, Sentence]]:
    """Return each sentence once, with its opposite; both adjectives speak of different properties."""
    pairs = itertools.combinations(OPPOSITES, 2)
    return [
        ((first, thing, second), (OPPOSITE_OF[first], thing, OPPOSITE_OF[second]))
        for (first, _), seconds in pairs
        for second, thing in itertools.product(seconds, THINGS)
    ]


def _row(material: Material, rng: random.Random) -> Row:
    """Return a chat about one or two topics."""
    topics = rng.sample((_gift, _opposite, _backwards), rng.choice((1, 2)))
    messages: list[Message] = []
    for question, answer in itertools.chain.from_iterable(topic(material, rng) for topic in topics):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages}


def _gift(material: Material, rng: random.Random) -> list[Exchange]:
    """Return a sentence with a question about it, and two questions that lean on it."""
    giver, receiver = rng.sample(rng.choice(material.people), 2)
    colour, thing = rng.choice(material.objects)
    asked = (
        (f"Who has the {thing} now?", f"{receiver} has the {colour} {thing}."),
        ("Who gave it away?", f"{giver} gave it to {receiver}."),
        ("What colour is it?", f"The {thing} is {colour}."),
    )
    (question, answer), *others = rng.sample(asked, 3)
    return [(f"{giver} gives {receiver} the {colour} {thing}. {question}", answer), *others]


def _opposite(material: Material, rng: random.Random) -> list[Exchange]:
    asked, answer = rng.sample(rng.choice(material.sentences), 2)
    if rng.random() < 0.5:
        asked, answer = asked[::-1], answer[::-1]
    return [(f"Say the opposite: {_sentence(asked)}", _sentence(answer))]


def _sentence(parts: Sentence) -> str:
    first, thing, second = parts
    return f"The {first} {thing} is {second}."


def _backwards(material: Material, rng: random.Random) -> list[Exchange]:
    things = [f"the {thing}" for thing in rng.sample(rng.choice(material.lists), 3)]
    return [(f"Say it backwards: {', '.join(things)}.", f"{', '.join(reversed(things)).capitalize()}.")]
