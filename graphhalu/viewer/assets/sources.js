// Where the numbers come from: the page itself, or the server that it comes from.

const kept = new Map();

async function traceOf(index) {
  if (!kept.has(index)) {
    const found = overview.is_served
      ? await fetched(`traces/${index}.json`).then((text) => JSON.parse(text))
      : JSON.parse(await embedded(`trace-${index}`));
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
      : await embedded(`layer-${index}-${place}`);
    found.layers.set(place, text.trim().split("\n"));
  }
  return decodeHead(found.layers.get(place)[number], {
    nRows: found.texts.length - found.row_start, nEdges: found.n_edges, nSpans: overview.span_names.length,
    nPieces: found.pieces.length, rowStart: found.row_start, table, isWhole: overview.keeps === "full",
  });
}

// The first view is drawn while the browser still reads the rest of the page.
async function embedded(name) {
  for (;;) {
    const element = byId(name);
    const isWhole = document.readyState !== "loading" || element?.nextElementSibling;
    if (isWhole) return element.textContent;
    await new Promise((go) => setTimeout(go, 20));
  }
}

async function fetched(path) {
  const answer = await fetch(path);
  const text = await answer.text();
  if (!answer.ok) throw new Error(text.trim());
  return text;
}
