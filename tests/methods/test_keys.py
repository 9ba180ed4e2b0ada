"""The queue of a method's own keys: in order, round and round, and the same on every process."""

import pytest
import torch
from ranks import in_ranks

from kdcache.distributed import rank, world_size
from kdcache.methods._keys import KeyQueue


def keys_from(start: int, count: int) -> torch.Tensor:
    """Rows of two numbers that say which key they are."""
    return torch.arange(start, start + count)[:, None].float() + torch.tensor([[0.0, 0.5]])


def held_by(queue: KeyQueue) -> list[int]:
    return sorted(int(row[0]) for row in queue.filled)


def push(queue: KeyQueue, keys: torch.Tensor) -> None:
    queue.hold(keys)
    queue.advance()


@pytest.mark.parametrize("length", [1, 5, 6, 7, 20])
def test_last_keys_are_held_whatever_batch_and_length(length):
    queue, so_far = KeyQueue(length, 2), 0
    assert queue.filled.shape == (0, 2)
    for count in (6, 6, 1, 3, 6, 2):
        push(queue, keys_from(so_far, count))
        so_far += count
        assert held_by(queue) == list(range(so_far))[-length:]


def test_keys_of_all_parts_of_a_batch_wait_until_the_step_is_over():
    queue = KeyQueue(8, 2)
    push(queue, keys_from(0, 4))
    queue.hold(keys_from(4, 1))
    queue.hold(keys_from(5, 1).requires_grad_())
    assert held_by(queue) == [0, 1, 2, 3]
    queue.advance()
    assert held_by(queue) == [0, 1, 2, 3, 4, 5]
    assert not queue.filled.requires_grad


def test_position_goes_through_a_checkpoint(tmp_path):
    queue, other = KeyQueue(5, 2), KeyQueue(5, 2)
    push(queue, keys_from(0, 3))
    torch.save(queue.state_dict(), tmp_path / "queue.pt")
    other.load_state_dict(torch.load(tmp_path / "queue.pt", weights_only=True))
    for mine in (queue, other):
        push(mine, keys_from(3, 4))
    assert torch.equal(queue.rows, other.rows)
    assert held_by(other) == [2, 3, 4, 5, 6]


def three_steps() -> torch.Tensor:
    """The queue after three batches of six, of which this process holds its part."""
    queue = KeyQueue(10, 2)
    for step in range(3):
        push(queue, keys_from(6 * step, 6).chunk(world_size())[rank()])
    return queue.rows


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes_hold_the_whole_batch_in_the_order_of_one(tmp_path):
    alone = three_steps()
    for rows in in_ranks(2, three_steps, out=tmp_path):
        assert torch.equal(rows, alone)
