"""The oracle of the random numbers, in Python's integers. Imports only NumPy.

A word is the index mixed with the key three times over: shift, multiply, cut to 32 bits; the key comes in before the
first and after the first multiplication. A key is what eight such words make of a seed, a step, a place and a column,
each 64 bits long but for the last, lower half first.

A word that rounds is made in the same way, with two factors of its own. Its lower half rounds one element, its upper
half the next.
"""

from __future__ import annotations

import numpy as np

WORD = 2**32
MIXING = ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 0x9E3779B1))  # shifts, and MurmurHash3's factors with a third
LAST_SHIFT = 15
MIXING_TO_ROUND = ((16, 0x21F0AAAD), (15, 0xD35A2D97))  # Wellons 2018


def random_word(key: int, index: int, mixing: tuple[tuple[int, int], ...] = MIXING) -> int:
    """Return 32 random bits."""
    word = index % WORD ^ key
    for turn, (shift, factor) in enumerate(mixing):
        word = (word ^ word >> shift) * factor % WORD
        if turn == 0:
            word = (word + key) % WORD
    return word ^ word >> LAST_SHIFT


def stream_key(seed: int, step: int, place: int, column: int) -> int:
    """Return the key of the stream that belongs to one array in one step."""
    key = 0
    for number in (seed, step, place):
        key = random_word(key_of_half(number, 0), key)
        key = random_word(key_of_half(number, 1), key)
    return random_word(column, key)


def key_of_half(number: int, half: int) -> int:
    """Return the lower or the upper 32 bits of a number."""
    return number >> 32 * half & WORD - 1


def rounding_bits(key: int, count: int, first: int = 0) -> np.ndarray:
    """Return the 16 bits, as uint32, that round each of so many elements of an array, from an element on."""
    words = [random_word(key, index // 2, MIXING_TO_ROUND) for index in range(first, first + count)]
    halves = [word >> 16 if index % 2 else word % 2**16 for index, word in enumerate(words, first)]
    return np.array(halves, np.uint32)
