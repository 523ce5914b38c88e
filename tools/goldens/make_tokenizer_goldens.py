#!/usr/bin/env python3
"""Writes tokenizer/testdata: small tokenizers and what the reference says.

The oracles are the Python packages tokenizers (0.23) and sentencepiece (0.2).
Every tokenizer is trained here, on text made here. The strings are made from
a seed by the same steps in this file and in tokenizer/golden_strings.h, so
that only hashes are stored:
  strings.json      atoms and code point ranges that strings are made of
  NAME/...          the model's files
  NAME/golden.json  a hash of ids and one of decoded texts for each string, the
                    ids of the first few, and hashes of decoded random ids

Usage: make_tokenizer_goldens.py OUTPUT_DIRECTORY
"""
import base64
import io
import json
import os
import random
import struct
import sys
import tempfile
import unicodedata

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models,
                        normalizers, pre_tokenizers, processors, trainers)

NUM_STRINGS = 1800
NUM_FULL = 12
NUM_RANDOM_IDS = 200
MASK = (1 << 64) - 1

WORDS = (
    "the of and to in is you that it he was for on are as with his they I at "
    "be this have from or one had by word but not what all were we when your "
    "can said there use an each which she do how their if will up other about "
    "out many then them these so some her would make like him into time has "
    "look two more write go see number no way could people my than first "
    "water been call who oil its now find long down day did get come made may "
    "part don't I'm we'll you've HELLO World engine token_id CamelCase "
    "HTTPServer naïve café über straße 你好 世界 こんにちは カタカナ 한국어 "
    "привет мир Ελληνικά עברית العربية हिन्दी ไทย 123 4567 3.14159 2024-01-02 "
    '{"key": "value"} if(x==y) return; // comment int main() {}').split(" ")

SPECIAL_ATOMS = [
    "<|endoftext|>", "<s>", "</s>", "<|begin_of_text|>", "<|eot|>", "New York",
    " LSTRIP", "[R]", "<|im_start|>", "<|im_end|>", "<unk>", "[UNK]",
    "<｜begin▁of▁sentence｜>", "'s", "'S", "'ſ", "'LL", "'re", "'Ve", "'",
    " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "\u200d",
    "\u0301", "\u0308", "ǅ", "ʰ", "ﬁ", "é", "e\u0301", "İ", "①", "½", "Ⅷ",
    "👨\u200d👩\u200d👧", "🇩🇪", "👍🏽", "❤️", "x", "xx", "/", "//", "_", "$",
    "€", "+", "A", "AB", "aB", "ABc", "12", "1234567", "\x00", "\x07", "\x7f",
    "ﷺ", "가", "각", "\ufffd", "\u2028", "▁", "<0x41>", "Ġ", "Ċ"]

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
          r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace("{1,3}", "")
QWEN_MARKS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|"
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
O200K = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+",
    r"\s+(?!\S)", r"\s+"])
