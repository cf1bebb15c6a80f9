"""Text embeddings: each distinct prompt is encoded once, alone, and kept. Knows nothing of rows, files or pipelines.

A prompt is encoded in chunks of 75 tokens, each on its own between start and end marker, and their states are put one
after the other (as in AUTOMATIC1111's stable-diffusion-webui, `sd_hijack_clip`, without its shifting of a chunk's last
words behind the comma before them). One chunk gives exactly what diffusers' pipelines give. Every call of a text
encoder has batch shape 1, so that an embedding never depends on what else is in the batch.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from batchgen.errors import InputError
from batchgen.generation.prompt_syntax import Break, Weighted, parse_weights, split_at

__all__ = ["Encoded", "Prompt", "PromptEncoder", "Token"]

CACHE_BYTES = 256 << 20  # on the device: 2,200 prompts of SD 1.x in float16 (77 x 768 each), 1/64 of a 16 GiB card


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A prompt and how it is to be read.

    `text_2` is what the second of two text encoders reads; None or empty: the same text, as in diffusers.
    `clip_skip` counts the text encoders' last layers to leave out. `weighted` switches the syntax of
    `prompt_syntax.parse_weights` on. `tokens` are the textual inversions this prompt may use: the word written in the
    prompt, and the name it was added under (`PromptEncoder.add_embedding`).
    """

    text: str
    text_2: str | None = None
    clip_skip: int | None = None
    weighted: bool = False
    tokens: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Encoded:
    """What a prompt becomes, on the device, in the text encoder's precision."""

    embeddings: torch.Tensor  # (1, 77 * chunks, width); of two towers the widths add up
    pooled: torch.Tensor | None  # (1, width) of SDXL's second tower or of a tower that pools, from the first chunk

    @property
    def nbytes(self) -> int:
        return self.embeddings.nbytes + (0 if self.pooled is None else self.pooled.nbytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """One token of a prompt, as the first text encoder reads it."""

    position: int  # in the whole prompt, from 0, start and end markers not counted
    id: int
    text: str  # as in the tokenizer's vocabulary ("castle</w>"), or the name an embedding was added under
    chunk: int  # from 0
    weight: float


class PromptEncoder:
    """The text side of one model with a cache of what it made, least recently used out first.

    Made for Stable Diffusion 1.x and 2.x and the upscalers (one CLIP tower), SDXL (two) and its refiner (the second).
    """

    def __init__(self, components: Mapping[str, Any], *, pools: bool = False, cache_bytes: int = CACHE_BYTES) -> None:
        """Take what there is of `tokenizer`, `text_encoder`, `tokenizer_2` and `text_encoder_2`, diffusers' names.

        Args:
            pools: the only tower's pooled state is wanted too, as the latent upscaler reads it.
            cache_bytes: room for embeddings, on the device.
        """
        is_xl = components.get("text_encoder_2") is not None
        self._towers = [
            _Tower(components[f"tokenizer{suffix}"], components[f"text_encoder{suffix}"], is_xl=is_xl, pools=pools)
            for suffix in ("", "_2")
            if components.get(f"text_encoder{suffix}") is not None
        ]
        assert self._towers, "a model with prompts has a text encoder"
        self._room = cache_bytes
        self._cache: OrderedDict[Hashable, Encoded] = OrderedDict()

    def chunks(self, prompt: Prompt) -> int:
        """How many chunks of 75 tokens the prompt needs in the tower that needs most: at least 1."""
        return max(len(tower.split(one)) for tower, one in self._read_by_towers(prompt))

    def encode(self, prompt: Prompt, *, chunks: int, state: Hashable = None) -> Encoded:
        """Embedding of a prompt, as long as `chunks` say.

        Args:
            chunks: at least as many as the prompt needs; the rest are empty.
            state: all that changes the text encoders' weights (which LoRAs are active on them, and how strongly).

        Raises:
            InputError: the model's text encoders do not have so many layers to skip.
        """
        key = (prompt, chunks, state)
        encoded = self._cache.pop(key, None)
        if encoded is None:
            encoded = self._compute(prompt, chunks)
            self._room -= encoded.nbytes
        self._cache[key] = encoded
        while self._room < 0 and len(self._cache) > 1:
            self._room += self._cache.popitem(last=False)[1].nbytes
        return encoded

    @staticmethod
    def zeros_like(encoded: Encoded) -> Encoded:
        """What stands for no negative prompt where the model's `force_zeros_for_empty_prompt` is set (SDXL's is)."""
        pooled = None if encoded.pooled is None else torch.zeros_like(encoded.pooled)
        return Encoded(embeddings=torch.zeros_like(encoded.embeddings), pooled=pooled)

    def count_tokens(self, prompt: Prompt) -> int:
        """Tokens of the whole prompt in the first tower, without start and end markers and padding."""
        return sum(len(chunk) for chunk in self._towers[0].split(prompt))

    def token_table(self, prompt: Prompt) -> list[Token]:
        """The tokens that `count_tokens` counts, in their order."""
        tower = self._towers[0]
        chunks = enumerate(tower.split(prompt))
        tokens = [(number, token, weight) for number, chunk in chunks for token, weight in chunk]
        return [
            Token(position=position, id=token, text=tower.text_of(token), chunk=number, weight=weight)
            for position, (number, token, weight) in enumerate(tokens)
        ]

    def knows_embedding(self, internal: str) -> bool:
        """Whether `add_embedding` was called with that name."""
        return internal in self._towers[0].added

    def add_embedding(self, internal: str, vectors: Sequence[torch.Tensor]) -> None:
        """Make a textual inversion known, under a name that stands for these very vectors; once more does nothing.

        The tokenizers are left as they are: only `Prompt.tokens` leads to the new tokens, so no prompt that does not
        list them can meet them, whatever its text, and no other prompt's bits change.

        Args:
            vectors: for each tower in order (n, width) or (width,): n tokens each.

        Raises:
            InputError: other towers or widths than the model has.
        """
        if internal in self._towers[0].added:
            return
        rows = [tensor[None] if tensor.ndim == 1 else tensor for tensor in vectors]
        widths = [tensor.shape[-1] for tensor in rows]
        wanted = [tower.width for tower in self._towers]
        if widths != wanted or any(tensor.ndim != 2 or not len(tensor) for tensor in rows):
            shapes = [tuple(tensor.shape) for tensor in vectors]
            raise InputError(
                f"embedding {internal!r} holds tensors of the shapes {shapes}, but the model's text encoders take "
                f"vectors of {' and '.join(map(str, wanted))} numbers"
            )
        for tower, tensor in zip(self._towers, rows, strict=True):
            tower.add(internal, tensor)

    def _read_by_towers(self, prompt: Prompt) -> Iterator[tuple["_Tower", Prompt]]:
        """The towers, each with its prompt as `text`. A refiner's only tower reads the first one, as in diffusers."""
        prompts = (prompt, replace(prompt, text=prompt.text_2 or prompt.text))
        return zip(self._towers, prompts, strict=False)

    def _compute(self, prompt: Prompt, count: int) -> Encoded:
        states: list[torch.Tensor] = []  # a tower each: (1, 77 * count, width)
        pooled: list[torch.Tensor | None] = []
        for tower, one in self._read_by_towers(prompt):
            needed = tower.split(one)
            assert len(needed) <= count, "a prompt is never cut"
            padded = [*needed, *[()] * (count - len(needed))]
            encoded = [tower.encode(chunk, prompt.clip_skip) for chunk in padded]
            states.append(torch.cat([chunk.embeddings for chunk in encoded], dim=1))
            pooled.append(encoded[0].pooled)
        return Encoded(embeddings=torch.cat(states, dim=-1), pooled=pooled[-1])


_Chunk = Sequence[tuple[int, float]]
"""At most 75 tokens, each with the weight of its state."""


class _Tower:
    """A tokenizer and a CLIP text encoder."""

    def __init__(self, tokenizer: Any, encoder: Any, *, is_xl: bool, pools: bool) -> None:
        self.added: dict[str, range] = {}  # names of textual inversions and their rows in the embedding matrix
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._is_xl = is_xl
        self._pools = pools
        self._length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)

    @property
    def width(self) -> int:
        return int(self._encoder.config.hidden_size)

    def split(self, prompt: Prompt) -> list[_Chunk]:
        """The tokens of `prompt.text`, at least one chunk; an embedding of many vectors stays together if it can.

        As in the web UI, a break at the start leaves an empty chunk before it, one at the end none behind it.
        """
        chunks: list[list[tuple[int, float]]] = [[]]
        for part in parse_weights(prompt.text) if prompt.weighted else [Weighted(text=prompt.text, weight=1.0)]:
            if isinstance(part, Break):
                chunks.append([])
                continue
            for tokens in self._tokenize(part.text, dict(prompt.tokens)):
                if len(chunks[-1]) + len(tokens) > self._length - 2:
                    chunks.append([])
                chunks[-1] += [(token, part.weight) for token in tokens]
        if len(chunks) > 1 and not chunks[-1]:
            chunks.pop()
        return list(chunks)

    def text_of(self, token: int) -> str:
        """A token as its vocabulary writes it; the vectors of an embedding are NAME, NAME_1, NAME_2, ..."""
        for name, tokens in self.added.items():
            if token in tokens:
                return name if token == tokens[0] else f"{name}_{token - tokens[0]}"
        return str(self._tokenizer.convert_ids_to_tokens(token))

    def encode(self, chunk: _Chunk, clip_skip: int | None) -> Encoded:
        """States of one chunk: (1, 77, width); pooled (1, projected width) where the encoder ends in a projection."""
        markers, tokenizer = 2, self._tokenizer
        padding = self._length - markers - len(chunk)
        tokens = [tokenizer.bos_token_id, *(token for token, _ in chunk), tokenizer.eos_token_id]
        ids = torch.tensor([tokens + [tokenizer.pad_token_id] * padding], device=self._encoder.device)
        encoded = self._run_xl(ids, clip_skip) if self._is_xl else self._run(ids, padding, clip_skip)
        if all(weight == 1 for _, weight in chunk):
            return encoded
        weights = [1.0, *(weight for _, weight in chunk), 1.0] + [1.0] * padding
        return replace(encoded, embeddings=_emphasize(encoded.embeddings, weights))

    def add(self, name: str, vectors: torch.Tensor) -> None:
        """Append rows (n, width) to the embedding matrix: by hand, since resizing draws random numbers first."""
        table = self._encoder.get_input_embeddings()
        first = len(table.weight)
        new = torch.cat([table.weight.data, vectors.to(table.weight)])
        table.weight = torch.nn.Parameter(new, requires_grad=False)
        table.num_embeddings = len(new)
        self.added[name] = range(first, len(new))
        # Published configs name a wrong end marker, and transformers then pools at the highest token, which is the end
        # marker of the plain vocabulary but not any more of this one (huggingface/transformers#24650).
        self._transformer.eos_token_id = self._tokenizer.eos_token_id

    @property
    def _transformer(self) -> Any:
        """The layers: diffusers reaches for text_model, which transformers 5.6 flattened away (diffusers#14124)."""
        return getattr(self._encoder, "text_model", self._encoder)

    def _tokenize(self, text: str, tokens: Mapping[str, str]) -> Iterator[Sequence[int]]:
        """Tokens that go together: one by one, or all the vectors of an embedding that fits into a chunk."""
        for number, piece in enumerate(split_at(text, list(tokens))):
            ids = self.added[tokens[piece]] if number % 2 else self._ids(piece)
            if number % 2 and len(ids) <= self._length - 2:
                yield ids
            else:
                yield from ([token] for token in ids)

    def _ids(self, text: str) -> Sequence[int]:
        ids: Sequence[int] = self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids

    def _run(self, ids: torch.Tensor, padding: int, clip_skip: int | None) -> Encoded:
        """As StableDiffusionPipeline.encode_prompt: the last states that are wanted, through the final norm."""
        mask = None
        if getattr(self._encoder.config, "use_attention_mask", False):
            mask = torch.ones_like(ids)
            mask[:, self._length - padding :] = 0
        if self._pools:
            return self._run_pooled(ids, mask, clip_skip)
        if clip_skip is None:
            return Encoded(embeddings=self._encoder(ids, attention_mask=mask)[0], pooled=None)
        self._check(clip_skip, self._encoder.config.num_hidden_layers)
        states = self._encoder(ids, attention_mask=mask, output_hidden_states=True).hidden_states
        return Encoded(embeddings=self._transformer.final_layer_norm(states[-(clip_skip + 1)]), pooled=None)

    def _run_xl(self, ids: torch.Tensor, clip_skip: int | None) -> Encoded:
        """As StableDiffusionXLPipeline.encode_prompt: counted from the last layer but one, without the final norm."""
        self._check(clip_skip or 0, self._encoder.config.num_hidden_layers - 1)
        output = self._encoder(ids, output_hidden_states=True)
        pooled = getattr(output, "text_embeds", None)
        return Encoded(embeddings=output.hidden_states[-((clip_skip or 0) + 2)], pooled=pooled)

    def _run_pooled(self, ids: torch.Tensor, mask: torch.Tensor | None, clip_skip: int | None) -> Encoded:
        """As StableDiffusionLatentUpscalePipeline.encode_prompt: the last states, and the pooled one."""
        self._check(clip_skip or 0, self._encoder.config.num_hidden_layers)
        output = self._encoder(ids, attention_mask=mask, output_hidden_states=True)
        return Encoded(embeddings=output.hidden_states[-((clip_skip or 0) + 1)], pooled=output.pooler_output)

    @staticmethod
    def _check(clip_skip: int, most: int) -> None:
        if not 0 <= clip_skip <= most:
            raise InputError(f"clip_skip is {clip_skip}, but the model's text encoder has {most} layers to skip")


def _emphasize(states: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """Multiply each token's state by its weight, then bring the mean of all back: the web UI's `sd_emphasis`, Original.

    Args:
        states: (1, 77, width); computed in float32, since a mean's last bits would be seen in every number.
        weights: one a token, 1 for markers and padding.
    """
    wide = states.float()
    weighted = wide * torch.tensor(weights, device=states.device)[None, :, None]
    mean = weighted.mean()
    factor = torch.where(mean == 0, torch.ones_like(mean), wide.mean() / mean)
    return (weighted * factor).to(states.dtype)
