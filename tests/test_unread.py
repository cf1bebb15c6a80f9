"""Syntax that is read as words is said: one notice a kind with a count and an example, and none of ordinary text."""

from pathlib import Path
from typing import Any

import pytest
from conftest import WriteManifest

from batchgen.driver import resolved_rows
from batchgen.generation.unread import find_unread
from batchgen.job import Job

BOTH = {
    "{red|blue} ball": "{red|blue}",
    "a {2$$red|blue|green}": "{2$$red|blue|green}",
    "a ${color} ball": "{color}",
    "{{masterpiece}}": "{{masterpiece}}",
    "a __color__ ball": "__color__",
    "__animals/*__": "__animals/*__",
    "a <segment:face>": "<segment:face>",
    "in style of embedding:ink": "embedding:ink",
    "a cat --ar 16:9": "--ar 16:9",
    "a cat::2 dog::1": "cat::2",
    "a (red ball)1.3": "(red ball)1.3",
    "red++ ball": "red++",
    "<Lora:foo:1>": "<Lora:foo:1>",
    "<lora:foo:0.8> a": "<lora:foo:0.8>",
}
PLAIN = {
    "a <hypernet:foo:0.8>": "<hypernet:foo:0.8>",
    "<lyco:foo> a": "<lyco:foo>",
    "a [red:blue:0.5] ball": "[red:blue:0.5]",
    "[red::10] ball": "[red::10]",
    "[ball:0.5]": "[ball:0.5]",
    "a [red|blue] ball": "[red|blue]",
    "a (red:1.3) ball": "(red:1.3)",
    "((masterpiece)), a": "((masterpiece))",
    "a ball, BREAK a cube": "BREAK",
    "a cat AND a dog :0.6": "AND a dog :0.6",
}
A1111 = {"a (red:1,3) ball": "(red:1,3)", "bad AND ugly": "AND"}
ORDINARY = (
    "a clock at 12:30 (or 12:45) [16:9]",
    "a verse (John 3:16) [John 3:16] of (Luke 2)",
    "research AND development, R AND D",
    "TAKE A BREAK, says the sign; another says BREAK",
    "a smiley :( or :3 or ^__^, i <3 it, a < b > c",
    "fill in the ____ here; snake_case and __",
    "C++ and g++, a--b -- no",
    "a man (aged: 25) [scene: 2] with (brackets) [and these]",
    'see <https://example.org/a>, std::vector, 4::3, {"a": 1}, { }',
    "a | b",
)


@pytest.mark.parametrize(("syntax", "texts"), [("plain", BOTH | PLAIN), ("a1111", BOTH | A1111)])
def test_what_is_no_words_elsewhere_is_found(syntax: str, texts: dict[str, str]) -> None:
    for text, example in texts.items():
        assert list(find_unread(text, syntax).values()) == [example], text


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_not(text: str) -> None:
    assert find_unread(text, "plain") == {}


def test_a_notice_a_kind_counts_rows_of_all_columns(write_manifest: WriteManifest, model_configs: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "fine"},
        {"prompt": "a __color__ ball", "negative_prompt": "__bad__"},
        {"prompt": "<lora:a:1> x", "negative_prompt": "__bad__"},
        {"prompt": "(x:1.2)", "negative_prompt": "<lora:a:1> bad AND ugly", "prompt_syntax": "a1111"},
    ]
    path = write_manifest("m.jsonl", rows)
    with resolved_rows(Job(manifest=str(path), model=str(model_configs))) as (_, resolved):
        plain_wildcards, plain_tags, tags, composed = resolved.notices
    assert plain_wildcards.startswith("2 rows hold __name__ wildcards, read as words in plain syntax; write a row for")
    assert plain_wildcards.endswith(f"(first in {path}, row 2, column 'prompt': '__color__')")
    assert "1 row holds LoRA or hypernetwork tags" in plain_tags and "set prompt_syntax to a1111" in plain_tags
    assert "row 4, column 'negative_prompt': '<lora:a:1>'" in tags and "a1111 syntax" in tags
    assert "AND in a negative prompt" in composed