DEEPSEEK = ["\\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
            r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"""
            r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
            r"\s*[\r\n]+|\s+(?!\S)|\s+"]


class SimulationRandom:
    """engine/base/random.h."""

    def __init__(self, seed):
        self.state = seed

    def next(self):
        x = (self.state + 0x9E3779B97F4A7C15 * (0x5EED + 1)) & MASK
        self.state = (self.state + 1) & MASK
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
        return x ^ (x >> 31)

    def below(self, bound):
        return self.next() % bound


def code_point_ranges(data):
    ranges = []
    for c in range(0x20, 0x110000):
        if data.category(chr(c)) in ("Cn", "Cs", "Co"):
            continue
        if ranges and ranges[-1][1] == c - 1:
            ranges[-1][1] = c
        else:
            ranges.append([c, c])
    return ranges


def make_string(spec, ranges, seed):
    """GoldenString of tokenizer/golden_strings.h, step for step."""
    rng = SimulationRandom(seed << 20)
    atoms = spec["atoms"]
    out = []
    for _ in range(rng.below(24)):
        kind = rng.below(100)
        if kind < 45:
            out.append(atoms[rng.below(len(atoms))])
            if rng.below(2) == 0:
                out.append(" ")
        elif kind < 60:
            low, high = ranges[rng.below(len(ranges))]
            out.append(chr(low + rng.below(high - low + 1)))
        elif kind < 90:
            out.append(chr(32 + rng.below(95)))
        else:
            count = 1 + rng.below(2000 if seed % 300 == 299 else 40)
            out.append(atoms[rng.below(len(atoms))] * count)
    return "".join(out)


def fnv(data, value=0xCBF29CE484222325):
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & MASK
    return value


def hash_ids(ids):
    return fnv(struct.pack("<%di" % len(ids), *ids))


def hash_texts(texts):
    return fnv(b"\0".join(t.encode() for t in texts))


def corpus():
    rng = random.Random(7)
    for _ in range(2500):
        yield " ".join(rng.choice(WORDS) for _ in range(30)) + "\n"


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def byte_level(**kwargs):
    return pre_tokenizers.ByteLevel(**kwargs)


def train(pre, specials, vocab_size=800, normalizer=None, alphabet=True,
          **model):
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = pre
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(
        corpus(),
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=specials,
            show_progress=False,
            initial_alphabet=sorted(byte_level().alphabet())
            if alphabet else []))
    return tokenizer


def splits_then_bytes(*patterns):
    return pre_tokenizers.Sequence(
        [split(p) for p in patterns] +
        [byte_level(add_prefix_space=False, use_regex=False)])


def make_byte_level():
    gpt2 = train(byte_level(add_prefix_space=False), ["<|endoftext|>"])
    gpt2.post_processor = processors.ByteLevel(trim_offsets=False)
    roberta = train(byte_level(add_prefix_space=True), ["<s>", "</s>"])
    roberta.post_processor = processors.RobertaProcessing(("</s>", 1),
                                                          ("<s>", 0))
    llama3 = train(splits_then_bytes(LLAMA3), ["<|begin_of_text|>", "<|eot|>"],
                   ignore_merges=True)
    llama3.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(
            single="<|begin_of_text|> $A",
            pair="<|begin_of_text|> $A <|begin_of_text|> $B",
            special_tokens=[("<|begin_of_text|>", 0)])])
    llama3.add_tokens([
        AddedToken("New York", single_word=True, normalized=True),
        AddedToken(" LSTRIP", lstrip=True),
        AddedToken("[R]", rstrip=True, lstrip=True, normalized=False)])
    qwen2 = train(splits_then_bytes(QWEN2), ["<|im_start|>", "<|im_end|>"],
                  normalizer=normalizers.NFC())
    marks = train(splits_then_bytes(QWEN_MARKS), ["<|im_start|>"],
                  normalizer=normalizers.NFC())
    o200k = train(splits_then_bytes(O200K), ["<|im_start|>"])
    deepseek = train(splits_then_bytes(*DEEPSEEK), ["<｜begin▁of▁sentence｜>"])
    made = {"gpt2": gpt2, "roberta": roberta, "llama3": llama3,
            "qwen2": qwen2, "qwen_marks": marks, "o200k": o200k,
            "deepseek": deepseek}
    for tokenizer in made.values():
        tokenizer.decoder = decoders.ByteLevel()
    return made


def variant(tokenizer, **fields):
    config = json.loads(tokenizer.to_str())
    config.update(fields)
    return Tokenizer.from_str(json.dumps(config))


def make_byte_fallback():
    specials = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    base = train(pre_tokenizers.Metaspace(), specials, vocab_size=900,
                 alphabet=False, byte_fallback=True, fuse_unk=True,
                 unk_token="<unk>")
    base.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(" ", 1, 0)])
    base.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    config = json.loads(base.to_str())
    config["added_tokens"] = config["added_tokens"][:3]
    # So that byte fallback happens to letters, too.
    for letter in "qQzñ":
        config["model"]["vocab"].pop(letter, None)
    config["model"]["merges"] = [
        m for m in config["model"]["merges"]
        if all(t in config["model"]["vocab"] for t in (*m, "".join(m)))]
    metaspace = Tokenizer.from_str(json.dumps(config))
    llama2 = variant(
        metaspace, pre_tokenizer=None,
        normalizer={"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]})
    first = {"type": "Metaspace", "replacement": "▁",
             "prepend_scheme": "first", "split": False}
    added = [dict(t, normalized=True) for t in config["added_tokens"]]
    return {"metaspace": metaspace, "llama2": llama2,
            "metaspace_first": variant(metaspace, pre_tokenizer=first,
                                       decoder=first, added_tokens=added)}


def make_mixed():
    """Components that no published tokenizer joins in this way."""
    made = {}
    behaviors = ["removed", "isolated", "merged_with_previous",
                 "merged_with_next", "contiguous"]
    for i, behavior in enumerate(behaviors):
        pre = pre_tokenizers.Sequence([
            split(r"[aeiou]|\d+|\s+", behavior, i % 2 == 1),
            pre_tokenizers.Punctuation(behavior),
            pre_tokenizers.Digits(individual_digits=i % 2 == 0),
            pre_tokenizers.Split("th", behavior, i % 2 == 0)])
        normalizer = normalizers.Sequence([
            normalizers.NFKC() if i % 2 else normalizers.NFD(),
            normalizers.Replace(Regex(r"x+"), "ks"),
            normalizers.Lowercase() if i % 2 else normalizers.Strip()])
        tokenizer = train(pre, ["[UNK]"], vocab_size=300,
                          normalizer=normalizer, alphabet=False,
                          unk_token="[UNK]", fuse_unk=i % 3 == 0)
        tokenizer.decoder = (decoders.WordPiece() if i % 2 else
                             decoders.Fuse())
        made["mixed_" + behavior] = tokenizer
    words = train(
        pre_tokenizers.Sequence([pre_tokenizers.Whitespace(),
                                 pre_tokenizers.Digits()]),
        ["[UNK]"], vocab_size=400, alphabet=False, unk_token="[UNK]",
        end_of_word_suffix="</w>", continuing_subword_prefix="##",
        normalizer=normalizers.Sequence([
            normalizers.NFKD(), normalizers.Lowercase(),
            normalizers.StripAccents()]))
    words.decoder = decoders.BPEDecoder(suffix="</w>")
    made["words"] = words
    return made


def normal_form_rules():
    """A precompiled character map of a few rules, as sentencepiece makes it."""
    rules = {"A": "a", "\uff21": "A", "\u00e9": "e", "e\u0301": "E!", "\u2460": "1",
             "\ufdfa": "xyz w", "\u00ad": "", "12": "twelve", "\u3000": " ",
             "\u1100\u1161": "ga", "\u0301": "'"}
    with tempfile.TemporaryDirectory() as folder:
        name = os.path.join(folder, "rules.tsv")
        with open(name, "w") as f:
            for old, new in rules.items():
                f.write(" ".join("%X" % ord(c) for c in old) + "\t" +
                        " ".join("%X" % ord(c) for c in new) + "\n")
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(list(corpus())[:50]), model_writer=model,
            vocab_size=120, hard_vocab_limit=False, minloglevel=2,
            normalization_rule_tsv=name)
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.getvalue())
    return proto.normalizer_spec.precompiled_charsmap


def make_other_models():
    """Unigram, WordPiece, WordLevel, and components of no other golden."""
    made = {}
    pieces = trainers.UnigramTrainer(
        vocab_size=500, show_progress=False, unk_token="<unk>",
        special_tokens=["<unk>"] + [f"<0x{i:02X}>" for i in range(256)])

    def unigram(pre, normalizer, decoder, byte_fallback):
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre
        tokenizer.normalizer = normalizer
        tokenizer.train_from_iterator(corpus(), pieces)
        config = json.loads(tokenizer.to_str())
        config["model"]["byte_fallback"] = byte_fallback
        config["added_tokens"] = config["added_tokens"][:1]
        tokenizer = Tokenizer.from_str(json.dumps(config))
        tokenizer.decoder = decoder
        return tokenizer

    made["unigram_bytes"] = unigram(
        pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
        normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()]),
        decoders.Sequence([decoders.ByteFallback(),
                           decoders.Metaspace(prepend_scheme="first")]), True)
    made["unigram_map"] = unigram(
        pre_tokenizers.Sequence([pre_tokenizers.UnicodeScripts(),
                                 pre_tokenizers.FixedLength(7)]),
        normalizers.Precompiled(normal_form_rules()), decoders.Metaspace(),
        False)
    cased = Tokenizer(models.WordPiece(unk_token="[UNK]",
                                       max_input_chars_per_word=12))
    cased.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=False,
        lowercase=False)
    cased.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.CharDelimiterSplit("e"),
        pre_tokenizers.BertPreTokenizer()])
    cased.train_from_iterator(corpus(), trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=["[UNK]", "[CLS]", "[SEP]"],
        show_progress=False, continuing_subword_prefix="@@"))
    cased.decoder = decoders.WordPiece("@@", cleanup=False)
    cased.post_processor = processors.TemplateProcessing(
        single="[CLS] $A:0 [SEP]:0", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    made["word_piece_cased"] = cased
    level = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    level.normalizer = normalizers.Sequence([
        normalizers.Prepend("e "), normalizers.Lowercase(),
        normalizers.BertNormalizer(strip_accents=True)])
    level.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.WhitespaceSplit(),
        pre_tokenizers.Split(Regex("[aeiou]"), "merged_with_previous")])
    level.train_from_iterator(corpus(), trainers.WordLevelTrainer(
        vocab_size=300, special_tokens=["[UNK]"], show_progress=False))
    made["word_level"] = level
    ctc = train(pre_tokenizers.WhitespaceSplit(), ["<pad>"],
                vocab_size=300, alphabet=False)
    ctc.decoder = decoders.CTC()
    made["ctc"] = ctc
    spelled = Tokenizer(models.Unigram())
    spelled.normalizer = normalizers.ByteLevel()
    spelled.pre_tokenizer = pre_tokenizers.Split("\u0120", "merged_with_next")
    spelled.train_from_iterator(corpus(), trainers.UnigramTrainer(
        vocab_size=500, show_progress=False, unk_token="<unk>",
        special_tokens=["<unk>"],
        initial_alphabet=sorted(byte_level().alphabet())))
    spelled.decoder = decoders.ByteLevel()
    made["unigram_spelled"] = spelled
    return made


def write_json_golden(path, name, tokenizer, spec):
    os.makedirs(os.path.join(path, name), exist_ok=True)
    text = tokenizer.to_str(pretty=False)
    with open(os.path.join(path, name, "tokenizer.json"), "w") as f:
        f.write(text)

    def encode(string):
        return tokenizer.encode(string).ids

    def decode(ids):
        return [tokenizer.decode(ids, skip_special_tokens=skip)
                for skip in (True, False)]

    size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
    write_golden(path, name, spec, encode, decode, size)


def write_golden(path, name, spec, encode, decode, vocab_size,
                 is_tie=lambda string: False):
    # PCRE2, which takes the expressions of these, has Unicode 14.
    is_old = name.startswith(("mixed", "words"))
    ranges = spec["old_ranges" if is_old else "ranges"]
    hashes, full = [], []
    for seed in range(NUM_STRINGS):
        string = make_string(spec, ranges, seed)
        ids = encode(string)
        # BPEDecoder and Strip fail on an empty list.
        texts = decode(ids) if ids else ["", ""]
        if is_tie(string):
            hashes += [0, 0]
            continue
        hashes += [hash_ids(ids), hash_texts(texts)]
        if len(full) < NUM_FULL:
            full.append({"seed": seed, "text": string, "ids": ids, "decoded": texts})
    for seed in range(NUM_RANDOM_IDS):
        rng = SimulationRandom((1 << 40) + (seed << 20))
        # Mostly the low ids, where the byte tokens are.
        ids = [rng.below(300 if rng.below(2) else vocab_size)
               for _ in range(1 + rng.below(12))]
        try:
            hashes.append(hash_texts(decode(ids)))
        except BaseException:  # The library panics; nothing to agree with.
            hashes.append(0)
    golden = {
        "old_ranges": is_old, "num_strings": NUM_STRINGS,
        "num_random_ids": NUM_RANDOM_IDS, "vocab_size": vocab_size,
        "full": full,
        "hashes": base64.b64encode(
            struct.pack("<%dQ" % len(hashes), *hashes)).decode()}
    with open(os.path.join(path, name, "golden.json"), "w") as f:
        json.dump(golden, f, ensure_ascii=True, separators=(",", ":"))
        f.write("\n")


def write_sentencepiece_golden(path, name, spec, **options):
    os.makedirs(os.path.join(path, name), exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(list(corpus())), model_writer=model,
        minloglevel=2, **options)
    data = model.getvalue()
    with open(os.path.join(path, name, "tokenizer.model"), "wb") as f:
        f.write(data)
    processor = sentencepiece.SentencePieceProcessor(model_proto=data)

    def decode(ids):
        text = processor.decode(ids)
        return [text, text]

    def is_tie(string):
        # Between equally likely segmentations the order of f32 additions
        # decides, which differs between versions of the library.
        if options["model_type"] != "unigram" or len(string) > 500:
            return False
        scores = [sum(processor.get_score(i) for i in ids)
                  for ids in processor.nbest_encode_as_ids(string, 2)]
        return len(scores) == 2 and scores[0] - scores[1] < 1e-3

    write_golden(path, name, spec, processor.encode, decode,
                 processor.get_piece_size(), is_tie)


def main():
    path = sys.argv[1]
    spec = {"atoms": sorted(set(WORDS)) + SPECIAL_ATOMS,
            "ranges": code_point_ranges(unicodedata),
            "old_ranges": code_point_ranges(unicodedata.ucd_3_2_0)}
    os.makedirs(path, exist_ok=True)
    with open(os.path.join(path, "strings.json"), "w") as f:
        json.dump(spec, f, ensure_ascii=True, separators=(",", ":"))
        f.write("\n")
    made = {**make_byte_level(), **make_byte_fallback(), **make_mixed(),
            **make_other_models()}
    for name, tokenizer in made.items():
        write_json_golden(path, name, tokenizer, spec)
    write_sentencepiece_golden(
        path, "sp_bpe", spec, model_type="bpe", vocab_size=700,
        byte_fallback=True, character_coverage=0.98,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
        user_defined_symbols=["<|im_start|>"])
    write_sentencepiece_golden(
        path, "sp_unigram", spec, model_type="unigram", vocab_size=500,
        character_coverage=0.99, hard_vocab_limit=False)


if __name__ == "__main__":
    main()
