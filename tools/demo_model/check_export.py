"""Loads an exported folder with transformers and shows greedy answers in float32 and bfloat16."""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import chat
import settings

QUESTIONS = ["Hello!", "What is 12 + 30?", "Sort these words: pear, apple, mango", "Repeat this text: x = a[3] + 7;",
             "Tell me a short story about a fox."]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=settings.DEMO_DIR)
    folder = parser.parse_args().folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        print(f"{dtype}, {model.num_parameters()} parameters")
        for question in QUESTIONS:
            messages = [{"role": "user", "content": question}]
            rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            assert rendered == chat.prompt(messages), "the template and chat.prompt differ"
            inputs = tokenizer(rendered, return_tensors="pt", add_special_tokens=False)
            output = model.generate(**inputs, do_sample=False, temperature=None, top_p=None, max_new_tokens=200)
            print(f"  {question!r}: {tokenizer.decode(output[0, inputs['input_ids'].shape[1]:], skip_special_tokens=True)!r}")


if __name__ == "__main__":
    main()
