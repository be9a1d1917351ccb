// How the parts of the page follow what is chosen.

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
  if (state.isNear && String(drawnRange()) !== String(drawn)) showGraph();
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
  const map = shownMap();
  if (map.picks === "nothing") return;
  const place = overview.layers.indexOf(Number(map.rows[row].slice(1)));
  const shared = overview.n_heads / overview.n_kv_heads;
  const number = { head: column, kv_head: Math.floor(column * shared), layer: state.head }[map.picks];
  openHead(place, number);
}

// -- the parts of the page

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
  drawn = drawnRange();
  const [first, last] = drawn;
  const told = drawing.show({ texts: trace.texts, spans: trace.spans, edges, theme, width, first, last });
  byId("drawn").textContent = drawnWords(told);
  fillLegend(byId("graph-legend"), (share) => weightColour(theme, share), ["0", "1"], state.hidden ? "share of what is left of a row" : "weight");
}

// All tokens, or those around the chosen row.
function drawnRange() {
  const last = trace.texts.length - 1;
  if (!state.isNear || last < AROUND) return [0, last];
  const first = Math.min(Math.max(0, state.token - Math.round(AROUND * 0.75)), last - AROUND + 1);
  return [first, first + AROUND - 1];
}

function drawnWords(told) {
  const { n } = told;
  const kept = { full: "", edges: "; the store keeps the strongest edges only", streams: "; the store keeps no single weights but those on the first four tokens and a token's own" }[overview.keeps];
  const where = state.isNear ? `, tokens ${drawn[0]} to ${drawn[1]}` : "";
  const some = told.drawn < n ? `the ${counted(told.drawn)} strongest of ${counted(n)} edges are drawn` : `${counted(n)} edges`;
  const others = trace.n_edges ? ` and on its ${Math.min(state.nEdges, trace.n_edges)} strongest others` : "";
  return `${some}${where}: of each row the weights on the first four tokens, on its own${others}${kept}.`;
}

function showHidden() {
  const words = { 0: "", 1: "The first token is hidden", 4: "The first four tokens are hidden" }[state.hidden];
  byId("pair").classList.toggle("is-whole", !state.hidden);
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
      make("td", { class: "number rest" }, state.hidden ? exact(share) : "")),
  );
  body.replaceChildren(...(shown.length ? shown : [make("tr", {}, make("td", { colspan: 4 }, "nothing that is kept"))]));
}

// -- controls

function onInput(id, act) {
  byId(id).addEventListener("input", (event) => act(event.target));
}

onInput("feature", ({ value }) => { state.map = value; showMap(); });
onInput("numbers", ({ checked }) => { state.hasNumbers = checked; showMap(); });
onInput("layer", ({ value }) => openHead(Number(value), state.head));
onInput("head", ({ value }) => openHead(state.place, Number(value)));
onInput("hidden", ({ value }) => { state.hidden = Number(value); showHead(); });
onInput("near", ({ checked }) => { state.isNear = checked; showGraph(); showChosen(); });
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

byId("notes").append(...overview.notes.map((note) => make("p", { class: "note" }, note)));
byId("layer").append(...overview.layers.map((layer, place) => make("option", { value: place }, layer)));
byId("head").append(...Array.from({ length: overview.n_heads }, (_, number) => make("option", { value: number }, number)));
openAnswer(0).then(() => {
  document.documentElement.dataset.readyMs = Math.round(performance.now());
});
