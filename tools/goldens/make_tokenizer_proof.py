#!/usr/bin/env python3
"""Writes tokenizer/testdata/proof: what the reference says of 100,000 strings.

For each type of tokenizer one of it is trained here, and each of the strings is
encoded and decoded by the Python packages tokenizers (0.23) and sentencepiece
(0.2). The strings are made from their number by the same steps in this file and
in tokenizer/proof_strings.h, so that only hashes are stored:
  strings.json     what strings are made of
  NAME/...         the model's files
  NAME/golden.bin  for each string CRC-32 of its ids (low 16 bits) and of its
                   texts (high 16 bits), or 0x5EED if it is left out (is_tie
                   below), until 100,000 are not; then CRC-32 of all ids, and of
                   all texts, so that no accident of 16 bits hides anything

A string is bytes, maybe not UTF-8: the packages are given it with U+FFFD for
each maximal subpart of what is not, which is how quire reads it.

Usage: make_tokenizer_proof.py OUTPUT_DIRECTORY
"""
import io
import json
import os
import struct
import sys
import unicodedata
import zlib

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models,
                        normalizers, pre_tokenizers, processors, trainers)

from make_tokenizer_goldens import LLAMA3, WORDS, SimulationRandom

NUM_STRINGS = 100_000
NUM_TRAINING = 12_000
TRAINING_BEGIN = 1 << 30
TIE = 0x5EED

SPECIALS = ["<s>", "</s>", "<unk>", "<|begin_of_text|>", "<|eot|>", "[CLS]",
            "[SEP]", "[UNK]", "[MASK]", "<pad>", "<extra_id_0>", "<0x41>",
            "<0xFF>", "[CLS", "</s", "<|im_start|>"]
EMOJI = [chr(c) for c in (
    0x1F468, 0x1F469, 0x1F467, 0x1F466, 0x1F9D1, 0x1F44D, 0x1F937, 0x1F3C3,
    0x2764, 0x1F525, 0x1F308, 0x1F3F3, 0x1F3F4, 0x2620, 0x1F4BB, 0x1F692,
    0x1F469, 0x2640, 0x2642, 0x1F1E9, 0x1F1EA, 0x1F1FA, 0x1F1F8, 0x1FAF0)]
MODIFIERS = ["", "", "\U0001F3FB", "\U0001F3FD", "\U0001F3FF", "\uFE0F",
             "\uFE0E", "\u20E3"]
MARKS = ("\u0300\u0301\u0302\u0303\u0308\u030A\u0323\u0327\u0328\u0334\u0338"
         "\u0345\u035C\u0360\u05B0\u05BC\u05BF\u064B\u0651\u0670\u093C\u094D"
         "\u0E31\u0E48\u1DC4\u20D0\u302A\u3099\u309A\uFE20\U0001D165"
         "\U0001E8D0\U0001E944\u0F71\u0F72\u1160\u11A8\u17D2\uA8E0\u135D")
BASES = "aeiounAEcdszSZ\u0131\u0915\u05D0\u0628\u0E01\u1100\u304B\u30AB\u1EA5"
CONTROLS = ([chr(c) for c in range(0x20)] + [chr(c) for c in range(0x7F, 0xA0)] +
            list("\u00AD\u0600\u061C\u070F\u180E\u200B\u200C\u200D\u200E\u200F"
                 "\u202A\u202E\u2060\u2066\u2069\uFEFF\uFFF9\uFFFC\uFFFD"
                 "\U000E0001\U000E0041\U000F0000\uE000\uFDD0\uFFFF"
                 "\U0010FFFF\u2028\u2029\u0378"))
SPACES = [" ", "  ", "    ", "\t", "\n", "\r\n", "\r", "\n\n", "\u00A0",
          "\u1680", "\u2003", "\u2009", "\u202F", "\u205F", "\u3000", "\v",
          "\f", "\u0085", "\u2581", "\u2581\u2581"]
