"use strict";
// Numbers come as base64. Weights are decoded a head at a time, when it is looked at.

const NO_KEY = 65535;
const NO_MEAN = 65535;
const MEAN_STEPS = 65534;
const N_SINKS = 4;

function bytesOf(text) {
  if (typeof Uint8Array.fromBase64 === "function") return Uint8Array.fromBase64(text);
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let place = 0; place < raw.length; place++) bytes[place] = raw.charCodeAt(place);
  return bytes;
}

function floatsOf(text) {
  return new Float32Array(bytesOf(text).buffer);
}

// The number of each 16-bit pattern, in the format that the store keeps weights in.
function weightTable(format) {
  const table = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    table[bits] = format === "fixed16" ? bits / 65535 : halfOf(bits);
  }
  return table;
}

function halfOf(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

// One head: what heads.py packs.
function decodeHead(text, { nRows, nEdges, nSpans, nPieces, rowStart, table, isWhole }) {
  const buffer = bytesOf(text).buffer;
  let place = 4 * nRows;
  const shorts = (count) => {
    const found = new Uint16Array(buffer, place, count);
    place += 2 * count;
    return found;
  };
  const weights = (count) => {
    const bits = shorts(count);
    const found = new Float32Array(count);
    for (let index = 0; index < count; index++) found[index] = table[bits[index]];
    return found;
  };
  return {
    rowStart, nRows, nEdges, nSpans, nPieces, isWhole,
    rest: new Float32Array(buffer, 0, nRows),
    sinks: weights(nRows * N_SINKS),
    own: weights(nRows),
    keys: shorts(nRows * nEdges),
    weights: weights(nRows * nEdges),
    spans: shorts(3 * nSpans * nSpans),
    pieces: shorts(3 * nPieces * nPieces),
  };
}

// Means of one group on another, as rows of numbers; null where there is none.
function meansOf(steps, size, variant) {
  return Array.from({ length: size }, (_, row) =>
    Array.from({ length: size }, (_, column) => {
      const found = steps[(variant * size + row) * size + column];
      return found === NO_MEAN ? null : found / MEAN_STEPS;
    }),
  );
}

// What a row pays to all tokens but the first nHidden.
function leftOf(head, row, nHidden) {
  let left = head.rest[row];
  for (let sink = nHidden; sink < N_SINKS; sink++) left += head.sinks[row * N_SINKS + sink];
  return left;
}

// The weight of a row on a key, both counted as tokens of the sequence.
// isKnown is false where it is not among the row's kept edges; it is then at most `most`.
function weightOf(head, token, key) {
  const row = token - head.rowStart;
  if (row < 0 || row >= head.nRows || key > token) return null;
  if (key < N_SINKS) return { isKnown: true, weight: head.sinks[row * N_SINKS + key] };
  if (key === token) return { isKnown: true, weight: head.own[row] };
  let most = head.rest[row] - head.own[row];
  for (let edge = row * head.nEdges; edge < (row + 1) * head.nEdges; edge++) {
    if (head.keys[edge] === key) return { isKnown: true, weight: head.weights[edge] };
    // every stored weight that is not zero was kept
    if (head.keys[edge] === NO_KEY) {
      return head.isWhole ? { isKnown: true, weight: 0 } : { isKnown: false, most };
    }
    most = head.weights[edge];
  }
  return { isKnown: false, most: Math.max(0, most) };
}

// Calls visit(key, weight) for the kept entries of a row: first tokens, own token, edges.
function eachEntry(head, token, nHidden, nEdges, visit) {
  const row = token - head.rowStart;
  if (row < 0 || row >= head.nRows) return;
  for (let key = nHidden; key < N_SINKS && key <= token; key++) visit(key, head.sinks[row * N_SINKS + key]);
  if (token >= N_SINKS) visit(token, head.own[row]);
  const last = row * head.nEdges + Math.min(nEdges, head.nEdges);
  for (let edge = row * head.nEdges; edge < last && head.keys[edge] !== NO_KEY; edge++) {
    visit(head.keys[edge], head.weights[edge]);
  }
}

// The strongest entries of a row; share is the weight, or what it is of the rest once some are hidden.
function entriesOf(head, token, nHidden, nEdges) {
  const found = [];
  const left = nHidden ? leftOf(head, token - head.rowStart, nHidden) : 1;
  eachEntry(head, token, nHidden, nEdges, (key, weight) => {
    if (weight > 0) found.push({ key, weight, share: left > 0 ? weight / left : 0 });
  });
  return found.sort((a, b) => b.weight - a.weight || a.key - b.key);
}

// All kept edges of a head as arrays: rows, keys and shares, the strongest first.
function edgesOf(head, nHidden, nEdges) {
  const rows = [];
  const keys = [];
  const shares = [];
  for (let token = head.rowStart; token < head.rowStart + head.nRows; token++) {
    const left = nHidden ? leftOf(head, token - head.rowStart, nHidden) : 1;
    if (!(left > 0)) continue;
    eachEntry(head, token, nHidden, nEdges, (key, weight) => {
      if (weight > 0) {
        rows.push(token);
        keys.push(key);
        shares.push(weight / left);
      }
    });
  }
  const order = Uint32Array.from(shares.keys()).sort((a, b) => shares[b] - shares[a]);
  const sorted = (values) => Float32Array.from(order, (place) => values[place]);
  return { rows: sorted(rows), keys: sorted(keys), shares: sorted(shares) };
}

// Rows that attend to a key, the strongest first.
function attendersOf(head, key, nHidden, nMost) {
  const found = [];
  if (key < nHidden) return found;
  for (let token = Math.max(key + 1, head.rowStart); token < head.rowStart + head.nRows; token++) {
    const known = weightOf(head, token, key);
    if (!known || !known.isKnown || !(known.weight > 0)) continue;
    const left = nHidden ? leftOf(head, token - head.rowStart, nHidden) : 1;
    found.push({ token, weight: known.weight, share: left > 0 ? known.weight / left : 0 });
  }
  return found.sort((a, b) => b.share - a.share || a.token - b.token).slice(0, nMost);
}
