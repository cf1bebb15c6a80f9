"""The tokenizer: a byte-level BPE in CLIP's format, small because its vocabulary is learnt from captions."""

import json
from collections.abc import Iterator

import numpy as np
from tokenizers import Regex as Pattern
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from jobs.builtin.captions import draw_caption
from jobs.builtin.scenes import draw_scene

VOCABULARY = 1024
CONTEXT = 77  # tokens, as in Stable Diffusion
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
CAPTIONS = 4_000
# CLIP's own rule (transformers, tokenization_clip.py); the tokenizer must be trained under it.
SPLIT = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

# General English beside the captions, so that other prompts fall into pieces larger than letters.
GENERAL_TEXT = """
the of and to in is it you that he was for on are with as his they be at one have this from or had by not but what all
were we when your can said there use an each which she do how their if will up other about out many then them these so
some her would make like him into time has look two more write go see number no way could people my than first water
been call who its now find long down day did get come made may part over new sound take only little work know place
year live me back give most very after thing our just name good sentence man think say great where help through much
before line right too mean old any same tell boy follow came want show also around form three small set put end does
another well large must big even such because turn here why ask went men read need land different home us move try kind
hand image again change off play spell air away animal house point page letter mother answer found study still learn
should world high every near add food between own below country plant last school father keep tree never start city
earth eye light thought head under story saw left few while along might close something seem next hard open example
begin life always those both paper together got group often run important until children side feet car mile night walk
white sea began grow took river four carry state once book hear stop without second later miss idea enough eat face
watch far really almost let above girl sometimes mountain cut young talk soon list song being leave family portrait
photograph painting drawing sketch watercolor oil digital art illustration cinematic dramatic lighting soft warm cold
detailed sharp focus blurry low quality high quality masterpiece best worst realistic abstract minimal style artist
studio lens camera depth of field bokeh portrait landscape castle forest dragon astronaut horse cat dog robot woman
child flower street ocean beach winter summer spring autumn rain snow storm cloud sunlight shadow reflection glass metal
wood stone gold silver bronze plastic marble concrete fabric leather neon glowing dark bright colorful pastel vivid
black brown gray pink no text watermark signature frame border cropped deformed ugly extra pyramid prism hexagon
"""


def _corpus(seed: int) -> Iterator[str]:
    rng = np.random.default_rng((seed, 77))
    for index in range(CAPTIONS):
        yield draw_caption(rng, draw_scene(seed, index)).text
    for _ in range(8):  # each general word often enough to be merged whole
        yield from GENERAL_TEXT.strip().splitlines()


def train_tokenizer(seed: int) -> CLIPTokenizer:
    """Learn the merges (one second) and return the tokenizer, which takes any text.

    Each of the 256 bytes is a token, alone and at a word's end, so nothing is ever unknown.
    """
    learner = Tokenizer(models.BPE(end_of_word_suffix=WORD_END, unk_token=END))
    learner.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Pattern(r"\s+"), " "), normalizers.Lowercase()]
    )
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Pattern(SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    learner.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(alphabet) - 2,  # the trainer knows no word-end forms of letters it has not seen
        initial_alphabet=alphabet,
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    learner.train_from_iterator(_corpus(seed), trainer)
    merges = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
    pieces = [*alphabet, *(letter + WORD_END for letter in alphabet), *("".join(merge) for merge in merges), START, END]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT)
