#!/usr/bin/env python3
"""Writes tokenizer/unicode_corrections.cc and tokenizer/unicode_scripts.cc.

Asks the Python package tokenizers (0.23) about every code point, and utf8proc
(2.8, the shared object) about the same; what differs goes into the tables.

Usage: make_unicode_corrections.py TOKENIZER_FOLDER
"""
import ctypes
import io
import os
import sys
import tempfile

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Regex, normalizers, pre_tokenizers

CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
UTF8PROC = ctypes.CDLL("libutf8proc.so.2")
UTF8PROC.utf8proc_category_string.restype = ctypes.c_char_p
UTF8PROC.utf8proc_grapheme_break.restype = ctypes.c_bool
UTF8PROC.utf8proc_map.argtypes = [ctypes.c_char_p, ctypes.c_ssize_t,
                                  ctypes.POINTER(ctypes.c_void_p), ctypes.c_int]
UTF8PROC.utf8proc_map.restype = ctypes.c_ssize_t
LIBC = ctypes.CDLL(None)
LIBC.free.argtypes = [ctypes.c_void_p]
STABLE, COMPAT, COMPOSE, DECOMPOSE = 2, 4, 8, 16

# UnicodeClass of tokenizer/unicode.h.
BITS = {"L": 1 << 0, "N": 1 << 1, "M": 1 << 4, "upperish": 1 << 5,
        "lowerish": 1 << 6, "P": 1 << 7, "S": 1 << 8, "word": 1 << 9,
        "numeric": 1 << 10, "sign": 1 << 11, "nonspacing": 1 << 12,
        "accent": 1 << 13, "other": 1 << 14}


def category(c):
    return UTF8PROC.utf8proc_category_string(c).decode()


def utf8proc_form(text, options):
    out = ctypes.c_void_p()
    data = text.encode()
    size = UTF8PROC.utf8proc_map(data, len(data), ctypes.byref(out),
                                 options | STABLE)
    mapped = ctypes.string_at(out, size).decode()
    LIBC.free(out)
    return mapped


def ranges(values):
    """[first, last, value] for runs of code points with equal values."""
    out = []
    for c in sorted(values):
        if out and out[-1][1] == c - 1 and out[-1][2] == values[c]:
            out[-1][1] = c
        else:
            out.append([c, c, values[c]])
    return out


def own_bits(c):
    """ComputeUnicodeClass of tokenizer/unicode.cc, without corrections."""
    kind = category(c)
    is_word_symbol = (0x24B6 <= c <= 0x24E9 or c in (0x200C, 0x200D) or
                      0x1F130 <= c <= 0x1F149 or 0x1F150 <= c <= 0x1F169 or
                      0x1F170 <= c <= 0x1F189)
    has = {
        "L": kind[0] == "L", "N": kind[0] == "N", "M": kind[0] == "M",
        "upperish": kind in ("Lu", "Lt", "Lm", "Lo") or kind[0] == "M",
        "lowerish": kind in ("Ll", "Lm", "Lo") or kind[0] == "M",
        "P": kind[0] == "P", "S": kind[0] == "S",
        "word": (kind[0] in "LM" or kind in ("Nd", "Nl", "Pc") or
                 is_word_symbol),
        "numeric": kind[0] == "N",
        "sign": kind[0] == "P" or (c < 0x80 and kind[0] == "S"),
        "nonspacing": kind == "Mn", "accent": kind[0] == "M",
        "other": kind in ("Cc", "Cf", "Co") and c not in (9, 10, 13)}
    return sum(BITS[name] for name in has if has[name])


def library_bits():
    def splits(pre_tokenizer, num_pieces, around="a"):
        return {c for c in CODE_POINTS if len(pre_tokenizer.pre_tokenize_str(
            around + chr(c) + around)) == num_pieces}

    def expression(text):
        found = splits(pre_tokenizers.Split(Regex(text), "isolated"), 3, "\0")
        return found - {0}

    def removed(normalizer):
        return {c for c in CODE_POINTS
                if normalizer.normalize_str("a" + chr(c) + "a") == "aa"}

    def bert(**options):
        base = dict(clean_text=False, handle_chinese_chars=False,
                    strip_accents=False, lowercase=False)
        return normalizers.BertNormalizer(**{**base, **options})

    both = expression(r"\p{Lm}") | expression(r"\p{Lo}") | expression(r"\p{M}")
    sets = {
        "L": expression(r"\p{L}"), "N": expression(r"\p{N}"),
        "M": expression(r"\p{M}"), "P": expression(r"\p{P}"),
        "S": expression(r"\p{S}"),
        "upperish": expression(r"[\p{Lu}\p{Lt}]") | both,
        "lowerish": expression(r"\p{Ll}") | both,
        "word": splits(pre_tokenizers.Whitespace(), 1),
        "numeric": splits(pre_tokenizers.Digits(), 3),
        "sign": splits(pre_tokenizers.Punctuation(), 3),
        "nonspacing": removed(bert(strip_accents=True)),
        "accent": removed(normalizers.StripAccents()),
        "other": removed(bert(clean_text=True)) - {0xFFFD}}
    bits = dict.fromkeys(CODE_POINTS, 0)
    for name, found in sets.items():
        for c in found:
            bits[c] |= BITS[name]
    return bits


def lowercase_offsets():
    out = {}
    lower = normalizers.Lowercase()
    for c in CODE_POINTS:
        text = lower.normalize_str(chr(c))
        if len(text) == 1 and ord(text) != UTF8PROC.utf8proc_tolower(c):
            out[c] = ord(text) - c
    return out


