"""The chat format: special tokens, the Jinja template, and the same rendering in Python."""

BOS = "<|bos|>"
START = "<|im_start|>"
END = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"
SPECIAL_TOKENS = [END_OF_TEXT, BOS, START, END]

CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{- raise_exception('Unknown role: ' ~ message['role']) }}"
    "{%- endif %}"
    "{{- '<|im_start|>' ~ message['role'] ~ '\\n' ~ (message['content'] | trim) ~ '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- endif %}"
)


def segments(messages: list) -> list:
    """The chat as (text, is_reply) pieces; replies include the token that ends them."""
    pieces = [(BOS, False)]
    for message in messages:
        content = message["content"].strip()
        if message["role"] == "assistant":
            pieces += [(f"{START}assistant\n", False), (content + END, True), ("\n", False)]
        else:
            pieces.append((f"{START}{message['role']}\n{content}{END}\n", False))
    return pieces


def prompt(messages: list) -> str:
    """The text the model continues with its next reply (what the template renders)."""
    return "".join(text for text, _ in segments(messages)) + f"{START}assistant\n"
