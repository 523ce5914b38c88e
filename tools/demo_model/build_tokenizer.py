"""Trains the byte-level BPE tokenizer on generated chats and writes its files.

The pre-tokenizer splits off words, single digits, punctuation and white space before
BPE merges anything, so numbers are always sequences of digits. All 256 bytes are in
the vocabulary: any text can be encoded.
"""

import json
import random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import chat
import settings
import tasks

SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")
SAMPLE_CHATS = 60_000


def training_texts():
    """Chat contents, without the special tokens."""
    rng = random.Random("tokenizer")
    names = list(tasks.TASKS)
    weights = [tasks.TASKS[name].weight for name in names]
    for _ in range(SAMPLE_CHATS):
        for message in tasks.conversation(rng, names, weights):
            yield f"{message['role']}\n{message['content']}"


def build() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.VOCAB_SIZE, special_tokens=chat.SPECIAL_TOKENS, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(training_texts(), trainer)
    bos = tokenizer.token_to_id(chat.BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{chat.BOS} $A", pair=f"{chat.BOS} $A {chat.BOS} $B", special_tokens=[(chat.BOS, bos)])
    return tokenizer


def save(tokenizer: Tokenizer, folder) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): {
                "content": token, "lstrip": False, "normalized": False, "rstrip": False,
                "single_word": False, "special": True}
            for token in chat.SPECIAL_TOKENS},
        "bos_token": chat.BOS,
        "eos_token": chat.END,
        "pad_token": chat.END_OF_TEXT,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": settings.MAX_POSITIONS,
        "chat_template": chat.CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    built = build()
    assert built.get_vocab_size() == settings.VOCAB_SIZE
    for target in (settings.DEMO_DIR, settings.DRAFT_DIR):
        save(built, target)
    print(f"vocabulary of {built.get_vocab_size()} tokens written to {settings.DEMO_DIR}")
