// What is looked at, and how the parts of the page follow it.

const byId = (name) => document.getElementById(name);
const overview = JSON.parse(byId("overview").textContent);
const table = weightTable(overview.weights);
const stops = overview.rising.map(rgbOf);
const ATTENDERS = 8;
const KEPT_ANSWERS = 6;

const state = {
  answer: 0, place: Math.floor(overview.layers.length / 2), head: 0, map: 0, hidden: 0, nEdges: 8,
  view: "arcs", colour: "attention", hasNumbers: false, token: null, look: null,
};
let trace = null; // the answer that is looked at
let head = null; // the head that is looked at
let edges = null; // its edges, the strongest first
let chosen = { entries: [], attenders: [] }; // what the chosen row attends to, and who attends to it
let theme = readTheme();
let asked = 0;

const answers = new Answers(overview, {
  list: byId("answers"), filter: byId("filter"), order: byId("order"), search: byId("search"),
  count: byId("answer-count"), onPick: (index) => openAnswer(index),
});
const tokens = new Tokens(byId("prompt-tokens"), byId("answer-tokens"), { onPick: pickToken, onLook: lookAt });
const mapGrid = new Grid(byId("map"), { onPick: pickCell, onLook: lookAtCell });
const spanGrid = new Grid(byId("span-grid"), { onLook: lookAtSpans });
const arcs = new Arcs(byId("arcs"), { onPick: pickToken, onLook: lookAt });
const matrix = new Matrix(byId("matrix"), {
  onPick: (row) => pickToken(row),
  onLook: (row, key) => (row === null ? lookAt(null) : readPair(row, key)),
});

// -- where the numbers come from

const kept = new Map();

async function traceOf(index) {
  if (!kept.has(index)) {
    const found = overview.is_served
      ? await fetched(`traces/${index}.json`).then((text) => JSON.parse(text))
      : JSON.parse(byId(`trace-${index}`).textContent);
    found.spans = bytesOf(found.spans);
    found.hallucinated = found.hallucinated && bytesOf(found.hallucinated);
    for (const name of Object.keys(found.streams)) found.streams[name] = floatsOf(found.streams[name]);
    for (const map of found.maps) map.values = floatsOf(map.values);
    found.layers = new Map();
    kept.set(index, found);
    if (kept.size > KEPT_ANSWERS) kept.delete(kept.keys().next().value);
  }
  return kept.get(index);
}

async function headOf(index, found, place, number) {
  if (!found.layers.has(place)) {
    const text = overview.is_served
      ? await fetched(`traces/${index}/layers/${place}.txt`)
      : byId(`layer-${index}-${place}`).textContent;
    found.layers.set(place, text.trim().split("\n"));
  }
  return decodeHead(found.layers.get(place)[number], {
    nRows: found.texts.length - found.row_start, nEdges: found.n_edges, nSpans: overview.span_names.length,
    nPieces: found.pieces.length, rowStart: found.row_start, table, isWhole: overview.keeps === "full",
  });
}

async function fetched(path) {
  const answer = await fetch(path);
  const text = await answer.text();
  if (!answer.ok) throw new Error(text.trim());
  return text;
}

// -- what is chosen

async function openAnswer(index) {
  await followed(async (isCurrent) => {
    const found = await traceOf(index);
    const decoded = await headOf(index, found, state.place, state.head);
    if (!isCurrent()) return;
    trace = found;
    head = decoded;
    Object.assign(state, { answer: index, look: null, token: Math.max(found.row_start, found.prompt_length - 1) });
    state.nEdges = Math.min(Math.max(1, state.nEdges), Math.max(1, found.n_edges));
    byId("edges").max = Math.max(1, found.n_edges);
    showAnswer();
    showMap();
    showHead();
  });
}

async function openHead(place, number) {
  await followed(async (isCurrent) => {
    const decoded = await headOf(state.answer, trace, place, number);
    if (!isCurrent()) return;
    head = decoded;
    Object.assign(state, { place, head: number });
    markMap();
    showHead();
  });
}