CODE = [
    "def f(x):\n    return x**2 + 1\n", "for (int i = 0; i < n; ++i) {\n\t",
    "if (a && !b || c->d != nullptr) { ", "std::vector<std::pair<int, T>> v;",
    "SELECT * FROM t WHERE id=1 AND name LIKE '%x%';", "</div><br/>&nbsp;",
    "https://example.org/a/b?c=d&e=%20f#g", "user.name+tag@example.org",
    "C:\\dir\\file.txt", "../../etc/", "#!/bin/sh\n", "$HOME/.cfg",
    "x = {'a': [1, 2.5e-3, None], \"b\": True}", "\\frac{a}{b}^2_{n+1}",
    "fn main() -> Result<(), Box<dyn Error>> {", "@media (max-width: 600px)",
    "0xDEADBEEF", "1_000_000", "a_b_c", "CamelCaseWord", "kConstant", "__init__",
    "don't", "I'LL", "we've", "it's", "--flag=value", "::", "=>", "!==", "...",
    "```python\n", "**bold** _it_ ~~no~~", "| a | b |\n|---|---|", "// TODO: x"]
RIGHT_TO_LEFT = ["שלום", "עולם", "שָׁלוֹם", "العربية", "مرحبا", "مُحَمَّد", "ﻻ", "ﷺ",
                 "فارسی", "اردو", "\u200Fאב\u200E", "١٢٣", "۴۵۶"]
CJK = [[0x4E00, 0x9FFF], [0x3041, 0x3096], [0x30A1, 0x30FC], [0xAC00, 0xD7A3],
       [0x3400, 0x4DBF], [0xFF01, 0xFF9F], [0x20000, 0x2A6DF], [0xF900, 0xFAD9],
       [0x3100, 0x312F], [0x2F00, 0x2FD5], [0x3300, 0x33FF], [0x1100, 0x11FF]]
FORMS = list("ﬁﬀ①②½⅔ⅧⅸⅢ㎏㎡™℃ﬃªº²³ⁿ₂ℕℝ𝐀𝒶𝔻𝟘İıſßẞςΣǅǄŉΰﬗẛỀấ") + [
    "e\u0301", "A\u030A", "s\u0323\u0307", "가", "각", "\u1100\u1161\u11A8",
    "ﾊﾟ", "㈱", "〜", "･", "ー", "々", "〇", "𠮷", "ﷲ", "\u0958", "\u0F77"]


def script_ranges():
    """Ranges of letters, marks and numbers by the first word of their names,
    which is the script's for nearly all."""
    groups = {}
    for c in range(0x41, 0x110000):
        if unicodedata.category(chr(c))[0] not in "LMN":
            continue
        if 0x3400 <= c <= 0x9FFF or 0xAC00 <= c <= 0xD7A3:
            continue
        name = unicodedata.name(chr(c), "").split(" ")[0].split("-")[0]
        ranges = groups.setdefault(name, [])
        if ranges and ranges[-1][1] == c - 1:
            ranges[-1][1] = c
        else:
            ranges.append([c, c])
    return [groups[name] for name in sorted(groups) if name]


def make_spec():
    return {"words": sorted(set(WORDS)), "scripts": script_ranges(),
            "emoji": EMOJI, "modifiers": MODIFIERS, "marks": list(MARKS),
            "bases": list(BASES), "controls": CONTROLS, "spaces": SPACES,
            "code": CODE, "right_to_left": RIGHT_TO_LEFT, "cjk": CJK,
            "forms": FORMS, "specials": SPECIALS}


