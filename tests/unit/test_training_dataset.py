"""The training table: values, labels, zip by offset, leaks, bytes on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypipe.clock import DAY_MS
from raypipe.errors import DeclarationError, IntegrityError, LeakageError, NotFound, StageError
from raypipe.lake import Place
from tests.unit.training_kit import (
    HORIZON_MS,
    PROJECT,
    PURCHASE,
    START_MS,
    TENANT,
    World,
    dataset,
    reseal,
    values_file,
    world,
)
from training.dataset import Dataset, build
from training.leakage import check_no_leak


def build_from(w: World, home: Path, as_of_ms: int | None = None) -> Dataset:
    w.write(home)
    return build(PROJECT, Place.at(home), model="fraud", as_of_ms=as_of_ms)


def change(features: Path, how: Callable[[dict[str, Any]], object]) -> None:
    path = features.parent / "manifest.json"
    manifest = json.loads(path.read_text())
    how(manifest)
    path.write_text(json.dumps(manifest))


def late(w: World) -> int:
    """A moment at which every purchase has its label."""
    return int(w.event_time.max()) + HORIZON_MS


def test_every_value_is_that_of_its_own_event(tmp_path: Path) -> None:
    w = world(200)
    data = build_from(w, tmp_path, late(w))
    assert data.names == PROJECT.model("fraud").features
    assert data.x.dtype == np.float32
    assert data.offsets.tolist() == w.offsets.tolist()
    choices = PURCHASE.field("channel").choices
    for i in range(len(w)):
        seconds = (int(w.event_time[i]) % DAY_MS) / 1000
        amount, channel = w.columns["amount"][i], w.columns["channel"][i]
        average = w.windows["buyer_amount_mean_1d"][i]
        expected = [
            seconds / 3600,
            np.nan if channel is None else choices.index(channel),
            w.windows["shop_count_1d"][i],
            amount,
            amount / average if average > 0 else 0,
            w.windows["risk_count_1d"][i],
        ]
        np.testing.assert_allclose(data.x[i], np.array(expected, np.float32), rtol=1e-6)


def test_positive_is_exactly_what_a_label_event_names(tmp_path: Path) -> None:
    w = world(200)
    data = build_from(w, tmp_path, late(w))
    positive = {int(p[1:]) for p in w.dispute_of}
    assert np.flatnonzero(data.y).tolist() == sorted(positive)
    assert data.positives == len(positive) > 0


@pytest.mark.parametrize(("delay_ms", "expected"), [(0, 1), (HORIZON_MS, 1), (HORIZON_MS + 1, 0)])
def test_a_label_counts_up_to_the_horizon_and_not_a_millisecond_longer(
    tmp_path: Path, delay_ms: int, expected: int
) -> None:
    w = world(50)
    w.dispute_of, w.dispute_time = ["p7"], [int(w.event_time[7]) + delay_ms]
    assert build_from(w, tmp_path, late(w) + DAY_MS).y.tolist() == [
        expected if i == 7 else 0 for i in range(50)
    ]


def test_the_earliest_of_several_label_events_decides(tmp_path: Path) -> None:
    w = world(50)
    time = int(w.event_time[7])
    w.dispute_of = ["p7", "p7", "p7", "elsewhere"]
    w.dispute_time = [time + HORIZON_MS + 1, time + HORIZON_MS, time + 9 * DAY_MS, time]
    assert build_from(w, tmp_path, late(w) + 9 * DAY_MS).y.sum() == 1


def test_what_happened_after_as_of_is_not_known(tmp_path: Path) -> None:
    w = world(50)
    time = int(w.event_time[7])
    w.dispute_of, w.dispute_time = ["p7", "p8"], [time + HORIZON_MS, time + HORIZON_MS + 1]
    data = build_from(w, tmp_path, time + HORIZON_MS)
    assert data.y.tolist() == [0] * 7 + [1]


def test_rows_younger_than_the_horizon_are_left_out(tmp_path: Path) -> None:
    w = world(50)
    limit = int(w.event_time[30])
    data = build_from(w, tmp_path, limit + HORIZON_MS)
    assert len(data) == 31
    assert data.event_time.max() == limit
    assert len(build_from(w, tmp_path, limit + HORIZON_MS - 1)) == 30


def test_as_of_is_the_newest_event_by_default(tmp_path: Path) -> None:
    w = world(900)
    w.dispute_of, w.dispute_time = ["p1"], [int(w.event_time[-1]) + 12_345]
    data = build_from(w, tmp_path)
    assert data.origin.as_of_ms == int(w.event_time[-1]) + 12_345
    assert data.event_time.max() <= data.origin.as_of_ms - HORIZON_MS


def test_no_labelled_row_is_an_error_that_says_so(tmp_path: Path) -> None:
    w = world(50)
    with pytest.raises(StageError, match="older than the label horizon"):
        build_from(w, tmp_path, int(w.event_time[0]))


def test_other_tenants_and_events_after_the_features_do_not_count(tmp_path: Path) -> None:
    w = world(60)
    w.tenants = [TENANT if i % 2 else "other" for i in range(60)]
    w.dispute_of, w.dispute_time = ["p1", "p3"], [START_MS + DAY_MS] * 2
    w.dispute_tenant = [TENANT, "other"]
    features = w.write(tmp_path)
    newer = tmp_path / "export" / "newer.parquet"
    table = pq.read_table(tmp_path / "export" / "purchase-0.parquet").slice(0, 1)
    pq.write_table(table.set_column(0, "offset", pa.array([w.end])), newer)
    newest = ["export/newer.parquet", w.end, w.end + 1, 1, 0]
    change(features, lambda m: m["events"]["purchase"].append(newest))
    data = build(PROJECT, Place.at(tmp_path), model="fraud", as_of_ms=late(w))
    assert data.offsets.tolist() == w.offsets[1::2].tolist()
    assert data.y.tolist() == [1] + [0] * 29


def test_a_log_without_label_events_gives_only_negatives(tmp_path: Path) -> None:
    w = world(60)
    features = w.write(tmp_path)
    change(features, lambda m: m["events"].pop("dispute"))
    data = build(PROJECT, Place.at(tmp_path), model="fraud", as_of_ms=late(w))
    assert data.positives == 0


def test_an_optional_column_that_older_files_lack_is_missing_there(tmp_path: Path) -> None:
    w = world(60)
    w.write(tmp_path)
    old = tmp_path / "export" / "purchase-0.parquet"
    pq.write_table(pq.read_table(old).drop_columns(["channel"]), old)
    data = build(PROJECT, Place.at(tmp_path), model="fraud", as_of_ms=late(w))
    column = data.x[:, data.names.index("channel")]
    assert np.isnan(column[:30]).all()
    assert not np.isnan(column[30:]).all()


@pytest.mark.parametrize("view", ["buyer", "shop"])
def test_tables_about_other_events_are_not_zipped(tmp_path: Path, view: str) -> None:
    w = world(60)
    features = w.write(tmp_path)
    path = values_file(features, view, 1)
    pq.write_table(pq.read_table(path).slice(1), path)
    reseal(features)
    with pytest.raises(IntegrityError, match=f"'{view}'.*1 without features.*offset") as e:
        build(PROJECT, Place.at(tmp_path), model="fraud", as_of_ms=late(w))
    assert str(w.offsets[1]) in e.value.detail


def test_an_offset_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    w = world(60)
    features = w.write(tmp_path)
    path = values_file(features, "shop", 1)
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table, table.slice(3, 1)]), path)
    reseal(features)
    with pytest.raises(IntegrityError, match=f"offset {w.offsets[10]} occurs more than once"):
        build(PROJECT, Place.at(tmp_path), model="fraud", as_of_ms=late(w))


def test_a_changed_feature_file_is_refused(tmp_path: Path) -> None:
    features = world(60).write(tmp_path)
    path = values_file(features, "shop", 2)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"part-0002\.parquet has sha256"):
        build(PROJECT, Place.at(tmp_path), model="fraud")


def test_features_of_other_declarations_are_refused(tmp_path: Path) -> None:
    features = world(60).write(tmp_path)
    change(features, lambda m: m.update(definition_hash="f" * 64))
    with pytest.raises(IntegrityError, match="made by other declarations"):
        build(PROJECT, Place.at(tmp_path), model="fraud")


def test_absent_features_say_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="raypipe features"):
        build(PROJECT, Place.at(tmp_path), model="fraud")


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("view", ["buyer", "risk", "shop"])
def test_a_view_that_saw_its_own_event_is_refused_with_its_name(
    tmp_path: Path, view: str, ahead: int
) -> None:
    w = world(60)
    w.newest[view] = w.newest[view].copy()
    w.newest[view][41] = w.offsets[41] + ahead
    with pytest.raises(LeakageError, match=f"view '{view}'") as e:
        build_from(w, tmp_path, late(w))
    assert f"1 of 60 rows; first: the event at offset {w.offsets[41]}" in e.value.detail
    for other in {"buyer", "risk", "shop"} - {view}:
        assert f"view '{other}'" not in e.value.detail


def test_the_event_right_before_is_no_leak(tmp_path: Path) -> None:
    w = world(60)
    w.newest = dict.fromkeys(w.newest, w.offsets - 1)
    assert len(build_from(w, tmp_path, late(w))) == 60


def test_all_leaking_columns_are_named_at_once() -> None:
    offsets = np.array([4, 5, 9])
    with pytest.raises(LeakageError) as e:
        check_no_leak(
            offsets,
            {"a": np.array([3, 4, 8]), "b": np.array([3, 5, 9]), "c": np.array([7, -1, -1])},
        )
    assert "b (2 of 3 rows" in e.value.detail
    assert "c (1 of 3 rows" in e.value.detail
    assert "a (" not in e.value.detail


def test_a_planted_future_feature_is_refused_with_its_name() -> None:
    data = dataset(500)
    future = np.append(data.y[1:], 0).astype(np.float32)
    next_event = np.append(data.offsets[1:], data.offsets[-1])
    with pytest.raises(LeakageError, match="next_label"):
        data.add_column("next_label", future, next_event)


def test_a_column_from_the_past_is_added_at_the_end() -> None:
    data = dataset(500)
    before = np.append([0], data.y[:-1]).astype(np.float64)
    more = data.add_column("last_label", before, data.offsets - 2)
    assert more.names == (*data.names, "last_label")
    assert more.x[:, -1].tolist() == before.tolist()
    assert more.fingerprint() != data.fingerprint()
    with pytest.raises(DeclarationError, match="already has"):
        more.add_column("last_label", before, data.offsets - 2)
    with pytest.raises(DeclarationError, match="3 values for 500 rows"):
        data.add_column("short", before[:3], data.offsets - 2)
    with pytest.raises(LeakageError, match="prove nothing"):
        data.add_column("unproven", before, data.offsets[:3] - 2)


def test_a_value_that_is_not_finite_is_missing(tmp_path: Path) -> None:
    w = world(60)
    w.windows["shop_count_1d"][5] = np.inf
    data = build_from(w, tmp_path, late(w))
    column = data.x[:, data.names.index("shop_count_1d")]
    assert np.flatnonzero(np.isnan(column)).tolist() == [5]
    assert not np.isinf(data.x).any()


def test_key_codes_tell_keys_apart_without_their_text(tmp_path: Path) -> None:
    w = world(60)
    data = build_from(w, tmp_path, late(w))
    for key in ("buyer_id", "shop_id"):
        text, codes = w.columns[key], data.keys[key]
        assert all((c == -1) == (t is None) for c, t in zip(codes, text, strict=True))
        pairs = set(zip(text, codes.tolist(), strict=True))
        assert len(pairs) == len(set(text)) == len({c for _, c in pairs})


def test_a_saved_dataset_comes_back_equal(tmp_path: Path) -> None:
    data = dataset(500)
    fingerprint = data.save(Place.at(tmp_path / "d"))
    back = Dataset.load(Place.at(tmp_path / "d"))
    assert not back.x.flags.owndata, "mapped, not read"
    assert back.fingerprint() == fingerprint == data.fingerprint()
    assert (back.names, back.origin) == (data.names, data.origin)
    assert back.x.tobytes() == data.x.tobytes()
    assert back.event_time.tolist() == data.event_time.tolist()
    assert back.keys["buyer_id"].tolist() == data.keys["buyer_id"].tolist()


@pytest.mark.parametrize("file", ["x.npy", "y.npy", "offsets.npy"])
def test_a_changed_dataset_file_is_refused(tmp_path: Path, file: str) -> None:
    dataset(500).save(Place.at(tmp_path / "d"))
    path = tmp_path / "d" / file
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(IntegrityError, match="not what was written"):
        Dataset.load(Place.at(tmp_path / "d"))


def test_fingerprint_depends_on_values_labels_offsets_and_names() -> None:
    data = dataset(100)
    other = dataset(100)
    assert data.fingerprint() == other.fingerprint()
    other.x[50, 3] = np.nextafter(other.x[50, 3], np.float32(9))
    assert data.fingerprint() != other.fingerprint()
    other = dataset(100)
    other.y[7] ^= 1
    assert data.fingerprint() != other.fingerprint()
    other = dataset(100)
    other.offsets[7] += 1
    assert data.fingerprint() != other.fingerprint()
