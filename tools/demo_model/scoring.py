"""Held-out chats, their scores and the table of results (standard library only)."""

import checks
import tasks

MAX_REPLY_TOKENS = 400


class Chat:
    """One held-out sample in progress: the replies so far decide what is asked next."""

    def __init__(self, sample: tasks.Sample):
        self.sample = sample
        self.replies = []
        self.failure = None

    @property
    def finished(self) -> bool:
        return self.failure is not None or len(self.replies) == len(self.sample.turns)

    def messages(self) -> list:
        """The messages to send for the next turn, with the model's own earlier replies."""
        messages = [{"role": "system", "content": self.sample.system}] if self.sample.system else []
        for turn, reply in zip(self.sample.turns, self.replies):
            messages += [{"role": "user", "content": turn.user}, {"role": "assistant", "content": reply}]
        return messages + [{"role": "user", "content": self.sample.turns[len(self.replies)].user}]

    def take(self, reply: str) -> None:
        """Checks the reply to the next turn. A chat is right only if every turn of it is."""
        turn = self.sample.turns[len(self.replies)]
        if not checks.passes(turn.check, reply, self.replies):
            self.failure = (turn.user, turn.reply, reply)
        self.replies.append(reply)


def held_out_chats(limit: int, only: list | None = None, seed: int = 2024) -> list:
    """Up to `limit` held-out chats of each task."""
    return [Chat(sample) for name in (only or tasks.TASKS)
            for sample in tasks.held_out_samples(name, limit, seed)]


def report(chats: list, show_failures: int = 0) -> float:
    """Prints one line per task and the total; returns the share of right chats."""
    print(f"{'task':<20} {'right':>6} {'of':>6} {'share':>8}")
    by_task = {}
    for one in chats:
        by_task.setdefault(one.sample.task, []).append(one)
    for name, group in by_task.items():
        right = sum(one.failure is None for one in group)
        print(f"{name:<20} {right:>6} {len(group):>6} {right / len(group):>8.1%}")
        for one in [one for one in group if one.failure][:show_failures]:
            asked, wanted, got = one.failure
            print(f"    asked  {asked!r}\n    wanted {wanted!r}\n    got    {got!r}")
    right = sum(one.failure is None for one in chats)
    share = right / len(chats)
    print(f"{'total':<20} {right:>6} {len(chats):>6} {share:>8.1%}")
    return share
