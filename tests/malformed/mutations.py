"""Ways to spoil a file: of its bytes, and of what they mean.

``spoil(content, kind, rng)`` gives other bytes. ``rng`` is a ``random.Random``: a seeded one in
the nightly run, hypothesis's own in the tests, which then shrinks what fails.
"""

import gzip
import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BOMB_BYTES = 24 * 2**20
"""What a gzip bomb unpacks to: more than any file here, less than the bound on memory."""

TOKENS = (
    b"",
    b"\0",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\xf8\x88",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"-1",
    b"1" + b"0" * 18,
    b"9" * 400,
    b"9" * 5000,
    b"null",
    b"true",
    b"[]",
    b"{}",
    b'""',
    b'"',
    b"{",
    b"[" * 3000,
    b'{"a":' * 3000,
    b"../" * 7 + b"escape",
    b"/escape",
    b"\\ud800",
    b'"\\ud800"',
    b"PK\x03\x04",
    b"\x1f\x8b\x08",
    b"PAR1",
    b"GGUF",
    b"\x93NUMPY",
    b"\n",
    b"\r\n",
    b",",
    b":",
    b"'",
    b"\t",
    b"!!python/object/apply:os.system ['x']",
    b"&a [*a, *a]",
    b"*a",
    b"- ",
    b"#",
    b"<script>",
    b"%s%n",
    b"\xef\xbb\xbf",
    "\u2028\u202e".encode(),
)

VALUES = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    255,
    2**31,
    2**63,
    10**18,
    -(10**18),
    10**400,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    " ",
    "a",
    "0",
    "nan",
    "../../escape",
    "/escape",
    "a\0b",
    "\ud800",
    "x" * 3000,
    "<b>",
    [],
    {},
    [[]],
    [None],
    [0],
    [[[[1]]]],
    {"": None},
    {"a": {"b": []}},
    ["a", 1],
    "@deep@",
)
"""What a value becomes; the mark of the last one is replaced by deep nesting in the text."""

NUMBERS = (0, 1, 2, 3, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 10**18, 2**63 - 1, 2**63, 2**64 - 1)


def spoil(content: bytes, kind: str, rng: random.Random) -> bytes:
    """Other content: now and then by its bytes alone, else by what this kind of file says."""
    structured = STRUCTURED.get(kind)
    if structured is None or rng.random() < 0.4:
        return spoil_bytes(content, rng)
    return structured(content, rng)


