"""Random numbers from a key and a counter: the published generator, the same on every machine."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gossamer.encoding.random import key_of, uniform_bits

WORD = (1 << 64) - 1


def splitmix(state: int, count: int) -> list[int]:
    """The generator as published, one word after the other, on Python's integers."""
    words = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & WORD
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
        words.append(z ^ (z >> 31))
    return words


def test_the_first_words_of_key_zero_are_the_published_ones() -> None:
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert uniform_bits(0, 3).tolist() == expected == splitmix(0, 3)


@given(st.integers(0, WORD), st.integers(0, 20))
def test_words_are_those_of_the_sequential_generator(key: int, count: int) -> None:
    assert uniform_bits(key, count).tolist() == splitmix(key, count)


def test_keys_tell_seeds_names_and_their_borders_apart() -> None:
    keys = [
        key_of(s, *n) for s in (0, 1, -1) for n in ((), ("a",), ("b",), ("a", "bc"), ("ab", "c"), ("abc",), ("a", 1))
    ]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key <= WORD for key in keys)
    assert key_of(WORD + 2, "a") == key_of(1, "a")


def test_keys_stay_what_they_are_in_files_that_exist() -> None:
    assert key_of(0, "fc1.weight", 1) == 15386027558222873744
