"""Prompts: their syntax, and embeddings that are diffusers' own wherever diffusers has an answer, bit for bit."""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import diffusers
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import _tokenizer

from batchgen.diffusion.prompts import Encoded, Prompt, PromptEncoder
from batchgen.errors import InputError, PromptSyntaxError
from batchgen.generation.prompt_syntax import (
    Break,
    Tag,
    Weighted,
    find_unsupported,
    parse_tags,
    parse_weights,
    split_at,
)

WIDTH, WIDTH_2, POOLED = 32, 48, 40
LAYERS = 3
CHUNK = 77
END = "<|endoftext|>"
WORDS = " ".join("abcdefghij"[number % 10] for number in range(180))  # one token each: 75 + 75 + 30

Components = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small take 3 times as long where threads wait for each other on busy cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def text_encoder(kind: Any, width: int, seed: int, **config: Any) -> Any:
    """Random weights, biases too: those of the final norm alone make the states' mean anything but zero."""
    torch.manual_seed(seed)
    shape = {"hidden_size": width, "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    tokenizer = _tokenizer(END)
    markers = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    made = kind(transformers.CLIPTextConfig(vocab_size=len(tokenizer), **{**shape, **markers, **config})).eval()
    with torch.no_grad():
        for parameter in made.requires_grad_(False).parameters():
            parameter.normal_(0.05, 0.3)
    return made


def sd1() -> Components:
    return {"tokenizer": _tokenizer(END), "text_encoder": text_encoder(transformers.CLIPTextModel, WIDTH, 0)}


def sd2(**config: Any) -> Components:
    """Padding with "!", number 0, as in Stable Diffusion 2 and SDXL's second tower."""
    return {"tokenizer": _tokenizer("!"), "text_encoder": text_encoder(transformers.CLIPTextModel, WIDTH, 1, **config)}


def masked() -> Components:
    return sd2(use_attention_mask=True)


def refiner() -> Components:
    """As published, its config names an end marker that is not the tokenizer's."""
    kind = transformers.CLIPTextModelWithProjection
    encoder = text_encoder(kind, WIDTH_2, 2, projection_dim=POOLED, eos_token_id=2, hidden_act="gelu")
    return {"tokenizer": None, "text_encoder": None, "tokenizer_2": _tokenizer("!"), "text_encoder_2": encoder}


def sdxl() -> Components:
    return {**refiner(), **sd1()}


ONE_TOWER: list[Callable[[], Components]] = [sd1, sd2, masked]
XL: list[Callable[[], Components]] = [sdxl, refiner]
PROMPTS = [
    "",
    "a castle",
    "the THE  the\n\tcastle!! 12",
    "海と空, naïve Ångström 🏰 e\u0301",
    "x<|endoftext|>y",
    " ".join("a" * 75),
]


def stock_encode(parts: Mapping[str, Any], prompt: Prompt) -> Encoded:
    """What diffusers' own pipeline makes of a prompt."""
    rest: dict[str, Any] = {"vae": None, "unet": None, "scheduler": None}
    if "text_encoder_2" not in parts:
        plain = diffusers.StableDiffusionPipeline(
            **parts, **rest, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
        arguments = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False, "clip_skip": prompt.clip_skip}
        embeddings, _ = plain.encode_prompt(prompt.text, device=torch.device("cpu"), **arguments)
        return Encoded(embeddings=embeddings, pooled=None)
    kind = diffusers.StableDiffusionXLImg2ImgPipeline  # takes the refiner too
    if parts["text_encoder"] is not None:
        kind = diffusers.StableDiffusionXLPipeline
    xl = kind(**parts, **rest, add_watermarker=False)
    embeddings, _, pooled, _ = xl.encode_prompt(
        prompt.text,
        prompt.text_2,
        device=torch.device("cpu"),
        do_classifier_free_guidance=False,
        clip_skip=prompt.clip_skip,
    )
    return Encoded(embeddings=embeddings, pooled=pooled)


def encode(encoder: PromptEncoder, prompt: str | Prompt, **values: Any) -> torch.Tensor:
    prompt = Prompt(text=prompt, **values) if isinstance(prompt, str) else prompt
    return encoder.encode(prompt, chunks=encoder.chunks(prompt)).embeddings


def assert_same(one: Encoded, other: Encoded) -> None:
    assert one.embeddings.dtype == other.embeddings.dtype
    assert torch.equal(one.embeddings, other.embeddings)
    assert (one.pooled is None) == (other.pooled is None)
    assert one.pooled is None or (other.pooled is not None and torch.equal(one.pooled, other.pooled))


# The syntax


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [("", 1.0)]),
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("((word))", [("word", 1.21)]),
        ("(word:1.3)", [("word", 1.3)]),
        ("(word: 1.3 )", [("word", 1.3)]),
        ("(word:.5)(more:2.)", [("word", 0.5), ("more", 2.0)]),
        ("(word:0)(less:-1)", [("word", 0.0), ("less", -1.0)]),
        ("[word]", [("word", 1 / 1.1)]),
        ("([word])", [("word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        ("[unbalanced", [("unbalanced", 1 / 1.1)]),
        ("a) b] c:1.5)", [("a) b] c:1.5)", 1.0)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        (r"\(a\) \\ \[b\] C:\temp", [(r"(a) \ [b] C:\temp", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        ("a (b (c:2):1.5)", [("a ", 1.0), ("b ", 1.5), ("c", 3.0)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1.0), (" c", 1 / 1.1)]),
        ("(a:1.2.3) (b:x) 12:30", [("a:1.2.3", 1.1), (" ", 1.0), ("b:x", 1.1), (" 12:30", 1.0)]),
        ("()[]", [("", 1.0)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),
                (".", 1.1),
            ],
        ),
    ],
)
def test_weights(text: str, expected: list[tuple[str, float]]) -> None:
    parsed = [piece for piece in parse_weights(text) if isinstance(piece, Weighted)]
    assert [piece.text for piece in parsed] == [text for text, _ in expected]
    assert [piece.weight for piece in parsed] == pytest.approx([weight for _, weight in expected])


def test_break_is_a_word_of_its_own_and_takes_its_white_space() -> None:
    def plain(text: str, weight: float = 1.0) -> Weighted:
        return Weighted(text=text, weight=weight)

    assert parse_weights("a BREAK\n b") == [plain("a"), Break(), plain("b")]
    assert parse_weights("(a BREAK b:1.2)") == [plain("a", 1.2), Break(), plain("b", 1.2)]
    assert parse_weights("BREAK a BREAK BREAK") == [Break(), plain("a"), Break(), Break()]
    assert parse_weights("BREAKFAST break aBREAK") == [plain("BREAKFAST break aBREAK")]


@given(st.text() | st.text(alphabet="()[]\\:.1 aBREAK<>\n"))
def test_any_text_parses(text: str) -> None:
    parsed = parse_weights(text)
    assert parsed
    written = "".join(piece.text for piece in parsed if isinstance(piece, Weighted))
    assert len(written) <= len(text)


@given(st.text().filter(lambda text: not set(text) & set("()[]\\") and "BREAK" not in text))
def test_text_without_brackets_is_kept(text: str) -> None:
    assert parse_weights(text) == [Weighted(text=text, weight=1.0)]


@given(st.text())
def test_escaped_text_is_kept(text: str) -> None:
    escaped = "".join(f"\\{letter}" if letter in "()[]\\" else letter for letter in text.replace("BREAK", ""))
    assert parse_weights(escaped) == [Weighted(text=text.replace("BREAK", ""), weight=1.0)]


def test_what_changes_from_step_to_step_is_found() -> None:
    """Incident: `[a:b:0.5]`, `[a|b]` and AND were read as words, colons and all, in A1111's syntax too."""
    editing = ["[a:b:0.5]", "[a::.5]", "[b:10]", "[a:b: 1e-1 ]", "[16:9]", "[(a:1.2):b:0.5]", "([a [b:c:2] d]"]
    alternating = ["[a|b]", "[a|]", "([a|(b:1.2)|c]:1.1)", "(a, [b|c]", "[(a)|b]"]
    for text in editing:
        assert "at a step" in str(find_unsupported(f"x {text} y")), text
    for text in alternating:
        assert "alternates" in str(find_unsupported(f"x {text} y")), text
    assert "'[b:c:2]'" in str(find_unsupported("([a [b:c:2] d] e)"))
    assert "AND" in str(find_unsupported("a AND b :0.6"))
    assert find_unsupported("a AND b", negative=True) is None


@pytest.mark.parametrize(
    "text", ["[a]", "[a:b]", "[(a:1.3)]", "[[a]]", "a | b", "at 12:30", "(a|b)", "[a (b|c)]", "SAND and", "[a:b:0.5"]
)
def test_brackets_that_weigh_are_no_steps(text: str) -> None:
    assert find_unsupported(text) is None


@given(st.text() | st.text(alphabet="()[]\\:|.1 a"))
def test_what_is_escaped_is_no_step(text: str) -> None:
    find_unsupported(text)
    escaped = "".join(f"\\{letter}" if letter in "[]\\" else letter for letter in text.replace("AND", ""))
    assert find_unsupported(escaped) is None


@pytest.mark.parametrize(
    ("text", "rest", "tags"),
    [
        ("no  tags ", "no  tags ", []),
        ("a <lora:x:0.8> cat", "a cat", [("x", 0.8)]),
        ("a cat <lora:x>", "a cat", [("x", 1.0)]),
        ("<lora:x:-1><lora:y:.5> a <lora:z:2> <lora:z:1>b", "a b", [("x", -1.0), ("y", 0.5), ("z", 2.0), ("z", 1.0)]),
        ("a,<lora:My Style v1.2: 0.7 >b", "a,b", [("My Style v1.2", 0.7)]),
        ("<lora:x>", "", [("x", 1.0)]),
        ("<b> <lora> a < b", "<b> <lora> a < b", []),
    ],
)
def test_tags(text: str, rest: str, tags: list[tuple[str, float]]) -> None:
    """The three kinds are read alike."""
    for kind in ("lora", "lyco", "hypernet"):
        wanted = tuple(Tag(kind=kind, name=name, scale=scale) for name, scale in tags)
        written = text.replace("<lora", f"<{kind}")
        assert parse_tags(written) == (rest.replace("<lora", f"<{kind}"), wanted)


def test_tags_of_several_kinds_keep_their_order() -> None:
    rest, tags = parse_tags("a <hypernet:h:0.5><lora:x> <lyco:y:2>b")
    assert (rest, [(tag.kind, tag.name, tag.scale) for tag in tags]) == (
        "a b",
        [("hypernet", "h", 0.5), ("lora", "x", 1.0), ("lyco", "y", 2.0)],
    )


@pytest.mark.parametrize(
    "text",
    [
        "<lora:>",
        "<lora: :1>",
        "<lora:x:>",
        "<lora:x:strong>",
        "<lora:x:nan>",
        "<lora:x:1:2>",
        "a <lora:x",
        "<lora:x:1_0>",
    ],
)
def test_malformed_tags_are_quoted(text: str) -> None:
    with pytest.raises(PromptSyntaxError, match="write <lora:NAME:SCALE>") as caught:
        parse_tags(text)
    assert "<lora:" in str(caught.value)


@given(st.text() | st.text(alphabet="<>lora:1 x"))
def test_tags_are_read_or_refused(text: str) -> None:
    try:
        rest, tags = parse_tags(text)
    except PromptSyntaxError:
        return
    assert tags or rest == text
    assert all(tag.name and abs(tag.scale) < 1e6 for tag in tags)


def test_words_are_found_whole_and_the_longest_first() -> None:
    assert split_at("a <cat>b <cat>", ["<cat>"]) == ["a ", "<cat>", "b ", "<cat>", ""]
    assert split_at("cat concatenate CAT cat_1, cat.", ["cat"]) == ["", "cat", " concatenate CAT cat_1, ", "cat", "."]
    assert split_at("bad bad-hands", ["bad", "bad-hands"]) == ["", "bad", " ", "bad-hands", ""]
    assert split_at("a.b axb", ["a.b"]) == ["", "a.b", " axb"]
    assert split_at("plain", []) == ["plain"]


# One chunk is what diffusers makes


@pytest.mark.parametrize("text", PROMPTS)
@pytest.mark.parametrize("build", [*ONE_TOWER, *XL])
def test_one_chunk_equals_diffusers(build: Callable[[], Components], text: str) -> None:
    parts = build()
    encoder, prompt = PromptEncoder(parts), Prompt(text=text)
    assert encoder.chunks(prompt) == 1
    made = encoder.encode(prompt, chunks=1)
    assert_same(made, stock_encode(parts, prompt))
    width = sum({sdxl: (WIDTH, WIDTH_2), refiner: (WIDTH_2,)}.get(build, (WIDTH,)))
    assert made.embeddings.shape == (1, CHUNK, width)
    assert made.pooled is None if build in ONE_TOWER else made.pooled is not None and made.pooled.shape == (1, POOLED)


def test_padding_and_mask_matter() -> None:
    """Else the comparisons above would show nothing."""
    other = {**sd2(), "tokenizer": _tokenizer(END)}
    assert not torch.equal(encode(PromptEncoder(sd2()), "a"), encode(PromptEncoder(other), "a"))
    assert not torch.equal(encode(PromptEncoder(sd2()), "a"), encode(PromptEncoder(masked()), "a"))


@pytest.mark.parametrize("build", XL)
def test_second_text_equals_diffusers(build: Callable[[], Components]) -> None:
    parts = build()
    encoder = PromptEncoder(parts)
    for text_2 in ("rain", "", None):
        prompt = Prompt(text="a castle", text_2=text_2)
        assert_same(encoder.encode(prompt, chunks=1), stock_encode(parts, prompt))
    matters = not torch.equal(encode(encoder, "a castle"), encode(encoder, "a castle", text_2="rain"))
    assert matters == (build is sdxl)


@pytest.mark.parametrize("clip_skip", range(LAYERS))
@pytest.mark.parametrize("build", [*ONE_TOWER, *XL])
def test_clip_skip_equals_diffusers(
    build: Callable[[], Components], clip_skip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """huggingface/diffusers#14124: stock clip_skip fails with a flattened CLIPTextModel, so it gets its name back."""
    parts = build()
    encoder, prompt = PromptEncoder(parts), Prompt(text="a castle", clip_skip=clip_skip)
    made = encoder.encode(prompt, chunks=1)
    monkeypatch.setattr(transformers.CLIPTextModel, "text_model", property(lambda self: self), raising=False)
    assert_same(made, stock_encode(parts, prompt))
    assert torch.equal(made.embeddings, encode(encoder, "a castle")) == (clip_skip == 0)


@pytest.mark.parametrize(("build", "most"), [(sd1, LAYERS), (sdxl, LAYERS - 1), (refiner, LAYERS - 1)])
def test_too_many_layers_to_skip_is_the_users_error(build: Callable[[], Components], most: int) -> None:
    encoder = PromptEncoder(build())
    encode(encoder, "a", clip_skip=most)
    with pytest.raises(InputError, match=f"clip_skip is {most + 1}, .* has {most} layers"):
        encode(encoder, "a", clip_skip=most + 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays(dtype: torch.dtype) -> None:
    parts = {name: part.to(dtype) if isinstance(part, torch.nn.Module) else part for name, part in sdxl().items()}
    encoder = PromptEncoder(parts)
    assert_same(encoder.encode(Prompt(text="a"), chunks=1), stock_encode(parts, Prompt(text="a")))
    weighted = encode(encoder, "a (b:1.3)", weighted=True)
    assert weighted.dtype == dtype
    assert weighted.isfinite().all()


# Long prompts


@pytest.mark.parametrize("build", [sd1, masked, sdxl])
def test_long_prompt_is_its_chunks_side_by_side(build: Callable[[], Components]) -> None:
    encoder, prompt = PromptEncoder(build()), Prompt(text=WORDS)
    assert encoder.chunks(prompt) == 3
    assert encoder.count_tokens(prompt) == 180
    made = encoder.encode(prompt, chunks=3)
    words = WORDS.split()
    alone = [encoder.encode(Prompt(text=" ".join(words[at : at + 75])), chunks=1) for at in (0, 75, 150)]
    assert torch.equal(made.embeddings, torch.cat([one.embeddings for one in alone], dim=1))
    if made.pooled is not None:
        assert alone[0].pooled is not None
        assert torch.equal(made.pooled, alone[0].pooled)


def test_nothing_is_cut() -> None:
    encoder = PromptEncoder(sd1())
    made = encode(encoder, WORDS)
    other = encode(encoder, WORDS[:-1] + "z")
    assert torch.equal(made[:, : 2 * CHUNK], other[:, : 2 * CHUNK])
    assert not torch.equal(made[:, 2 * CHUNK :], other[:, 2 * CHUNK :])
    with pytest.raises(AssertionError, match="never cut"):
        encoder.encode(Prompt(text=WORDS), chunks=2)


@pytest.mark.parametrize(("words", "chunks"), [(0, 1), (1, 1), (75, 1), (76, 2), (150, 2), (151, 3), (2000, 27)])
def test_chunks(words: int, chunks: int) -> None:
    encoder, prompt = PromptEncoder(sd1()), Prompt(text="a " * words)
    assert encoder.chunks(prompt) == chunks
    assert encoder.count_tokens(prompt) == words
    assert encode(encoder, prompt).shape == (1, CHUNK * chunks, WIDTH)
    table = encoder.token_table(prompt)
    assert [token.position for token in table] == list(range(words))
    assert all(token.chunk == token.position // 75 and token.text == "a</w>" for token in table)


def test_the_longer_tower_decides() -> None:
    encoder = PromptEncoder(sdxl())
    prompt = Prompt(text="a", text_2="a " * 80)
    assert encoder.chunks(prompt) == 2
    assert encoder.count_tokens(prompt) == 1
    assert encode(encoder, prompt).shape == (1, 2 * CHUNK, WIDTH + WIDTH_2)


def test_empty_chunks_fill_up() -> None:
    encoder = PromptEncoder(sd2())
    made = encoder.encode(Prompt(text="a castle"), chunks=3).embeddings
    empty = encode(encoder, "")
    assert torch.equal(made, torch.cat([encode(encoder, "a castle"), empty, empty], dim=1))


def test_zeros_take_the_shape() -> None:
    encoder = PromptEncoder(sdxl())
    made = encoder.encode(Prompt(text=WORDS), chunks=3)
    zeros = encoder.zeros_like(made)
    assert zeros.pooled is not None
    assert made.pooled is not None
    assert (zeros.embeddings.shape, zeros.pooled.shape) == (made.embeddings.shape, made.pooled.shape)
    assert not zeros.embeddings.any()
    assert not zeros.pooled.any()
    made = PromptEncoder(sd1()).encode(Prompt(text="a"), chunks=1)
    assert encoder.zeros_like(made).pooled is None


# Weights and breaks


@pytest.mark.parametrize("build", [*ONE_TOWER, *XL])
def test_weight_one_changes_no_bit(build: Callable[[], Components]) -> None:
    encoder = PromptEncoder(build())
    plain = encoder.encode(Prompt(text="a castle (by the sea)", clip_skip=1), chunks=1)
    same = encoder.encode(Prompt(text=r"a (castle:1.0) \(by the sea\)", clip_skip=1, weighted=True), chunks=1)
    assert_same(same, plain)


def test_brackets_are_text_unless_asked_for() -> None:
    encoder = PromptEncoder(sd1())
    assert encoder.count_tokens(Prompt(text="(a:1.5)")) == 7
    assert encoder.count_tokens(Prompt(text="(a:1.5)", weighted=True)) == 1
    assert torch.equal(encode(encoder, "(a:1.5)"), encode(encoder, r"\(a:1.5\)", weighted=True))


@pytest.mark.parametrize("build", [*ONE_TOWER, *XL])
def test_weights_keep_the_mean_of_each_tower(build: Callable[[], Components]) -> None:
    encoder = PromptEncoder(build())
    plain = encoder.encode(Prompt(text="a castle by the sea"), chunks=1)
    heavy = encoder.encode(Prompt(text="a (castle:1.5) by the sea", weighted=True), chunks=1)
    widths = {sdxl: [WIDTH, WIDTH_2], refiner: [WIDTH_2]}.get(build, [WIDTH])
    towers = [torch.split(made.embeddings, widths, dim=-1) for made in (plain, heavy)]
    for one, other in zip(*towers, strict=True):
        assert not torch.allclose(one, other)
        assert other.mean() == pytest.approx(one.mean().item(), rel=1e-4)
        ratio = (other / one).mean(dim=-1)[0]  # one a token
        castle = slice(2, 8)  # behind the start and "a"
        assert ratio[castle] / ratio[0] == pytest.approx(torch.full((6,), 1.5), rel=1e-4)
        assert ratio[8:] / ratio[0] == pytest.approx(torch.ones(CHUNK - 8), rel=1e-4)
    assert_same(Encoded(embeddings=plain.embeddings, pooled=heavy.pooled), plain)


def test_weights_stay_in_their_chunk() -> None:
    encoder = PromptEncoder(sd1())
    plain = encode(encoder, "a " * 75 + "b")
    heavy = encode(encoder, "a " * 75 + "(b:1.5)", weighted=True)
    assert torch.equal(plain[:, :CHUNK], heavy[:, :CHUNK])
    assert not torch.equal(plain[:, CHUNK:], heavy[:, CHUNK:])


def test_no_weight_makes_numbers_that_are_none() -> None:
    encoder = PromptEncoder(sd1())
    for text in ("(a:0)", "(a:999999)", "(a:-3)", "((((((a))))))"):
        assert encode(encoder, text, weighted=True).isfinite().all()


@pytest.mark.parametrize(
    ("text", "chunks"),
    [
        ("a castle BREAK rain", ["a castle", "rain"]),
        ("a BREAK BREAK b", ["a", "", "b"]),
        ("BREAK a BREAK", ["", "a"]),
        ("BREAK", [""]),
        ("(a BREAK b:1.0)", ["a", "b"]),
        ("a " * 75 + "BREAK b", ["a " * 75, "b"]),
        ("b BREAK " + "a " * 76, ["b", "a " * 75, "a"]),
    ],
)
def test_break_starts_a_chunk(text: str, chunks: list[str]) -> None:
    encoder = PromptEncoder(sd1())
    made = encode(encoder, text, weighted=True)
    assert torch.equal(made, torch.cat([encode(encoder, chunk) for chunk in chunks], dim=1))
    assert encoder.chunks(Prompt(text="a BREAK b")) == 1


def test_token_table_tells_chunks_and_weights() -> None:
    encoder = PromptEncoder(sdxl())
    prompt = Prompt(text="the (cat:1.5) BREAK é", text_2="something else", weighted=True)
    table = encoder.token_table(prompt)
    assert [(token.text, token.chunk, token.weight) for token in table] == [
        ("the</w>", 0, 1.0),
        ("c", 0, 1.5),
        ("a", 0, 1.5),
        ("t</w>", 0, 1.5),
        ("Ã", 1, 1.0),
        ("©</w>", 1, 1.0),
    ]
    assert len(table) == encoder.count_tokens(prompt)
    assert [token.id for token in table] == _tokenizer(END)("the cat é", add_special_tokens=False).input_ids


# Textual inversion


def vectors(count: int, *widths: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(count)
    return tuple(torch.randn(count, width, generator=generator) for width in widths)


STYLE = (("<style>", "#1"),)


def test_one_tower_embedding_equals_diffusers() -> None:
    parts = sd1()
    stock_parts = copy.deepcopy(parts)
    tensors = vectors(3, WIDTH)
    stock = diffusers.StableDiffusionPipeline(
        **stock_parts,
        **dict.fromkeys(("vae", "unet", "scheduler", "safety_checker", "feature_extractor")),
        requires_safety_checker=False,
    )
    stock.load_textual_inversion(tensors[0], token="<style>")
    encoder = PromptEncoder(parts)
    encoder.add_embedding("#1", tensors)
    for text in ("a <style> castle", "a<style>b, <style>", "<style>", "The <style>, 海<style>"):
        expected, _ = stock.encode_prompt(text, torch.device("cpu"), 1, False)
        assert torch.equal(encode(encoder, text, tokens=STYLE), expected)


@pytest.mark.parametrize("build", [*ONE_TOWER, *XL])
def test_rows_without_the_embedding_do_not_see_it(build: Callable[[], Components]) -> None:
    widths = {sdxl: [WIDTH, WIDTH_2], refiner: [WIDTH_2]}.get(build, [WIDTH])
    texts = [*PROMPTS, "a <style> castle #1 #1_1"]
    before, encoder = PromptEncoder(build()), PromptEncoder(build())
    encoder.add_embedding("#1", vectors(2, *widths))
    encoder.add_embedding("#2", vectors(1, *widths))
    for text in texts:
        prompt = Prompt(text=text)
        assert_same(encoder.encode(prompt, chunks=1), before.encode(prompt, chunks=1))
        assert encoder.token_table(prompt) == before.token_table(prompt)
    plain = encode(encoder, texts[-1])
    one = encode(encoder, texts[-1], tokens=STYLE)
    assert not torch.equal(one, plain)
    assert not torch.equal(one, encode(encoder, texts[-1], tokens=(("<style>", "#2"),)))


def test_embedding_with_many_vectors() -> None:
    encoder = PromptEncoder(sd1())
    rows = len(encoder._towers[0]._encoder.get_input_embeddings().weight)
    encoder.add_embedding("#1", vectors(4, WIDTH))
    made = encode(encoder, "a <style> b", tokens=STYLE)
    encoder.add_embedding("#1", vectors(5, WIDTH))  # that name is taken: nothing happens
    encoder.add_embedding("#2", (torch.zeros(WIDTH),))
    assert len(encoder._towers[0]._encoder.get_input_embeddings().weight) == rows + 5
    prompt = Prompt(text="a <style> b", tokens=STYLE)
    assert encoder.count_tokens(prompt) == 6
    names = [token.text for token in encoder.token_table(prompt)]
    assert names == ["a</w>", "#1", "#1_1", "#1_2", "#1_3", "b</w>"]
    assert torch.equal(encoder.encode(prompt, chunks=1, state="afresh").embeddings, made)


def test_embedding_is_not_torn_apart() -> None:
    encoder = PromptEncoder(sd1())
    encoder.add_embedding("#1", vectors(4, WIDTH))
    encoder.add_embedding("#2", vectors(80, WIDTH))
    tokens = (*STYLE, ("<long>", "#2"))
    prompt = Prompt(text="a " * 73 + "(<style>:1.2) b", weighted=True, tokens=tokens)
    assert [token.chunk for token in encoder.token_table(prompt)] == [0] * 73 + [1] * 5
    assert [token.weight for token in encoder.token_table(prompt)][-5:] == [1.2] * 4 + [1.0]
    longer = Prompt(text="a <long>", tokens=tokens)
    assert (encoder.chunks(longer), encoder.count_tokens(longer)) == (2, 81)


def test_pooled_states_are_the_end_markers_with_an_embedding() -> None:
    """transformers#24650: with the end marker of the published configs it pooled at the embedding's own token."""
    parts = refiner()
    encoder = PromptEncoder(parts)
    encoder.add_embedding("#1", vectors(2, WIDTH_2))
    prompt = Prompt(text="a <style> b", tokens=STYLE)
    made = encoder.encode(prompt, chunks=1)
    tokenizer = parts["tokenizer_2"]
    inside = [token.id for token in encoder.token_table(prompt)]
    ids = torch.tensor([[tokenizer.bos_token_id, *inside, tokenizer.eos_token_id]])
    states = parts["text_encoder_2"](ids).last_hidden_state[:, -1]
    expected = parts["text_encoder_2"].text_projection(states)
    assert made.pooled is not None
    assert torch.allclose(made.pooled, expected, atol=1e-4)


@pytest.mark.parametrize(
    "tensors",
    [vectors(1, WIDTH), vectors(1, WIDTH, WIDTH), vectors(0, WIDTH, WIDTH_2), (torch.zeros(1, 1, WIDTH),) * 2, ()],
)
def test_embedding_of_another_model_is_the_users_error(tensors: tuple[torch.Tensor, ...]) -> None:
    encoder = PromptEncoder(sdxl())
    with pytest.raises(InputError, match=r"'#1' holds .* vectors of 32 and 48 numbers"):
        encoder.add_embedding("#1", tensors)
    assert not any(tower.added for tower in encoder._towers)


def test_embedding_added_in_inference_mode() -> None:
    """As the host does; used on both sides of it, and in half precision."""
    encoder = PromptEncoder({**sd1(), "text_encoder": sd1()["text_encoder"].half()})
    with torch.inference_mode():
        encoder.add_embedding("#1", vectors(2, WIDTH))
        inside = encode(encoder, "a <style>", tokens=STYLE)
        encoder.add_embedding("#2", vectors(1, WIDTH))
    assert inside.dtype == torch.float16
    again = encoder.encode(Prompt(text="a <style>", tokens=STYLE), chunks=1, state="not from the cache")
    assert torch.equal(inside, again.embeddings)


# The cache


def test_prompts_are_kept_by_all_that_matters_and_the_oldest_go() -> None:
    parts = sd1()
    calls: list[int] = []
    parts["text_encoder"].register_forward_pre_hook(lambda *_: calls.append(1))
    room = 2 * CHUNK * WIDTH * 4  # bytes of two prompts in float32
    encoder = PromptEncoder(parts, cache_bytes=room)
    a, b, c = (Prompt(text=text) for text in "abc")

    def runs(prompt: Prompt, **values: Any) -> int:
        before = len(calls)
        encoder.encode(prompt, **{"chunks": 1, **values})
        return len(calls) - before

    assert [runs(a), runs(b), runs(a)] == [1, 1, 0]
    assert [runs(c), runs(a), runs(b)] == [1, 0, 1]  # c drove out b
    assert [runs(b, state="lora"), runs(b, state="lora"), runs(b)] == [1, 0, 0]
    assert [runs(a, chunks=3), runs(a, chunks=3)] == [3, 0]  # too large for the room, yet kept while it is the newest
    assert [runs(Prompt(text="a", clip_skip=1)), runs(Prompt(text="a", weighted=True))] == [1, 1]
