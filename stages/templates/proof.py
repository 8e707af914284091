"""What a chat template does with the contents of messages, read from its syntax tree.

Many templates only copy contents: whatever they say, the text around them is the same. Then one rendering with marks in
the place of contents is a skeleton that serves all conversations with the same roles. This module proves it, for plain
conversations, whose messages have a role and a content that is text, and nothing else.

Every expression is of one kind: free of contents, all messages, one message, a content as it is, or a text with one.
Contents may be assigned, joined to other text, and written. Whatever could look into one (a filter, a comparison, a
call) ends the proof, but for what a condition on the contents makes certain:

    {{ message.content | trim }}                        it has no white space at its edges
    {% if '</think>' in message.content %}              it does not hold that text, so the branch is dead
    {% if message.content %}                            it is not empty, which is always asked

Names are taken without regard to order: a name that is given a content anywhere holds one everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from jinja2 import nodes

MAX_PASSES = 12
STRIPS = frozenset({"strip", "lstrip", "rstrip"})
EDGE_TESTS = frozenset({"startswith", "endswith"})
OF_TYPE = {"string": True, "defined": True, "iterable": True, "sequence": True,
           "none": False, "undefined": False, "mapping": False, "number": False, "boolean": False}  # fmt: skip
"""Tests that see only that a content is text, and their answer."""


class Kind(Enum):
    """What an expression can be."""

    FREE = "free of contents"
    MESSAGES = "messages"
    MESSAGE = "one message"
    CONTENT = "a content"
    TEXT = "a text with contents"


@dataclass(frozen=True)
class Needs:
    """What must hold for contents so that a template does nothing but copy them.

    Attributes:
        clean_edges: no white space at their edges.
        without: texts that they do not hold.
    """

    clean_edges: bool
    without: frozenset[str]

    def met_by(self, content: str) -> bool:
        """Return whether the template only copies this content."""
        if not content or (self.clean_edges and content.strip() != content):
            return False
        return not any(text in content for text in self.without)


def what_copying_needs(template: nodes.Template) -> Needs | None:
    """Return under which conditions a template only copies contents, None if it may look into them."""
    reader = _Reader()
    try:
        for _ in range(MAX_PASSES):
            before = dict(reader.names)
            reader.statements(template.body)
            if reader.names == before:
                return Needs(reader.clean_edges, frozenset(reader.without))
    except _LooksInsideError:
        pass
    return None


class _LooksInsideError(Exception):
    """The template may do with a content what is not copying."""


@dataclass
class _Reader:
    names: dict[str, Kind] = field(default_factory=lambda: {"messages": Kind.MESSAGES})
    clean_edges: bool = False
    without: set[str] = field(default_factory=set)

    def statements(self, body: list[nodes.Node]) -> None:
        for node in body:
            self._statement(node)

    def _statement(self, node: nodes.Node) -> None:
        match node:
            case nodes.Output():
                for part in node.nodes:
                    self._no_message(part)
            case nodes.If():
                self._branches([(node.test, node.body), *((e.test, e.body) for e in node.elif_)], node.else_)
            case nodes.For():
                self._loop(node)
            case nodes.Assign():
                self._assign(node.target, self.kind(node.node))
            case nodes.ExprStmt():
                self.kind(node.node)
            case nodes.Break() | nodes.Continue():
                pass
            case _:
                self._block(node)

    def _block(self, node: nodes.Node) -> None:
        match node:
            case nodes.AssignBlock(filter=None):
                self._assign(node.target, Kind.TEXT)
            case nodes.Macro():
                self._free(*node.defaults)
            case nodes.Scope() | nodes.CallBlock(call=nodes.Call(node=nodes.ExtensionAttribute())):
                pass  # the second is {% generation %}
            case _:
                raise _LooksInsideError(type(node).__name__)
        self.statements(node.body)

    def _branches(self, tests: list[tuple[nodes.Node, list[nodes.Node]]], otherwise: list[nodes.Node]) -> None:
        for test, body in tests:
            self.kind(test)
            answer = self.truth(test)
            if answer is not False:
                self.statements(body)
            if answer is True:
                return
        self.statements(otherwise)

    def _loop(self, node: nodes.For) -> None:
        over = self.kind(node.iter)
        if over not in (Kind.FREE, Kind.MESSAGES):
            raise _LooksInsideError("a loop over a content")
        self._assign(node.target, Kind.FREE if over is Kind.FREE else Kind.MESSAGE)
        if node.test is not None:
            self.kind(node.test)
        self.statements(node.body)
        self.statements(node.else_)

    def _assign(self, target: nodes.Node, kind: Kind) -> None:
        match target:
            case nodes.Name():
                name = target.name
            case nodes.NSRef():
                name = f"{target.name}.{target.attr}"
            case nodes.Tuple() if kind is Kind.FREE:
                for item in target.items:
                    self._assign(item, kind)
                return
            case _:
                raise _LooksInsideError("an assignment to several names")
        self.names[name] = _joined(self.names.get(name, kind), kind)

    def _no_message(self, node: nodes.Node) -> Kind:
        kind = self.kind(node)
        if kind in (Kind.MESSAGE, Kind.MESSAGES):
            raise _LooksInsideError("a whole message")
        return kind

    def _free(self, *parts: nodes.Node | None) -> Kind:
        if any(part is not None and self.kind(part) is not Kind.FREE for part in parts):
            raise _LooksInsideError("an operation on a content")
        return Kind.FREE

    def kind(self, node: nodes.Node) -> Kind:
        """Return the kind of an expression. Raises where it may look into a content."""
        match node:
            case nodes.Name():
                return self.names.get(node.name, Kind.FREE)
            case nodes.Getattr() | nodes.Getitem():
                return self._member(node)
            case nodes.Filter():
                return self._filter(node)
            case nodes.Test():
                return self._test(node)
            case nodes.Compare():
                return self._compare(node)
            case nodes.Concat():
                return self._text(node.nodes)
            case nodes.Add():
                return self._text([node.left, node.right])
            case nodes.Call():
                return self._call(node)
        return self._logic(node)

    def _logic(self, node: nodes.Node) -> Kind:
        match node:
            case nodes.And() | nodes.Or():
                left = self.kind(node.left)
                decided = self.truth(node.left) is isinstance(node, nodes.Or)
                return left if decided else _joined(left, self.kind(node.right))
            case nodes.Not():
                self.kind(node.node)
                return Kind.FREE
            case nodes.CondExpr():
                self.kind(node.test)
                other = Kind.FREE if node.expr2 is None else self.kind(node.expr2)
                return _joined(self.kind(node.expr1), other)
        return self._free(*node.iter_child_nodes())

    def _text(self, parts: list[nodes.Expr]) -> Kind:
        kinds = {self._no_message(part) for part in parts}
        return Kind.FREE if kinds <= {Kind.FREE} else Kind.TEXT

    def _member(self, node: nodes.Getattr | nodes.Getitem) -> Kind:
        key = node.attr if isinstance(node, nodes.Getattr) else _constant(node.arg)
        if isinstance(node.node, nodes.Name) and f"{node.node.name}.{key}" in self.names:
            return self.names[f"{node.node.name}.{key}"]
        if isinstance(node.node, nodes.Name) and node.node.name == "loop":
            return Kind.MESSAGE if key in ("previtem", "nextitem") else Kind.FREE
        of = self.kind(node.node)
        if isinstance(node, nodes.Getitem):
            self._free(node.arg)
        if of is Kind.MESSAGES and isinstance(node, nodes.Getitem) and not isinstance(key, str):
            return Kind.MESSAGES if isinstance(node.arg, nodes.Slice) else Kind.MESSAGE
        if of is Kind.MESSAGE and isinstance(key, str):
            return Kind.CONTENT if key == "content" else Kind.FREE
        if of is not Kind.FREE:
            raise _LooksInsideError("a part of a content")
        return of

    def _filter(self, node: nodes.Filter) -> Kind:
        if node.node is None:
            raise _LooksInsideError("a filter block")
        of = self.kind(node.node)
        self._free(*node.args, *(pair.value for pair in node.kwargs), node.dyn_args, node.dyn_kwargs)
        plain = not node.args and not node.kwargs
        if of is Kind.MESSAGES and node.name in ("length", "count"):
            return Kind.FREE
        if of is Kind.MESSAGES and plain and node.name in ("first", "last"):
            return Kind.MESSAGE
        if of is Kind.CONTENT and plain and node.name == "trim":
            self.clean_edges = True
            return of
        return self._free(node.node)

    def _test(self, node: nodes.Test) -> Kind:
        of = self.kind(node.node)
        if of is Kind.FREE or node.name not in OF_TYPE:
            return self._free(node.node, *node.args)
        return Kind.FREE

    def _compare(self, node: nodes.Compare) -> Kind:
        text = _constant(node.expr)
        for operand in node.ops:
            of = self.kind(operand.expr)
            inside = operand.op in ("in", "notin") and isinstance(text, str) and len(node.ops) == 1
            if of is Kind.CONTENT and inside and text:
                self.without.add(str(text))
            elif not (of is Kind.MESSAGE and inside):
                self._free(node.expr, operand.expr)
        return Kind.FREE

    def _call(self, node: nodes.Call) -> Kind:
        arguments = [*node.args, *(pair.value for pair in node.kwargs)]
        self._free(*arguments, node.dyn_args, node.dyn_kwargs)
        callee = node.node
        if not isinstance(callee, nodes.Getattr):
            return self._free(callee)
        of, texts = self.kind(callee.node), [_constant(argument) for argument in arguments]
        if of is Kind.MESSAGE and callee.attr == "get" and isinstance(texts[0], str):
            return Kind.CONTENT if texts[0] == "content" else Kind.FREE
        if of is Kind.CONTENT and all(isinstance(text, str) for text in texts):
            if callee.attr in STRIPS and not "".join(map(str, texts)).strip():
                self.clean_edges = True
                return of
            if callee.attr in EDGE_TESTS and all(texts):
                self.without.update(map(str, texts))
                return Kind.FREE
        return self._free(callee.node)

    def truth(self, node: nodes.Node) -> bool | None:
        """Return whether a condition holds for every plain conversation, None if that is not certain."""
        match node:
            case nodes.Not():
                answer = self.truth(node.node)
                return None if answer is None else not answer
            case nodes.And() | nodes.Or():
                decisive = isinstance(node, nodes.Or)
                answers = (self.truth(node.left), self.truth(node.right))
                return decisive if decisive in answers else (not decisive if None not in answers else None)
            case nodes.Compare(ops=[nodes.Operand(op="in" | "notin")]):
                return self._truth_of_inside(node)
            case nodes.Call(node=nodes.Getattr(node=owner, attr="startswith" | "endswith")):
                return False if self._is(owner, Kind.CONTENT) else None
            case nodes.Getattr() | nodes.Getitem() if self._is(node.node, Kind.MESSAGE):
                key = node.attr if isinstance(node, nodes.Getattr) else _constant(node.arg)
                return key in ("role", "content")
            case nodes.Test(node=nodes.Getattr(node=owner) | nodes.Getitem(node=owner)) if node.name in OF_TYPE:
                there = self.truth(node.node) if self._is(owner, Kind.MESSAGE) else None
                return {None: None, True: OF_TYPE[node.name], False: node.name in ABSENT_IS}[there]
        return None

    def _truth_of_inside(self, node: nodes.Compare) -> bool | None:
        operand, text = node.ops[0], _constant(node.expr)
        if not isinstance(text, str):
            return None
        if self._is(operand.expr, Kind.CONTENT):
            return operand.op == "notin"
        if self._is(operand.expr, Kind.MESSAGE):
            return (text in ("role", "content")) is (operand.op == "in")
        return None

    def _is(self, node: nodes.Node, kind: Kind) -> bool:
        try:
            return self.kind(node) is kind
        except _LooksInsideError:
            return False


ABSENT_IS = frozenset({"undefined", "iterable", "sequence"})
"""Tests that a property which is not there passes."""


def _constant(node: nodes.Node) -> object:
    return node.value if isinstance(node, nodes.Const) else None


def _joined(one: Kind, other: Kind) -> Kind:
    """Return the kind of what is one thing or another."""
    kinds = {one, other}
    for kind in (Kind.MESSAGES, Kind.MESSAGE):
        if kind in kinds:
            if kinds <= {kind, Kind.FREE}:
                return kind
            raise _LooksInsideError("a name for different things")
    return next(kind for kind in (Kind.TEXT, Kind.CONTENT, Kind.FREE) if kind in kinds)
