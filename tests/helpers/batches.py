"""A server that is sent what gates owe, without Redis: the one place in tests that knows how a batch is written."""

from __future__ import annotations

from collections import Counter

from sluice_sidecar.stores.shared.owed import Batch, Owed


class Server:
    """Adds up what batches say, each of them once. Windows do not slide here."""

    def __init__(self) -> None:
        self.last = 0
        self.counts: Counter[tuple[str, str, int, int]] = Counter()
        self.ended: Counter[str] = Counter()
        self.alive: Counter[str] = Counter()

    def carry_out(self, batch: Batch) -> None:
        if batch.number <= self.last:
            return
        self.last = batch.number
        words = iter(batch.args)
        for at in range(0, len(batch.keys), 3):
            name = batch.keys[at].decode().rsplit(":", 1)[1]
            self.ended.update(str(next(words)) for _ in range(_number(next(words))))
            self.alive.update(str(next(words)) for _ in range(_number(next(words))))
            for _ in range(_number(next(words))):
                code = next(words)
                assert isinstance(code, bytes)
                for _ in range(_number(next(words))):
                    slot = _number(next(words))
                    for amount in range(2):
                        self.counts[name, code.decode(), slot, amount] += _number(next(words))
        assert next(words, None) is None

    def settle(self, owed: Owed) -> int:
        """Be sent everything; returns the number of batches."""
        batches = 0
        while (batch := owed.next_batch(self.last)) is not None:
            self.carry_out(batch)
            owed.acknowledged()
            batches += 1
        return batches

    def total(self, name: str, code: str, amount: int) -> int:
        return sum(
            count for (of, named, _, which), count in self.counts.items() if (of, named, which) == (name, code, amount)
        )


def _number(word: object) -> int:
    assert isinstance(word, int)
    return word
