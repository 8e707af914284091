r"""Plain conversations, fifty times as fast: those whose template only copies contents.

`stages.templates.proof` proves for a template that the text around the contents depends on the roles alone. So one
rendering for each sequence of roles, with marks for contents, is a skeleton into which the contents of all such
conversations are put, and what each turn says is where its content was put:

    roles     user, assistant
    skeleton  <|im_start|>user\n ① <|im_end|>\n<|im_start|>assistant\n ② <|im_end|>\n

Whatever is not plain (other keys than role and content, tools, a system column, an empty content, white space where the
template trims) is left to `ChatFormat`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import orjson

from configs.schema import DatasetConfig
from stages.formats.messages import MessageReader
from stages.formats.pieces import Piece, Span, Turn
from stages.templates.choice import ChatTemplate, RenderError
from stages.templates.proof import Needs

MARK = re.compile("\ue000(\\d+)\ue001")
MAX_SKELETONS = 10_000


@dataclass(frozen=True)
class _Skeleton:
    """The text around contents.

    Attributes:
        parts: literal texts, with an empty place for a content between each two.
        order: the number of the message whose content is at each of these places.
        turns: (index into `parts`, whether it is trained) of each turn that is looked at.
    """

    parts: list[str]
    order: list[int]
    turns: list[tuple[int, bool]]

    def filled(self, contents: list[str]) -> Piece:
        parts = self.parts.copy()
        parts[1::2] = [contents[number] for number in self.order]
        ends = list(accumulate(map(len, parts)))
        turns = tuple(Turn(Span(ends[at - 1], ends[at]), trained) for at, trained in self.turns)
        return Piece("".join(parts), turns=turns)


class PlainChats:
    """The plain conversations of one data set."""

    def __init__(self, dataset: DatasetConfig, template: ChatTemplate, needs: Needs, reader: MessageReader) -> None:
        self._template, self._needs, self._reader = template, needs, reader
        self._field = dataset.field_messages
        self._others = (dataset.field_tools, dataset.field_system)
        self._role, self._content = dataset.message_properties["role"], dataset.message_properties["content"]
        self._every = "all" in (dataset.train_on_eos, dataset.train_on_eot)
        self._copies_all = not needs.clean_edges and not needs.without
        self._skeletons: dict[tuple[str, ...], _Skeleton | None] = {}

    def pieces(self, raw: bytes) -> list[Piece] | None:
        """Return what `ChatFormat.pieces` does, None if the row is not plain."""
        try:
            row = orjson.loads(raw)
            items = row[self._field]
            if any(row.get(name) is not None for name in self._others) or not isinstance(items, list):
                return None
            roles = tuple([item[self._role] for item in items])
            contents = [item[self._content] for item in items]
            skeleton = self._skeleton(roles)
        except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
            return None
        if skeleton is None or any([len(item) != 2 for item in items]) or not self._copied(contents):
            return None
        return [skeleton.filled(contents)]

    def _copied(self, contents: list[Any]) -> bool:
        if any([type(content) is not str for content in contents]):
            return False
        return all(contents) if self._copies_all else all(map(self._needs.met_by, contents))

    def _skeleton(self, roles: tuple[str, ...]) -> _Skeleton | None:
        if roles not in self._skeletons:
            if len(self._skeletons) >= MAX_SKELETONS:
                return None
            self._skeletons[roles] = self._rendered(roles)
        return self._skeletons[roles]

    def _rendered(self, names: Sequence[str]) -> _Skeleton | None:
        """Return the skeleton of a sequence of roles, None if a turn is not written exactly once."""
        if not names or any(type(name) is not str or MARK.search(name) for name in names):
            return None
        roles = [self._reader.role(name) for name in names]
        marked = [{"role": role, "content": f"\ue000{number}\ue001"} for number, role in enumerate(roles)]
        try:
            parts = MARK.split(self._template.render(marked, tools=None))
        except RenderError:
            return None
        order = [int(part) for part in parts[1::2]]
        times, turns = Counter(order), []
        for number, role in enumerate(roles):
            trained = self._reader.trains(role)
            if self._every or trained:
                if times[number] != 1:
                    return None
                turns.append((1 + 2 * order.index(number), trained))
        return _Skeleton(parts, order, turns)


def plain_chats(dataset: DatasetConfig, template: ChatTemplate, train_on_inputs: bool) -> PlainChats | None:
    """Return the plain conversations of a data set, None if its template or its options look into contents."""
    keys = dataset.message_properties
    needs = template.copying_needs()
    flags = {dataset.message_field_training, dataset.message_field_training_detail}
    if needs is None or not {"role", "content"} <= keys.keys() or flags & {keys["role"], keys["content"]}:
        return None
    if dataset.split_thinking or dataset.drop_system_message or not needs.met_by("\ue0000\ue001"):
        return None
    return PlainChats(dataset, template, needs, MessageReader(dataset, train_on_inputs))