def opaque(forms):
    out = {}
    for normalizer, options in forms:
        for c in CODE_POINTS:
            # Alone, and where its combining class would reorder it.
            for text in (chr(c), "a\u0301" + chr(c) + "\u0334"):
                if (normalizer.normalize_str(text) !=
                        utf8proc_form(text, options)):
                    out[c] = 0
                    break
    return out


def extenders():
    """Characters that the library keeps in one cluster with an `a` before."""
    with tempfile.TemporaryDirectory() as folder:
        rules = os.path.join(folder, "rules.tsv")
        with open(rules, "w") as f:
            f.write("61\t62\n")
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["b c d e f g hello world"] * 50),
            model_writer=model, vocab_size=30, hard_vocab_limit=False,
            normalization_rule_tsv=rules, minloglevel=2)
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.getvalue())
    normalizer = normalizers.Precompiled(
        proto.normalizer_spec.precompiled_charsmap)
    # The cluster's shortest known prefix replaces all of it.
    return {c: 0 for c in CODE_POINTS
            if c and normalizer.normalize_str("a" + chr(c)) == "b" and
            UTF8PROC.utf8proc_grapheme_break(ord("a"), c)}


def scripts():
    """The class of each code point; 0 goes with any other."""
    pre_tokenizer = pre_tokenizers.UnicodeScripts()

    def is_together(a, b):
        return len(pre_tokenizer.pre_tokenize_str(chr(a) + chr(b))) == 1

    def is_any(c):
        return not pre_tokenizer.pre_tokenize_str(chr(c))

    out = {}
    examples = []
    previous = None
    for c in CODE_POINTS:
        if is_any(c):
            out[c] = 0
        elif (previous is not None and out[previous] > 0 and
              is_together(previous, c)):
            out[c] = out[previous]
        else:
            for i, example in enumerate(examples):
                if is_together(example, c):
                    out[c] = i + 1
                    break
            else:
                examples.append(c)
                out[c] = len(examples)
        previous = c
    return out


def table(rows):
    lines, line = [], "   "
    for row in rows:
        cell = " %s," % row
        if len(line) + len(cell) > 80:
            lines.append(line)
            line = "   "
        line += cell
    return "\n".join(lines + [line])


def pairs(values):
    return table("{0x%X, 0x%X}" % (first, last)
                 for first, last, _ in ranges(values))


HEADER = """// Made by tools/goldens/make_unicode_corrections.py; do not edit.
#include "tokenizer/%s.h"

namespace quire {
namespace {

"""


def main():
    library = library_bits()
    flipped = {c: own_bits(c) ^ library[c] for c in CODE_POINTS}
    flipped = {c: bits for c, bits in flipped.items() if bits}
    canonical = opaque([(normalizers.NFC(), COMPOSE),
                        (normalizers.NFD(), DECOMPOSE)])
    canonical[0x11930] = 0  # Part of a composition newer than the library.
    compatibility = opaque([(normalizers.NFKC(), COMPOSE | COMPAT),
                            (normalizers.NFKD(), DECOMPOSE | COMPAT)])
    compatibility = {c: 0 for c in compatibility if c not in canonical}
    with open(os.path.join(sys.argv[1], "unicode_corrections.cc"), "w") as f:
        f.write(HEADER % "unicode_corrections")
        f.write("constexpr ClassCorrection kClasses[] = {\n%s\n};\n\n" % table(
            "{0x%X, 0x%X, 0x%X}" % tuple(row) for row in ranges(flipped)))
        f.write("constexpr LowercaseCorrection kLowercase[] = {\n%s\n};\n\n" %
                table("{0x%X, 0x%X, %d}" % tuple(row)
                      for row in ranges(lowercase_offsets())))
        for name, values in (("kOpaqueToCanonicalForms", canonical),
                             ("kOpaqueToCompatibilityForms", compatibility),
                             ("kExtenders", extenders())):
            f.write("constexpr CodePointRange %s[] = {\n%s\n};\n\n" %
                    (name, pairs(values)))
        f.write("}  // namespace\n\n")
        for kind, name, values in (
                ("ClassCorrection", "ClassCorrections", "kClasses"),
                ("LowercaseCorrection", "LowercaseCorrections", "kLowercase"),
                ("CodePointRange", "OpaqueToCanonicalForms",
                 "kOpaqueToCanonicalForms"),
                ("CodePointRange", "OpaqueToCompatibilityForms",
                 "kOpaqueToCompatibilityForms"),
                ("CodePointRange", "GraphemeExtenders", "kExtenders")):
            f.write("absl::Span<const %s> %s() {\n  return %s;\n}\n" %
                    (kind, name, values))
        f.write("\n}  // namespace quire\n")
    with open(os.path.join(sys.argv[1], "unicode_scripts.cc"), "w") as f:
        f.write(HEADER % "unicode_scripts")
        f.write("// Where each class begins: code point << 8 | class.\n")
        f.write("constexpr uint32_t kBegins[] = {\n%s\n};\n\n" % table(
            "0x%X" % (first << 8 | script)
            for first, _, script in ranges(scripts())))
        f.write("}  // namespace\n\n")
        f.write("absl::Span<const uint32_t> ScriptBegins() { return kBegins; }")
        f.write("\n\n}  // namespace quire\n")


if __name__ == "__main__":
    main()
