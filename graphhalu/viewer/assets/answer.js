// The answer: what is known of it, and its tokens in colours with numbers.

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
  const scale = overview.token_scores?.scales[state.colour];
  const [low, high] = scale ?? [Math.min(...numbers), Math.max(...numbers)];
  tokens.colour(found.map((token) => ({
    token, rgb: rising(stops, high > low ? (values[token] - low) / (high - low) : 0.5), number: tiny(values[token]),
  })));
  const words = `${state.colour} of each token, ${short(low)} to ${short(high)}`;
  const scored = `out-of-fold score of ${state.colour} in ${overview.token_scores?.run}, higher = more likely hallucinated; colours from ${short(low)} to ${short(high)} in all answers`;
  const marked = trace.hallucinated ? "; marked spans are underlined" : "";
  byId("colour-words").textContent = scale ? scored + marked : words;
}
