"""Key and value hashes: the published XXH64, the same for a column and for one string."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.windows.hashing import (
    BUCKETS,
    bucket_of,
    hash_column,
    hash_text,
    key_seed,
    xxh64,
)
from raypipe.windows.inputs import VALUE_SEED, key_hashes
from raypipe.windows.spec import WindowView, count

# Computed with xxHash 0.8.4, the reference implementation.
VECTORS = [
    (b"", 0, 0xEF46DB3751D8E999),
    (b"", 1, 0xD5AFBA1336A3BE4B),
    (b"", 2**64 - 1, 0x298F4C84B24F5380),
    (b"a", 0, 0xD24EC4F1A98C6E5B),
    (b"a", 2654435761, 0x393DA8B78992279B),
    (b"ab", 0, 0x65F708CA92D04A61),
    (b"abc", 0, 0x44BC2CF5AD770999),
    (b"abc", 2**64 - 1, 0x28306E589CC02176),
    (b"abcd", 0, 0xDE0327B0D25D92CC),
    (b"abcd", 1, 0xF5DCBD6DEE3C9553),
    (b"abcdefg", 0, 0x1860940E2902822D),
    (b"abcdefg", 2654435761, 0xEC472D1BCFBB2CBC),
    (b"abcdefgh", 0, 0x3AD351775B4634B7),
    (b"abcdefgh", 2**64 - 1, 0x6FEE11DCF9B727F3),
    (b"abcdefghijkl", 0, 0x4B09B7D3A233D4B3),
    (b"abcdefghijkl", 1, 0x864D2AA7E89BD8B),
    (b"abcdefghijklmnopqrstuvwxyzabcde", 0, 0xF7D421C242541AC9),
    (b"abcdefghijklmnopqrstuvwxyzabcdef", 0, 0x4DA6CBE536CF55C7),
    (b"abcdefghijklmnopqrstuvwxyzabcdef", 2**64 - 1, 0xFC8DF311298DBB33),
    (b"abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrst", 0, 0x334D192DC6AAA540),
    (b"abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrst", 2654435761, 0x19F513F12D04316),
    (bytes(range(256)), 0, 0x1FACBE8406CD904B),
    (bytes(range(256)), 2**64 - 1, 0x9FD2BFCEE8985E7F),
    ("größe €😀".encode(), 0, 0x362654F7217E2878),
]
KEY_SEED = 0xA5B255B5E7FC18F3
KEY_HASH = 4278481383110421832
WIDE_HASH = -8258007778997522210
STORED_VALUE_SEED = 0x63D702135EA991B7
SEEDS = st.integers(0, 2**64 - 1)
TEXTS = st.lists(st.one_of(st.none(), st.text(st.characters(codec="utf-8"), max_size=70)))


@pytest.mark.parametrize(("data", "seed", "expected"), VECTORS)
def test_published_vectors(data: bytes, seed: int, expected: int) -> None:
    assert xxh64(data, seed) == expected


def test_every_length_from_0_to_300() -> None:
    """Each hash seeds the next: one wrong length anywhere changes the last one."""
    pattern = bytes((i * 197 + 11) % 256 for i in range(300))
    seed = 0
    for n in range(301):
        seed = xxh64(pattern[:n], seed)
    assert seed == 0x92434E0C1EDFBB10


def test_stored_hashes_of_keys_stay_what_they_are() -> None:
    """Snapshots and key ranges on disk hold these numbers."""
    seed = key_seed("default", "card")
    assert seed == KEY_SEED
    assert hash_text("c-1", seed) == KEY_HASH
    assert hash_text("größe", seed) == WIDE_HASH
    assert VALUE_SEED == STORED_VALUE_SEED
    assert hash_column(pa.array(["c-1", None, "größe"]), seed).tolist() == [KEY_HASH, 0, WIDE_HASH]


def one_by_one(texts: list[str | None], seed: int) -> list[int]:
    return [hash_text(t, seed) for t in texts]


@given(TEXTS, SEEDS)
def test_a_column_hashes_as_its_strings_do(texts: list[str | None], seed: int) -> None:
    expected = one_by_one(texts, seed)
    for kind in (pa.string(), pa.large_string()):
        assert hash_column(pa.array(texts, kind), seed).tolist() == expected
    assert [h == 0 for h in expected] == [t is None for t in texts]


@given(TEXTS, SEEDS, st.data())
def test_slices_and_chunks_hash_as_the_whole_does(
    texts: list[str | None], seed: int, data: st.DataObject
) -> None:
    expected = one_by_one(texts, seed)
    column = pa.array(texts, pa.string())
    a, b = sorted(data.draw(st.tuples(*[st.integers(0, len(texts))] * 2)))
    assert hash_column(column.slice(a, b - a), seed).tolist() == expected[a:b]
    chunks = pa.chunked_array([column.slice(0, a), column.slice(a, b - a), column.slice(b)])
    assert hash_column(chunks, seed).tolist() == expected
    inner = max(0, b - a - 1)
    assert hash_column(chunks.slice(a, inner), seed).tolist() == expected[a : a + inner]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([], pa.string()),
        pa.array([None, None], pa.string()),
        pa.array([None, None], pa.null()),
        pa.array(["", "", None, ""]),
        pa.array(["b", "a", "b"]).dictionary_encode(),
        pa.chunked_array([], pa.string()),
        pa.chunked_array([pa.array([], pa.string()), pa.array(["x"])]),
        pa.array(["x" * 1_000, None]).slice(1),
        pa.array(["x", "ä", "日本語", "\U0001f600", "\x00", "e\u0301", "é"]),
    ],
    ids=lambda c: f"{c.type}-{len(c)}",
)
def test_odd_columns(column: pa.Array) -> None:
    expected = one_by_one(column.to_pylist(), 5)
    found = hash_column(column, 5)
    assert found.dtype == np.int64
    assert found.tolist() == expected


def test_no_hash_of_a_string_is_the_hash_of_a_missing_one() -> None:
    rng = np.random.default_rng(3)
    texts = [str(n) for n in rng.integers(0, 10**12, 50_000)]
    assert (hash_column(pa.array(texts), 0) != 0).all()
    assert len(np.unique(hash_column(pa.array(texts), 0))) == len(set(texts))


def test_tenants_and_entities_have_seeds_of_their_own() -> None:
    pairs = [("a", "bc"), ("ab", "c"), ("abc", ""), ("", "abc"), ("a", "b"), ("1:a", "bc")]
    pairs += [("1", ":abc"), ("12", "ab"), ("1", "2ab"), ("ä", "b"), ("a", "b\x00")]
    assert len({key_seed(t, e) for t, e in pairs}) == len(pairs)


@given(st.lists(st.tuples(st.sampled_from("tuv"), st.none() | st.text(max_size=3)), max_size=20))
def test_a_table_of_several_tenants_hashes_each_key_under_its_own(
    rows: list[tuple[str, str | None]],
) -> None:
    view = WindowView("v", "card", "pay", "card", (count(),))
    table = pa.table(
        {
            "tenant": pa.array([t for t, _ in rows], pa.string()),
            "card": pa.array([k for _, k in rows], pa.string()),
        }
    )
    expected = [hash_text(k, key_seed(t, "card")) for t, k in rows]
    assert key_hashes(view, table).tolist() == expected


def test_buckets_are_the_top_bits() -> None:
    edges = [0, 1, 2**54 - 1, 2**54, 2**63 - 1, -(2**63), -(2**54), -1]
    assert bucket_of(np.array(edges)).tolist() == [0, 0, 0, 1, 511, 512, 1_023, 1_023]


@pytest.mark.parametrize(
    "form", ["card-{:08d}", "{}", "{:x}", "00000000000000000000000000000000{}"]
)
def test_keys_spread_evenly_over_the_buckets(form: str) -> None:
    """Chi-square with 1,023 degrees of freedom: 1,023 +- 45 for an even spread; within 5 sigma."""
    n = 200_000
    column = pa.array([form.format(i) for i in range(n)])
    buckets = bucket_of(hash_column(column, key_seed("default", "card")))
    assert buckets.min() == 0
    assert buckets.max() == BUCKETS - 1
    found = np.bincount(buckets, minlength=BUCKETS)
    expected = n / BUCKETS
    chi = float(((found - expected) ** 2 / expected).sum())
    assert abs(chi - (BUCKETS - 1)) < 5 * (2 * (BUCKETS - 1)) ** 0.5
