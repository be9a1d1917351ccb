// A feature as a map of layers and heads; a cell chooses its head.

function showMap() {
  const select = byId("feature");
  const place = trace.maps.findIndex(({ name }) => name === state.map);
  const map = trace.maps[Math.max(0, place)];
  select.replaceChildren(...trace.maps.map((each) => make("option", { value: each.name, selected: each === map }, each.name)));
  byId("map-panel").hidden = trace.maps.length === 0;
  if (!map) return;
  state.map = map.name;
  const numbers = [...map.values].filter(isNumber);
  const [low, high] = [Math.min(...numbers), Math.max(...numbers)];
  const colour = (value) => rising(stops, high > low ? (value - low) / (high - low) : 0.5);
  const plain = (name) => name.replace(/^[a-z]0*(?=\d)/, "");
  mapGrid.show({
    label: `${map.name}, rows are ${map.rows[0].startsWith("l") ? "layers" : "entries"}`,
    rows: map.rows.map((name) => ({ name: plain(name), title: cellName(name) })),
    columns: map.columns.map((name) => ({ name: plain(name), title: cellName(name) })),
    values: map.rows.map((_, row) => map.columns.map((_, column) => valueOf(map, row, column))),
    colour, hasNumbers: state.hasNumbers,
    words: (row, column, value) => `${cellWords(map, row, column)}: ${exact(value)}`,
  });
  byId("map-words").textContent = `${map.summary}. Higher: ${map.direction}.`;
  fillLegend(byId("map-legend"), (share) => rising(stops, share), [short(low), short(high)], "lowest and highest of this answer");
  markMap();
}

function shownMap() {
  return trace.maps.find(({ name }) => name === state.map);
}

function valueOf(map, row, column) {
  const value = map.values[row * map.columns.length + column];
  return Number.isNaN(value) ? null : value;
}

const AXES = { l: "layer", h: "head", g: "key head", n: "hidden state", r: "rank", f: "feature" };

function cellName(name) {
  const found = /^([a-z])0*(\d+)$/.exec(name);
  return found && AXES[found[1]] ? `${AXES[found[1]]} ${found[2]}` : name;
}

function cellWords(map, row, column) {
  return [map.rows[row], map.columns[column]].filter(Boolean).map(cellName).join(", ");
}

function markMap() {
  const map = shownMap();
  if (!map) return;
  const row = map.rows.findIndex((name) => Number(name.slice(1)) === overview.layers[state.place]);
  const shared = overview.n_heads / overview.n_kv_heads;
  const column = { head: state.head, kv_head: Math.floor(state.head / shared), layer: 0 }[map.picks];
  mapGrid.mark(map.picks === "nothing" || row < 0 ? [] : [[row, column]]);
  byId("map-reading").textContent = column === undefined || row < 0 ? "" : `${cellWords(map, row, column)}: ${exact(valueOf(map, row, column))}`;
}

function lookAtCell(row, column) {
  const map = shownMap();
  byId("map-reading").textContent = `${cellWords(map, row, column)}: ${exact(valueOf(map, row, column))}`;
}
