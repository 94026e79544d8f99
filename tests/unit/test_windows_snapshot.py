"""Snapshots on disk: what was saved is loaded, and what was touched is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raypipe.errors import IntegrityError
from raypipe.lake import Place
from raypipe.windows import snapshot
from raypipe.windows.engine import WindowEngine
from raypipe.windows.spec import WindowView, count, distinct, since_last, std
from tests import snapshot_kit

VIEWS = (
    WindowView("card", "card", "pay", "card", (count(), std("amount"), since_last())),
    WindowView("shop", "shop", "pay", "shop", (distinct("card"),)),
)
DEFINITION = "d" * 64
OTHER = "e" * 64


def engine(events: int = 40) -> WindowEngine:
    out = WindowEngine(VIEWS, "pay")
    for i in range(events):
        out.observe("pay", pay(i), i)
    return out


def pay(i: int) -> dict[str, object]:
    return {
        "tenant": "t",
        "event_time": 1_780_000_000_000 + i * 1_700,
        "card": f"c{i % 7}",
        "shop": None if i % 5 == 0 else f"s{i % 3}",
        "amount": i * i,
    }


def saved(tmp_path: Path, events: int = 40) -> Path:
    snapshot_kit.save(Place.at(tmp_path / "snap"), engine(events).snapshot(), events, DEFINITION)
    return tmp_path / "snap"


def load(directory: Path, definition: str = DEFINITION) -> tuple[int, list[pa.Table]]:
    offset, tables = snapshot.load(Place.at(directory), definition)
    return offset, list(tables)


@pytest.mark.parametrize("events", [0, 1, 40])
def test_a_state_comes_back_with_its_offset(tmp_path: Path, events: int) -> None:
    offset, tables = load(saved(tmp_path, events))
    assert offset == events
    restored, original = WindowEngine(VIEWS, "pay"), engine(events)
    restored.restore(tables)
    assert restored.keys == original.keys
    for a, b in zip(restored.snapshot(), original.snapshot(), strict=True):
        assert a.equals(b, check_metadata=True)
    assert restored.observe("pay", pay(events), events) == original.observe(
        "pay", pay(events), events
    )


def test_equal_states_are_equal_bytes_on_disk(tmp_path: Path) -> None:
    a, b = saved(tmp_path / "a"), saved(tmp_path / "b")
    files = sorted(p.relative_to(a) for p in a.rglob("*") if p.is_file())
    assert [str(f) for f in files] == [
        "card/part-0000.arrow",
        "shop/part-0000.arrow",
        "snapshot.json",
    ]
    assert all((a / f).read_bytes() == (b / f).read_bytes() for f in files)


def test_parts_of_a_partitioned_state_add_up(tmp_path: Path) -> None:
    whole = engine()
    folder, files = Place.at(tmp_path / "snap"), {}
    for table, view in zip(whole.snapshot(), VIEWS, strict=True):
        for part in range(3):
            name = f"{view.name}/part-{part:04d}.arrow"
            mine = table.filter(pa.array(np.arange(table.num_rows) % 3 == part))
            files[name] = (folder / name).write(snapshot.part_bytes(mine))
    snapshot.seal(folder, 40, DEFINITION, files)
    merged = WindowEngine(VIEWS, "pay")
    merged.restore(load(tmp_path / "snap")[1])
    for a, b in zip(merged.snapshot(), whole.snapshot(), strict=True):
        assert a.equals(b, check_metadata=True)


def test_another_definition_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="another declaration") as e:
        load(saved(tmp_path), OTHER)
    assert "raypipe features" in e.value.hint


def _manifest(directory: Path, change: Callable[[dict], object]) -> None:
    path = directory / snapshot.MANIFEST
    manifest = json.loads(path.read_text())
    changed = change(manifest)
    path.write_text(json.dumps(manifest if changed is None else changed))


def _part(directory: Path) -> Path:
    return directory / "card" / "part-0000.arrow"


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no folder": lambda d: d.rename(d.with_name("away")),
    "no manifest": lambda d: (d / snapshot.MANIFEST).unlink(),
    "empty manifest": lambda d: (d / snapshot.MANIFEST).write_bytes(b""),
    "torn manifest": lambda d: (d / snapshot.MANIFEST).write_bytes(
        (d / snapshot.MANIFEST).read_bytes()[:-20]
    ),
    "zeros for a manifest": lambda d: (d / snapshot.MANIFEST).write_bytes(bytes(300)),
    "no text": lambda d: (d / snapshot.MANIFEST).write_bytes(b"\xff\xfe{}"),
    "manifest is a folder": lambda d: (
        (d / snapshot.MANIFEST).unlink(),
        (d / snapshot.MANIFEST).mkdir(),
    ),
    "manifest is a list": lambda d: _manifest(d, lambda m: [m]),
    "manifest is a number": lambda d: _manifest(d, lambda _: 7),
    "manifest is null": lambda d: (d / snapshot.MANIFEST).write_text("null"),
    "manifest is {}": lambda d: _manifest(d, lambda _: {}),
    "no offset": lambda d: _manifest(d, lambda m: {k: v for k, v in m.items() if k != "offset"}),
    "no files": lambda d: _manifest(d, lambda m: {k: v for k, v in m.items() if k != "files"}),
    "files is a list": lambda d: _manifest(d, lambda m: m | {"files": list(m["files"])}),
    "files is null": lambda d: _manifest(d, lambda m: m | {"files": None}),
    "a hash is null": lambda d: _manifest(
        d, lambda m: m | {"files": dict.fromkeys(m["files"], None)}
    ),
    "a part is missing": lambda d: _part(d).unlink(),
    "a part is empty": lambda d: _part(d).write_bytes(b""),
    "a part is torn": lambda d: _part(d).write_bytes(_part(d).read_bytes()[:-1]),
    "a part is longer": lambda d: _part(d).write_bytes(_part(d).read_bytes() + b"\0"),
    "first bit of a part": lambda d: _flip(_part(d), 0),
    "middle bit of a part": lambda d: _flip(_part(d), _part(d).stat().st_size // 2),
    "last bit of a part": lambda d: _flip(_part(d), -1),
    "parts change places": lambda d: (
        _part(d).rename(d / "x"),
        (d / "shop" / "part-0000.arrow").rename(_part(d)),
        (d / "x").rename(d / "shop" / "part-0000.arrow"),
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused(tmp_path: Path, damage: str) -> None:
    directory = saved(tmp_path)
    DAMAGE[damage](directory)
    with pytest.raises(IntegrityError, match="snapshot"):
        load(directory)


@pytest.mark.parametrize("at", range(0, 4_000, 97))
def test_no_flipped_bit_goes_unseen(tmp_path: Path, at: int) -> None:
    directory = saved(tmp_path)
    _flip(_part(directory), at % _part(directory).stat().st_size)
    with pytest.raises(IntegrityError):
        load(directory)


def test_an_unsealed_folder_is_no_snapshot(tmp_path: Path) -> None:
    part = Place.at(tmp_path / "snap" / "card" / "part-0000.arrow")
    part.write(snapshot.part_bytes(engine().snapshot()[0]))
    with pytest.raises(IntegrityError, match="no readable manifest"):
        load(tmp_path / "snap")


def test_a_part_that_is_not_sealed_does_not_count(tmp_path: Path) -> None:
    directory = saved(tmp_path)
    (directory / "card" / "part-0001.arrow").write_bytes(b"of a task that was given up")
    assert len(load(directory)[1]) == len(VIEWS)


def test_a_part_outside_the_folder_is_refused(tmp_path: Path) -> None:
    directory = saved(tmp_path)
    _manifest(directory, lambda m: m | {"files": {"../x.arrow": "0" * 64}})
    with pytest.raises(IntegrityError, match="manifest"):
        load(directory)


def test_a_part_that_is_written_again_replaces_the_first(tmp_path: Path) -> None:
    folder = Place.at(tmp_path)
    for events in (40, 3):
        sha256 = (folder / "part-0000.arrow").write(
            snapshot.part_bytes(engine(events).snapshot()[0])
        )
    assert [p.name for p in tmp_path.iterdir()] == ["part-0000.arrow"]
    snapshot.seal(folder, 3, DEFINITION, {"part-0000.arrow": sha256})
    (table,) = load(tmp_path)[1]
    assert table.equals(engine(3).snapshot()[0], check_metadata=True)
