// What is said of a token, and of a pair of them.

function named(token) {
  return `${token} ${quoted(trace.texts[token])} (${overview.span_names[trace.spans[token]]})`;
}

function say(text, weight) {
  const reading = byId("reading");
  reading.textContent = text;
  if (weight === undefined) delete reading.dataset.weight;
  else reading.dataset.weight = weight;
}

function readChosen() {
  const parts = Object.entries(trace.streams).map(([name, values]) => `${name} ${exact(values[state.token])}`);
  say(`Token ${named(state.token)}: ${parts.join(", ")}. Point at another token for the weight between them.`);
}

function readPair(row, key) {
  const known = weightOf(head, row, key);
  if (known === null) {
    const why = key > row ? "a row sees no later token" : `rows before ${trace.row_start} are not stored`;
    return say(`Row ${named(row)} and token ${named(key)}: ${why}.`);
  }
  const pair = `Row ${named(row)} on token ${named(key)}`;
  if (!known.isKnown) {
    return say(`${pair}: at most ${exact(known.most)}; not among the ${trace.n_edges} strongest of the row that are kept here.`);
  }
  say(`${pair}: ${exact(known.weight)}${hiddenWords(row, key, known.weight)}.`, known.weight);
}

function hiddenWords(row, key, weight) {
  if (!state.hidden) return "";
  if (key < state.hidden) return "; hidden now";
  const left = leftOf(head, row - head.rowStart, state.hidden);
  if (!(left > 0)) return "; nothing is left of this row";
  return `; ${exact(weight / left)} of the ${exact(left)} that is left`;
}
