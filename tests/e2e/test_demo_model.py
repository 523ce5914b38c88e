"""The demo model answers held-out prompts of its task types."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHATS_PER_TASK = 10
# The goal for all held-out chats. Of 50 per task the shipped model answers 95.4 %, of
# these 10 per task 96.6 %, the same on every instruction set.
LOWEST_SHARE = 0.95


def test_held_out_prompts(server):
    """A sample of what tools/demo_model/evaluate.py measures in full."""
    result = subprocess.run(
        [
            sys.executable,
            str(ROOT / "tools" / "demo_model" / "evaluate.py"),
            "--url",
            server.url,
            "--limit",
            str(CHATS_PER_TASK),
            "--min",
            str(LOWEST_SHARE),
        ],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_chat_stays_coherent(client):
    """What was said earlier in the conversation counts."""
    messages = []

    def say(text):
        messages.append({"role": "user", "content": text})
        answer = client.chat.completions.create(model="demo", messages=messages, temperature=0)
        messages.append({"role": "assistant", "content": answer.choices[0].message.content})
        return messages[-1]["content"]

    assert "Nora" in say("Hi, my name is Nora.")
    assert "9" in say("What is 4 + 5?")
    assert "Nora" in say("What is my name?")