def make_string(spec, number):
    """ProofString of tokenizer/proof_strings.h, step for step."""
    rng = SimulationRandom(number << 20)
    out = bytearray()

    def pick(name):
        return spec[name][rng.below(len(spec[name]))]

    def put(text):
        out.extend(text.encode())

    def put_from(ranges):
        low, high = ranges[rng.below(len(ranges))]
        put(chr(low + rng.below(high - low + 1)))

    for _ in range(1 + rng.below(9)):
        kind = rng.below(20)
        if kind < 4:
            put(pick("words"))
            if rng.below(4) > 0:
                put(" ")
        elif kind < 7:
            script = pick("scripts")
            for _ in range(1 + rng.below(6)):
                put_from(script)
        elif kind == 7:
            for _ in range(1 + rng.below(4)):
                put(pick("emoji"))
                put(pick("modifiers"))
                if rng.below(2) == 0:
                    put("\u200D")
        elif kind == 8:
            put(pick("bases"))
            for _ in range(1 + rng.below(5)):
                put(pick("marks"))
        elif kind == 9:
            put(pick("controls"))
        elif kind == 10:
            put(pick("code"))
        elif kind == 11:
            for _ in range(1 + rng.below(9)):
                out.append(48 + rng.below(10))
                if rng.below(6) == 0:
                    out.append(44 + rng.below(3))
        elif kind == 12:
            space = pick("spaces")
            for _ in range(1 + rng.below(4)):
                put(space)
        elif kind == 13:
            ranges = [pick("cjk")]
            for _ in range(1 + rng.below(6)):
                put_from(ranges)
        elif kind == 14:
            put(pick("right_to_left"))
        elif kind == 15:
            put(pick("specials"))
        elif kind == 16:
            for _ in range(1 + rng.below(8)):
                out.append(32 + rng.below(95))
        elif kind == 17:
            c = rng.below(0x110000 - 0x800)
            put(chr(c if c < 0xD800 else c + 0x800))
        elif kind == 18:
            if rng.below(2) == 0:
                put(pick("forms"))
            else:
                for _ in range(1 + rng.below(3)):
                    out.append(128 + rng.below(128))
        else:
            atom = pick("words")
            count = 2 + rng.below(300 if rng.below(64) == 0 else 8)
            for _ in range(count):
                put(atom)
    return bytes(out)


def readable(spec, number):
    return make_string(spec, number).decode("utf-8", errors="replace")


def training_texts(spec, proof_every=1):
    rng = SimulationRandom(5)
    for i in range(NUM_TRAINING):
        words = [spec["words"][rng.below(len(spec["words"]))]
                 for _ in range(8)]
        yield " ".join(words)
        if i % proof_every == 0:
            yield readable(spec, TRAINING_BEGIN + i)


def train(tokenizer, trainer, spec):
    tokenizer.train_from_iterator(training_texts(spec), trainer)
    return tokenizer


def make_byte_level(spec):
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|begin_of_text|>", "<|eot|>"]
    train(tokenizer, trainers.BpeTrainer(
        vocab_size=2500, special_tokens=specials, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())), spec)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[(specials[0], 0)])
    return tokenizer


def make_byte_fallback(spec):
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True,
                                     unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(" ", 1, 0)])
    specials = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    # Words for training, none for use: as sentencepiece's models come to be.
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    train(tokenizer, trainers.BpeTrainer(
        vocab_size=2000, special_tokens=specials, show_progress=False,
        limit_alphabet=400), spec)
    config = json.loads(tokenizer.to_str())
    config["pre_tokenizer"] = None
    config["added_tokens"] = config["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(config))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def train_sentencepiece(spec, **options):
    model = io.BytesIO()
    # A sentence must not be longer than the library takes, and rare characters
    # must be a small part of all.
    texts = [t[:1000].replace("\0", "") for t in training_texts(spec, 10)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, minloglevel=2,
        **options)
    return model.getvalue()


def make_unigram(spec, model_file):
    """XLM-RoBERTa's pipeline, on the pieces of the sentencepiece model."""
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model_file)
    vocab = [(p.piece, p.score) for p in proto.pieces]
    tokenizer = Tokenizer(models.Unigram(vocab, proto.trainer_spec.unk_id))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
        normalizers.Strip(left=False, right=True),
        normalizers.Replace(Regex(" {2,}"), "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<s>", "</s>", "<unk>"])
    tokenizer.add_special_tokens([AddedToken("<extra_id_0>", lstrip=True)])
    ids = {t: tokenizer.token_to_id(t) for t in ("<s>", "</s>")}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=list(ids.items()))
    return tokenizer


