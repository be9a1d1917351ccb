// Elements, numbers and colours. Text only ever enters the page as text.

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

const isNumber = (value) => value !== null && value !== undefined && !Number.isNaN(value);

// Enough digits to tell any two half-precision numbers apart.
function exact(value) {
  return isNumber(value) ? String(Number(value.toPrecision(5))) : "-";
}

function short(value) {
  if (!isNumber(value)) return "-";
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 100000)) return value.toExponential(1);
  return String(Number(value.toPrecision(3)));
}

// Locale formats take a tenth of a second to start.
function counted(number) {
  return String(number).replace(/\B(?=(\d{3})+$)/g, ",");
}

// Two digits that fit beside a token: .07 for 0.07.
function tiny(value) {
  if (!isNumber(value)) return "";
  const size = Math.abs(value);
  if (size >= 10) return value.toFixed(0);
  if (size >= 1) return value.toFixed(1);
  if (size > 0 && size < 0.005) return value > 0 ? "<.01" : "-0";
  return value.toFixed(2).replace("0.", ".");
}

function visible(text) {
  if (text === "") return "…";
  return text.replace(/\n/g, "⏎").replace(/\t/g, "⇥");
}

function quoted(text) {
  return `“${visible(text).trim() || "␣"}”`;
}

function rgbOf(hex) {
  return [1, 3, 5].map((place) => parseInt(hex.slice(place, place + 2), 16));
}

function house(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function mixed(low, high, share) {
  return low.map((value, place) => Math.round(value + (high[place] - value) * share));
}

function css(rgb) {
  return `rgb(${rgb[0]} ${rgb[1]} ${rgb[2]})`;
}

// Black or white, whichever stands out more.
function inkOn(rgb) {
  const [r, g, b] = rgb.map((value) => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000000" : "#ffffff";
}

function rising(stops, share) {
  const place = Math.min(1, Math.max(0, share)) * (stops.length - 1);
  const low = Math.min(stops.length - 2, Math.floor(place));
  return mixed(stops[low], stops[low + 1], place - low);
}

// From the ground of the page to the colour of graphs; the root lets small weights be seen.
function weightColour(theme, share) {
  if (!(share > 0)) return theme.paper;
  return mixed(theme.paper, theme.graph, 0.1 + 0.9 * Math.sqrt(Math.min(1, share)));
}

const SPAN_COLOURS = ["control", "muted", "probe", "scalar", "faint", "graph"];

function readTheme() {
  const names = ["ink", "muted", "grid", "faint", "paper", "graph", "probe", "scalar", "control", "raised"];
  return Object.fromEntries(names.map((name) => [name, rgbOf(house(name))]));
}

// Thousands of thin arcs are drawn sooner by the processor than a graphics driver starts.
function plainContext(canvas) {
  return canvas.getContext("2d", { willReadFrequently: true });
}

function sizedCanvas(canvas, width, height) {
  const ratio = Math.min(2, window.devicePixelRatio || 1);
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = plainContext(canvas);
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return context;
}

// A bar of colours with numbers at its ends and in its middle.
function fillLegend(element, colourAt, numbers, words) {
  const canvas = make("canvas", { "aria-hidden": "true" });
  const context = sizedCanvas(canvas, 140, 12);
  for (let x = 0; x < 140; x++) {
    context.fillStyle = css(colourAt(x / 139));
    context.fillRect(x, 0, 1, 12);
  }
  element.replaceChildren(numbers[0], canvas, numbers[1], make("span", { class: "note" }, words));
}
