"""YAML as people write it, read strictly: what could be meant in two ways is refused, with its line and column."""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from hsee_ray.errors import ConfigError

_AMBIGUOUS = re.compile(r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")
"""Numbers that YAML 1.1 takes for octal (010 is 8) or for base 60 (1:30 is 90)."""
_NEEDS_YAML = tuple("[{\"'&*!|>%@`")
"""First characters of a `--set` value that is more than a plain word."""


class StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader for text, numbers, lists and mappings: no dates (they are text), no types by a tag.

    It refuses a key that is given twice, numbers of two meanings, and a value that contains itself.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 (as the base class has it)
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in ("timestamp", "value")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {  # noqa: RUF012
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if str(tag).rpartition(":")[2] not in ("timestamp", "binary", "set", "omap", "pairs")
    }

    def construct_document(self, node: yaml.Node) -> Any:
        self.deep_construct = True  # only so is a value noticed that contains itself
        return super().construct_document(node)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Of every mapping, merged ones included: in them too no key may be given twice."""
        seen: dict[Any, yaml.Node] = {}
        for key_node, _ in node.value:
            key = self._key(key_node)
            if key in seen:
                line = seen[key].start_mark.line + 1
                problem = f"the key {key_node.value} is given twice, first in line {line}; remove one of them"
                raise ConstructorError(None, None, problem, key_node.start_mark)
            seen[key] = key_node
        super().flatten_mapping(node)
        # What was merged stands before what is its own; PyYAML would merge both into a third mapping.
        node.value = list({self._key(pair[0]): pair for pair in node.value}.values())

    def _key(self, node: yaml.Node) -> Any:
        if node.tag == "tag:yaml.org,2002:merge":
            return node.tag
        return self.construct_object(node) if isinstance(node, yaml.ScalarNode) else node

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        if _AMBIGUOUS.fullmatch(node.value):
            problem = f"{node.value} can be read as another number; write it without leading zeros or colons"
            raise ConstructorError(None, None, problem, node.start_mark)
        kind = node.tag.rpartition(":")[2]
        construct = self.construct_yaml_int if kind == "int" else self.construct_yaml_float
        return construct(node)


for _tag in ("int", "float"):
    StrictLoader.add_constructor(f"tag:yaml.org,2002:{_tag}", StrictLoader.construct_number)


def read_yaml(text: str, where: object) -> Any:
    """Content of a YAML text with one document. Raises ConfigError, which names line and column."""
    documents = read_documents(text, where)
    if len(documents) > 1:
        raise ConfigError(f"{where}: holds {len(documents)} documents; keep one, and no line of ---")
    return documents[0] if documents else None


def read_documents(text: str, where: object) -> list[Any]:
    """Content of a YAML text with any number of documents. Raises ConfigError, which names line and column."""
    try:
        return list(yaml.load_all(text, StrictLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f" in line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise ConfigError(f"{where}: is not valid YAML{at}: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:  # such as characters that YAML does not allow, or a month 13
        raise ConfigError(f"{where}: is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{where}: is nested too deeply to be read") from None


def read_value(text: str, where: object) -> Any:
    """A value on the command line: a plain word is taken as it stands, also with # in it; `null` alone is nothing."""
    if text.strip().startswith(_NEEDS_YAML):
        return read_yaml(text, where)
    loader = StrictLoader("")
    try:
        plain = text.strip()
        tag = "tag:yaml.org,2002:str" if plain == "~" else loader.resolve(yaml.ScalarNode, plain, (True, False))  # type: ignore[no-untyped-call]
        return loader.construct_object(yaml.ScalarNode(tag, plain))
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{where}: {error.problem}") from None
    except ValueError as error:
        raise ConfigError(f"{where}: {error}; quote it") from None
    finally:
        loader.dispose()