def make_word_piece(spec):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    specials = ["<pad>", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    train(tokenizer, trainers.WordPieceTrainer(
        vocab_size=3000, special_tokens=specials, show_progress=False,
        limit_alphabet=1200), spec)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3),
                                                         ("[CLS]", 2))
    return tokenizer


def write_golden(folder, spec, encode, decode, is_tie=lambda text: False):
    records, all_ids, all_texts, num_compared = [], 0, 0, 0
    while num_compared < NUM_STRINGS:
        text = readable(spec, len(records))
        if is_tie(text):
            records.append(TIE)
            continue
        num_compared += 1
        ids = encode(text)
        data = struct.pack("<%di" % len(ids), *ids)
        texts = b"\0".join(text.encode() for text in decode(ids))
        all_ids = zlib.crc32(data, all_ids)
        all_texts = zlib.crc32(texts, all_texts)
        records.append(zlib.crc32(data) & 0xFFFF |
                       (zlib.crc32(texts) & 0xFFFF) << 16)
    records += [all_ids, all_texts]
    with open(os.path.join(folder, "golden.bin"), "wb") as f:
        f.write(struct.pack("<%dI" % len(records), *records))


def write_json(path, name, spec, tokenizer):
    folder = os.path.join(path, name)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "tokenizer.json"), "w") as f:
        f.write(tokenizer.to_str(pretty=False))
    tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))

    def decode(ids):
        # Strip fails on an empty list.
        return [tokenizer.decode(ids, skip_special_tokens=skip)
                if any(not skip or i not in specials for i in ids) else ""
                for skip in (True, False)]

    specials = {i for i, t in tokenizer.get_added_tokens_decoder().items()
                if t.special}
    write_golden(folder, spec, lambda text: tokenizer.encode(text).ids, decode)


def write_sentencepiece(path, name, spec, model_file):
    folder = os.path.join(path, name)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "tokenizer.model"), "wb") as f:
        f.write(model_file)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model_file)
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model_file)
    user_defined = [p.piece for p in proto.pieces if p.type == p.USER_DEFINED]

    def is_tie(text):
        # Of equally likely segmentations the rounding of f32 sums chooses,
        # which after a user-defined piece is not that of version 0.1.97.
        if name != "sp_unigram" or not any(p in text for p in user_defined):
            return False
        scores = [sum(processor.get_score(i) for i in ids)
                  for ids in processor.nbest_encode_as_ids(text, 2)]
        return len(scores) == 2 and scores[0] - scores[1] < 1e-4

    write_golden(folder, spec, processor.encode,
                 lambda ids: [processor.decode(ids)], is_tie)


def main():
    path = sys.argv[1]
    only = sys.argv[2:]
    os.makedirs(path, exist_ok=True)
    spec = make_spec()
    with open(os.path.join(path, "strings.json"), "w") as f:
        json.dump(spec, f, ensure_ascii=True, separators=(",", ":"))
        f.write("\n")
    unigram = train_sentencepiece(
        spec, model_type="unigram", vocab_size=2500, character_coverage=0.985,
        hard_vocab_limit=False, user_defined_symbols=["<|im_start|>", "👍"])
    bpe = train_sentencepiece(
        spec, model_type="bpe", vocab_size=2500, byte_fallback=True,
        character_coverage=0.985, normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["<|im_start|>", "    ", "▁▁"])
    made = {
        "byte_level": lambda name: write_json(path, name, spec,
                                              make_byte_level(spec)),
        "byte_fallback": lambda name: write_json(path, name, spec,
                                                 make_byte_fallback(spec)),
        "unigram": lambda name: write_json(path, name, spec,
                                           make_unigram(spec, unigram)),
        "word_piece": lambda name: write_json(path, name, spec,
                                              make_word_piece(spec)),
        "sp_bpe": lambda name: write_sentencepiece(path, name, spec, bpe),
        "sp_unigram": lambda name: write_sentencepiece(path, name, spec,
                                                       unigram)}
    for name in only or made:
        made[name](name)


if __name__ == "__main__":
    main()
