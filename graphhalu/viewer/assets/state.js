// What a page shows, and what of it is looked at.

const byId = (name) => document.getElementById(name);
const overview = JSON.parse(byId("overview").textContent);
const table = weightTable(overview.weights);
const stops = overview.rising.map(rgbOf);
const ATTENDERS = 8;
const KEPT_ANSWERS = 6;
const AROUND = 80; // tokens that are drawn where not all are
const FIRST_MAP = "sink_mass_k4";

const state = {
  answer: 0, place: Math.floor(overview.layers.length / 2), head: 0, map: FIRST_MAP, hidden: 0, nEdges: 8,
  view: "arcs", colour: Object.keys(overview.token_scores?.scales ?? {})[0] ?? "attention", hasNumbers: false, isNear: false, token: null, look: null,
};
let trace = null; // the answer that is looked at
let head = null; // the head that is looked at
let edges = null; // its edges, the strongest first
let chosen = { entries: [], attenders: [] }; // what the chosen row attends to, and who attends to it
let drawn = [0, 0]; // first and last token that are drawn
let theme = readTheme();
let asked = 0;