// Runs a change; a slower one that was asked for earlier is dropped.
async function followed(act) {
  const mine = ++asked;
  const problem = byId("problem");
  try {
    await act(() => mine === asked);
    if (mine === asked) problem.hidden = true;
  } catch (error) {
    problem.textContent = `This cannot be shown: ${error.message}`;
    problem.hidden = false;
  }
}

function pickToken(token) {
  if (token === null) return;
  state.token = token;
  state.look = null;
  showChosen();
}

function lookAt(token) {
  if (state.look === token) return;
  state.look = token;
  tokens.look(token);
  drawChosen();
  if (token === null || state.token === null) return readChosen();
  readPair(Math.max(state.token, token), Math.min(state.token, token));
}

function pickCell(row, column) {
  const map = trace.maps[state.map];
  if (map.picks === "nothing") return;
  const place = overview.layers.indexOf(Number(map.rows[row].slice(1)));
  const shared = overview.n_heads / overview.n_kv_heads;
  const number = { head: column, kv_head: Math.floor(column * shared), layer: state.head }[map.picks];
  openHead(place, number);
}

// -- the parts of the page

function showAnswer() {
  const entry = overview.answers[state.answer];
  answers.choose(state.answer);
  byId("chips").replaceChildren(...chipsOf(entry, overview));
  byId("answer-title").textContent = entry.id;
  const gold = trace.gold.length ? trace.gold.slice(0, 4).join(" | ") : "none";
  const facts = [
    ["question", trace.question], ["right answers", gold], ["label", labelWords(entry)],
    ["tokens", `${trace.texts.length}: ${trace.prompt_length} of the prompt, ${trace.texts.length - trace.prompt_length} of the answer`],
    ["answer by", trace.is_on_policy ? "the model itself" : "others; the model read it"],
    ...trace.numbers.map(({ name, value }) => [name, exact(value)]),
  ];
  byId("answer-facts").replaceChildren(...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
  tokens.show({
    texts: trace.texts, spans: trace.spans, promptLength: trace.prompt_length,
    spanNames: overview.span_names, hallucinated: trace.hallucinated,
  });
  fillColours();
}

function labelWords(entry) {
  if (!overview.labeller) return "none";
  const value = entry.label === null ? "cannot be decided" : entry.label;
  const made = overview.labeller.is_stored ? "" : "; made for this page";
  return `${value} by ${overview.labeller.name} (${entry.reason})${made}; 1 means: ${overview.labeller.words}`;
}

function fillColours() {
  const names = ["attention", ...Object.keys(trace.streams), ...(trace.hallucinated ? ["hallucinated"] : []), "nothing"];
  if (!names.includes(state.colour)) state.colour = "attention";
  byId("colour").replaceChildren(...names.map((name) => make("option", { value: name, selected: name === state.colour }, name)));
}

function showMap() {
  const select = byId("feature");
  state.map = Math.min(state.map, Math.max(0, trace.maps.length - 1));
  select.replaceChildren(...trace.maps.map((map, index) => make("option", { value: index, selected: index === state.map }, map.name)));
  byId("map-panel").hidden = trace.maps.length === 0;
  if (trace.maps.length === 0) return;
  const map = trace.maps[state.map];
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
  const map = trace.maps[state.map];
  if (!map) return;
  const row = map.rows.findIndex((name) => Number(name.slice(1)) === overview.layers[state.place]);
  const shared = overview.n_heads / overview.n_kv_heads;
  const column = { head: state.head, kv_head: Math.floor(state.head / shared), layer: 0 }[map.picks];
  mapGrid.mark(map.picks === "nothing" || row < 0 ? [] : [[row, column]]);
  byId("map-reading").textContent = column === undefined || row < 0 ? "" : `${cellWords(map, row, column)}: ${exact(valueOf(map, row, column))}`;
}

function lookAtCell(row, column) {
  const map = trace.maps[state.map];
  byId("map-reading").textContent = `${cellWords(map, row, column)}: ${exact(valueOf(map, row, column))}`;
}

function showHead() {
  byId("layer").value = state.place;
  byId("head").value = state.head;
  byId("edges").value = state.nEdges;
  edges = edgesOf(head, state.hidden, state.nEdges);
  const window = overview.windows[state.place];
  byId("head-title").textContent = `Layer ${overview.layers[state.place]}, head ${state.head}${window ? `, sees ${window} tokens` : ""}`;
  showGraph();
  showSpans();
  showChosen();
}

function showGraph() {
  for (const view of ["arcs", "matrix", "spans", "pieces"]) byId(`${view}-tab`).setAttribute("aria-selected", String(view === state.view));
  for (const view of ["arcs", "matrix", "spans", "pieces"]) byId(`${view}-tab`).setAttribute("tabindex", view === state.view ? "0" : "-1");
  const isDrawn = state.view === "arcs" || state.view === "matrix";
  byId("drawing").hidden = !isDrawn;
  byId("span-panel").hidden = isDrawn;
  byId("panel").setAttribute("aria-labelledby", `${state.view}-tab`);
  byId("arcs").hidden = state.view !== "arcs";
  byId("matrix").hidden = state.view !== "matrix";
  if (!isDrawn) return;
  const drawing = state.view === "arcs" ? arcs : matrix;
  const width = Math.max(280, byId("drawing").clientWidth - 4);
  const told = drawing.show({ texts: trace.texts, spans: trace.spans, edges, theme, width });
  byId("drawn").textContent = drawnWords(told);
  fillLegend(byId("graph-legend"), (share) => weightColour(theme, share), ["0", "1"], state.hidden ? "share of what is left of a row" : "weight");
}

function drawnWords({ n, drawn }) {
  const kept = { full: "", edges: "; the store keeps the strongest edges only", streams: "; the store keeps no single weights but those on the first four tokens and a token's own" }[overview.keeps];
  const some = drawn < n ? `the ${drawn.toLocaleString("en")} strongest of ${n.toLocaleString("en")} edges are drawn` : `${n.toLocaleString("en")} edges`;
  return `${some}: of each row the weights on the first four tokens, on its own, and on its ${Math.min(state.nEdges, trace.n_edges)} strongest others${kept}.`;
}

function showHidden() {
  const words = { 0: "", 1: "The first token is hidden", 4: "The first four tokens are hidden" }[state.hidden];
  byId("hidden-words").textContent = words && `${words}: every row is divided by what is left of it, so that numbers are shares of the rest and no longer weights.`;
}

function showChosen() {
  showHidden();
  tokens.choose(state.token);
  chosen = {
    entries: entriesOf(head, state.token, state.hidden, state.nEdges),
    attenders: attendersOf(head, state.token, state.hidden, ATTENDERS),
  };
  colourTokens();
  drawChosen();
  fillTable(byId("pays"), chosen.entries.map((each) => [each.key, each]));
  fillTable(byId("receives"), chosen.attenders.map((each) => [each.token, each]));
  const next = trace.texts[state.token + 1];
  const row = `${state.token} ${quoted(trace.texts[state.token])}`;
  byId("chosen").textContent = next === undefined ? `Row ${row}, the last token` : `Row ${row}, which predicts ${quoted(next)}`;
  readChosen();
}

function drawChosen() {
  if (state.view === "arcs") arcs.choose({ token: state.token, look: state.look, ...chosen });
  if (state.view === "matrix") matrix.choose({ token: state.token, look: state.look });
}

function fillTable(body, found) {
  const shown = found.map(([token, { weight, share }]) =>
    make("tr", {},
      make("th", { scope: "row" }, `${token} ${quoted(trace.texts[token])}`),
      make("td", {}, overview.span_names[trace.spans[token]]),
      make("td", { class: "number" }, exact(weight)),
      make("td", { class: "number" }, state.hidden ? exact(share) : "")),
  );
  body.replaceChildren(...(shown.length ? shown : [make("tr", {}, make("td", { colspan: 4 }, "nothing that is kept"))]));
}

function colourTokens() {
  if (state.colour === "attention") {
    tokens.colour(chosen.entries.map(({ key, share }) => ({ token: key, rgb: weightColour(theme, share), number: tiny(share) })));
    byId("colour-words").textContent = state.hidden ? "share of what is left of the chosen row" : "weight of the chosen row on a token";
  } else if (state.colour === "hallucinated") {
    const found = [...trace.hallucinated.keys()].filter((token) => trace.hallucinated[token]);
    tokens.colour(found.map((token) => ({ token, rgb: theme.graph, number: "1" })));
    byId("colour-words").textContent = "1: the data set calls these characters hallucinated";
  } else if (state.colour === "nothing") {
    tokens.colour([]);
    byId("colour-words").textContent = "";
  } else {
    colourStream(trace.streams[state.colour]);
  }
}

function colourStream(values) {
  const found = [...values.keys()].filter((token) => isNumber(values[token]));
  const numbers = found.map((token) => values[token]);
  const [low, high] = [Math.min(...numbers), Math.max(...numbers)];
  tokens.colour(found.map((token) => ({
    token, rgb: rising(stops, high > low ? (values[token] - low) / (high - low) : 0.5), number: tiny(values[token]),
  })));
  byId("colour-words").textContent = `${state.colour} of each token, ${short(low)} to ${short(high)}`;
}

// -- what is said of a token, and of a pair of them

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

// -- spans and pieces

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
    const title = `${overview.span_names[trace.spans[first]]}: ${visible(text.length > 44 ? `${text.slice(0, 43)}…` : text)}`;
    return { name: String(index + 1), index, first, last, title };
  });
}