def spoil_bytes(content: bytes, rng: random.Random) -> bytes:
    """One to three changes of the bytes."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content = rng.choice(BYTE_CHANGES)(content, rng)
    return content


def _place(content: bytes, rng: random.Random) -> int:
    """A place; half of them near the start, where the headers of binary files lie."""
    size = len(content)
    return rng.randrange(min(size, 256) + 1 if rng.random() < 0.5 else size + 1)


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: _place(content, rng)]


def _flip(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if changed:
            changed[min(_place(content, rng), len(changed) - 1)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _drop(content: bytes, rng: random.Random) -> bytes:
    start = _place(content, rng)
    return content[:start] + content[start + rng.choice((1, 4, 8, 60, 1000)) :]


def _double(content: bytes, rng: random.Random) -> bytes:
    start = _place(content, rng)
    stop = start + rng.choice((1, 8, 60, 1000, len(content)))
    return content[:stop] + content[start:]


def _splice(content: bytes, rng: random.Random) -> bytes:
    start, stop = sorted((_place(content, rng), _place(content, rng)))
    return content[stop:] + content[start:stop] + content[:start]


def _insert(content: bytes, rng: random.Random) -> bytes:
    start = _place(content, rng)
    return content[:start] + rng.choice(TOKENS) + content[start + rng.choice((0, 0, 1, 4)) :]


def _noise(content: bytes, rng: random.Random) -> bytes:
    start, n_bytes = _place(content, rng), rng.choice((1, 4, 16, 200))
    fill = rng.choice((b"\0" * n_bytes, b"\xff" * n_bytes, rng.randbytes(n_bytes)))
    return content[:start] + fill + content[start + n_bytes :]


def _number(content: bytes, rng: random.Random) -> bytes:
    start, form = _place(content, rng), rng.choice(("<Q", "<I", "<H"))
    size = struct.calcsize(form)
    value = rng.choice(NUMBERS) & (2 ** (8 * size) - 1)
    return content[:start] + struct.pack(form, value) + content[start + size :]


def _digit(content: bytes, rng: random.Random) -> bytes:
    """Another digit, or many more of them, in the place of one."""
    places = [place for place, byte in enumerate(content[:20_000]) if 48 <= byte <= 57]
    if not places:
        return _flip(content, rng)
    place = rng.choice(places)
    new = rng.choice((b"0", b"9", b"-1", b"1e400", b"0.5", b"9" * 20, b"true", b'"a"'))
    return content[:place] + new + content[place + 1 :]


def _repack(content: bytes, rng: random.Random) -> bytes:
    """Packed by gzip, spoilt and packed, or a bomb."""
    way = rng.randrange(8)
    if way == 0:
        return bomb()
    if way == 1:
        return gzip.compress(content, 1, mtime=0)
    if content.startswith(b"\x1f\x8b"):
        try:
            return gzip.compress(spoil_bytes(gzip.decompress(content), rng), 1, mtime=0)
        except (OSError, EOFError, zlib.error):
            return _flip(content, rng)
    return gzip.compress(_flip(content, rng), 1, mtime=0)[: rng.choice((None, -1, -9, 12))]


def _nothing(content: bytes, rng: random.Random) -> bytes:
    return rng.choice((b"", b"\n", b"\0", b" " * 100))


BYTE_CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _cut,
    _flip,
    _flip,
    _drop,
    _double,
    _splice,
    _insert,
    _insert,
    _noise,
    _number,
    _number,
    _digit,
    _repack,
    _nothing,
)


@cache
def bomb() -> bytes:
    """A small gzip file of many zeros."""
    return gzip.compress(bytes(BOMB_BYTES), 9, mtime=0)


def _places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to every value inside of a JSON value; of long lists, to the first entries only."""
    found = [above]
    if isinstance(value, dict):
        for key, inner in list(value.items())[:40]:
            found += _places(inner, (*above, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value[:4]):
            found += _places(inner, (*above, index))
    return found


def spoil_value(value: Any, rng: random.Random) -> Any:
    """A JSON value with one to three changes; the given one is changed too."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        *above, last = rng.choice(_places(value)) or (None,)
        if last is None:
            return deepcopy(rng.choice(VALUES)) if rng.random() < 0.3 else value
        holder = value
        for key in above:
            holder = holder[key]
        _change(holder, last, rng)
    return value


def _change(holder: Any, key: Any, rng: random.Random) -> None:
    way = rng.randrange(10)
    if way < 6:
        holder[key] = deepcopy(rng.choice(VALUES))
    elif way == 6:
        del holder[key]
    elif isinstance(holder, dict):
        other = rng.choice(list(holder)) if way == 7 else rng.choice(("x", "", "../escape", "a\0"))
        holder[other] = holder.pop(key) if way == 9 else holder[key]
    elif way == 7:
        holder.insert(key, holder[key])
    elif way == 8:
        holder.reverse()
    else:
        holder[:] = [holder[key]] * 50


def _text(value: Any, rng: random.Random) -> bytes:
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, None, 1)))
    deep = rng.choice((50, 900, 60_000))
    text = text.replace('"@deep@"', "[" * deep + "]" * deep)
    return text.encode("utf-8", "surrogatepass")


def spoil_json(content: bytes, rng: random.Random) -> bytes:
    """A JSON file with other values."""
    return _text(spoil_value(json.loads(content), rng), rng)


def spoil_lines(content: bytes, rng: random.Random) -> bytes:
    """JSON Lines with another value, or with lines in another order."""
    lines = content.split(b"\n")
    place = rng.randrange(max(1, len(lines) - 1))
    way = rng.randrange(6)
    if way < 4:
        try:
            lines[place] = _text(spoil_value(json.loads(lines[place]), rng), rng)
        except ValueError:
            lines[place] = b"{}"
    elif way == 4:
        lines.insert(place, lines[rng.randrange(len(lines))])
    else:
        rng.shuffle(lines)
    return b"\n".join(lines)


def spoil_packed_lines(content: bytes, rng: random.Random) -> bytes:
    """As :func:`spoil_lines`, inside of gzip."""
    return gzip.compress(spoil_lines(gzip.decompress(content), rng), 1, mtime=0)


def spoil_yaml(content: bytes, rng: random.Random) -> bytes:
    """YAML with another value, a tag, an anchor or a bomb of aliases."""
    import yaml

    way = rng.randrange(8)
    if way == 0:
        return _alias_bomb()
    if way == 1:
        tag = rng.choice(
            (
                b"!!python/name:os.system",
                b"!!binary x",
                b"!!set {a}",
                b"2020-99-99",
                b".nan",
                b"!!python/object/new:os.system [x]",
                b"!!timestamp x",
                b"{[1]: 2}",
                b"&a [*a]",
                b"? 1",
                b"{1: 2, a: 3}",
                b"1:30:99",
                b"0o9",
                b"0x",
                b"!!int x",
                b"!!float x",
                b"0b",
                b"!!bool x",
            )
        )
        lines = content.split(b"\n")
        place = rng.randrange(len(lines))
        lines[place] = lines[place].partition(b":")[0] + b": " + tag
        return b"\n".join(lines)
    value = spoil_value(yaml.safe_load(content), rng)
    return _text(value, rng)


@cache
def _alias_bomb() -> bytes:
    lines = [b"a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [b"a%d: &a%d [" % (n, n) + b", ".join([b"*a%d" % (n - 1)] * 9) + b"]" for n in range(1, 30)]
    return b"\n".join([*lines, b"name: *a29", b""])


def spoil_parquet(content: bytes, rng: random.Random) -> bytes:
    """A Parquet file with other columns, types, rows or metadata."""
    table = pq.read_table(pa.BufferReader(content))
    way = rng.randrange(8)
    names = table.column_names
    place = rng.randrange(len(names))
    if way == 0:
        table = table.drop_columns([names[place]])
    elif way == 1:
        table = table.rename_columns(
            [n if i != place else rng.choice(("x", "", names[0])) for i, n in enumerate(names)]
        )
    elif way == 2:
        kinds = (
            pa.nulls(len(table)),
            pa.array(["x"] * len(table)),
            pa.array([2**62] * len(table)),
            pa.array([float("nan")] * len(table)),
            pa.array([[1]] * len(table)),
            pa.array([b"\xff"] * len(table)),
            pa.array([{"a": 1}] * len(table)),
            pa.array(["\0/../x"] * len(table)).dictionary_encode(),
        )
        table = table.set_column(place, names[place], rng.choice(kinds))
    elif way == 3:
        table = rng.choice((table.slice(0, 0), table.slice(1), pa.concat_tables([table, table])))
    elif way == 4:
        values = table.column(place).to_pylist()
        table = table.set_column(
            place,
            names[place],
            pa.array([None, *values[1:]] if values else [], table.schema.field(place).type),
        )
    else:
        table = table.replace_schema_metadata(_other_metadata(table.schema.metadata or {}, rng))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression=rng.choice(("snappy", "zstd", "none")))
    return sink.getvalue()


def _other_metadata(metadata: dict[bytes, bytes], rng: random.Random) -> dict[bytes, bytes]:
    known = {name: value for name, value in metadata.items() if name != b"ARROW:schema"}
    if not known:
        return {b"x": b"\xff"}
    name = rng.choice(sorted(known))
    if rng.random() < 0.2:
        del known[name]
    elif rng.random() < 0.3:
        known[name] = spoil_bytes(known[name], rng)
    else:
        try:
            known[name] = spoil_json(known[name], rng)
        except ValueError:
            known[name] = b"{"
    return known


def spoil_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Safetensors with another header, or another length of it."""
    (size,) = struct.unpack("<Q", content[:8])
    header, data = content[8 : 8 + size], content[8 + size :]
    if rng.random() < 0.15:
        return struct.pack("<Q", rng.choice(NUMBERS)) + header + data
    header = spoil_json(header, rng)
    return struct.pack("<Q", len(header)) + header + data


def spoil_npz(content: bytes, rng: random.Random) -> bytes:
    """An ``.npz`` with other arrays, or with the header of an array that is far too large."""
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        arrays: dict[str, Any] = {name: file[name] for name in file.files}
    name = rng.choice(sorted(arrays))
    way = rng.randrange(6)
    if way == 0:
        del arrays[name]
    elif way == 1:
        arrays[name] = arrays[name].astype(
            rng.choice(("float32", "int8", "uint8", "bool", "U4", "complex64"))
        )
    elif way == 2:
        arrays[name] = arrays[name].reshape(-1)[: rng.randrange(5)]
    elif way == 3:
        arrays[name] = np.array([{"a": 1}], dtype=object)
    elif way == 4:
        arrays[name] = np.array(rng.choice((-1, 2**62, 0, float("nan"))))
    elif arrays[name].dtype == np.uint8:
        arrays[name] = np.frombuffer(spoil_json(arrays[name].tobytes(), rng), dtype=np.uint8)
    else:
        arrays[name] = arrays[name] * -1 - 3
    sink = io.BytesIO()
    np.savez(sink, **arrays)
    content = sink.getvalue()
    if rng.random() < 0.1:
        content = content.replace(b"(2,", b"(1000000000000,").replace(b"'shape': (", b"'shape': (9")
    return content


STRUCTURED: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "json": spoil_json,
    "lines": spoil_lines,
    "packed lines": spoil_packed_lines,
    "yaml": spoil_yaml,
    "parquet": spoil_parquet,
    "safetensors": spoil_safetensors,
    "npz": spoil_npz,
}
