// Means over named spans, and over pieces of about a sentence.

let groups = [];

function showSpans() {
  if (state.view !== "spans" && state.view !== "pieces") return;
  const variant = overview.hidden_sinks.indexOf(state.hidden);
  const isSpans = state.view === "spans";
  const all = isSpans
    ? meansOf(head.spans, head.nSpans, variant)
    : meansOf(head.pieces, head.nPieces, variant);
  groups = isSpans ? spanGroups() : pieceGroups();
  const values = groups.map((row) => groups.map((column) => (column.first > row.last ? null : all[row.index][column.index])));
  byId("no-pieces").hidden = isSpans || groups.length > 0;
  byId("span-grid").hidden = groups.length === 0;
  spanGrid.show({
    label: `mean attention of the rows of a ${isSpans ? "span" : "piece"} on another`,
    rows: groups.map(({ name, title }) => ({ name: `${name} ${isSpans ? "" : title}`.trim(), title })),
    columns: groups.map(({ name, title }) => ({ name, title })),
    values, colour: (value) => weightColour(theme, value), hasNumbers: true,
    words: (row, column, value) => `rows of ${groups[row].name} on ${groups[column].name}: ${exact(value)}`,
  });
  byId("span-words").textContent = `Rows: who attends. Columns: what is attended to. Mean over the rows of each ${isSpans ? "named span" : "piece of about a sentence"}; a row adds up to 1.`;
  byId("span-reading").textContent = "";
}

function spanGroups() {
  return overview.span_names
    .map((name, index) => ({ name, index, first: trace.spans.indexOf(index), last: trace.spans.lastIndexOf(index), title: name }))
    .filter(({ first }) => first >= 0);
}

function pieceGroups() {
  return trace.pieces.map((first, index) => {
    const last = (trace.pieces[index + 1] ?? trace.texts.length) - 1;
    const text = trace.texts.slice(first, last + 1).join("").trim();
    const title = `${overview.span_names[trace.spans[first]]}: ${visible(text.length > 36 ? `${text.slice(0, 35)}…` : text)}`;
    return { name: String(index + 1), index, first, last, title };
  });
}

function lookAtSpans(row, column) {
  byId("span-reading").textContent = spanGrid.cells[row][column].getAttribute("aria-label");
}