function lookAtSpans(row, column) {
  byId("span-reading").textContent = spanGrid.cells[row][column].getAttribute("aria-label");
}

// -- controls

function onInput(id, act) {
  byId(id).addEventListener("input", (event) => act(event.target));
}

onInput("feature", ({ value }) => { state.map = Number(value); showMap(); });
onInput("numbers", ({ checked }) => { state.hasNumbers = checked; showMap(); });
onInput("layer", ({ value }) => openHead(Number(value), state.head));
onInput("head", ({ value }) => openHead(state.place, Number(value)));
onInput("hidden", ({ value }) => { state.hidden = Number(value); showHead(); });
onInput("edges", ({ value }) => { if (Number(value) >= 1) { state.nEdges = Math.min(trace.n_edges, Math.floor(Number(value))); showHead(); } });
onInput("colour", ({ value }) => { state.colour = value; colourTokens(); });

const TABS = ["arcs", "matrix", "spans", "pieces"];

function openView(view) {
  state.view = view;
  showGraph();
  showSpans();
  showChosen();
}

TABS.forEach((view, place) => {
  byId(`${view}-tab`).addEventListener("click", () => openView(view));
  byId(`${view}-tab`).addEventListener("keydown", ({ key }) => {
    const to = { ArrowLeft: place - 1, ArrowRight: place + 1 }[key];
    if (to === undefined) return;
    const other = TABS[(to + TABS.length) % TABS.length];
    byId(`${other}-tab`).focus();
    openView(other);
  });
});

for (const id of ["arcs", "matrix"]) {
  byId(id).addEventListener("keydown", (event) => {
    const last = trace.texts.length - 1;
    const held = (token) => Math.min(last, Math.max(0, token));
    const look = state.look ?? state.token;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const jump = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (step) lookAt(held(look + step));
    if (jump) pickToken(held(state.token + jump));
    if (event.key === "Enter" && state.look !== null) pickToken(state.look);
    if (step || jump) event.preventDefault();
  });
}

function drawAgain() {
  theme = readTheme();
  if (!trace) return;
  showMap();
  showHead();
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAgain);
let resized = 0;
window.addEventListener("resize", () => {
  clearTimeout(resized);
  resized = setTimeout(drawAgain, 100);
});

byId("layer").append(...overview.layers.map((layer, place) => make("option", { value: place }, layer)));
byId("head").append(...Array.from({ length: overview.n_heads }, (_, number) => make("option", { value: number }, number)));
openAnswer(0).then(() => {
  document.documentElement.dataset.readyMs = Math.round(performance.now());
});
