// Tokens on a line, and an arc from every attended token to the row that attends to it.

const MOST_ARCS = 2000;
const LABEL_STEP = 12;
const LABEL_HEIGHT = 84;
const ARC_HEIGHT = 250;
const LEVELS = 8;

// Places of the edges that touch tokens `first` to `last`, in the order that they have.
function placesWithin(edges, first, last) {
  const places = [];
  for (let place = 0; place < edges.shares.length; place++) {
    if (edges.rows[place] >= first && edges.keys[place] <= last && (edges.rows[place] <= last || edges.keys[place] >= first)) {
      places.push(place);
    }
  }
  return places;
}

class Arcs {
  constructor(canvas, { onPick, onLook }) {
    this.canvas = canvas;
    this.base = document.createElement("canvas");
    canvas.addEventListener("pointermove", (event) => onLook(this.#tokenAt(event)));
    canvas.addEventListener("pointerleave", () => onLook(null));
    canvas.addEventListener("click", (event) => onPick(this.#tokenAt(event)));
  }

  // Draws what does not depend on the chosen row, of the tokens `first` to `last`.
  show({ texts, spans, edges, theme, width, first, last }) {
    const n = last - first + 1;
    Object.assign(this, { first, n, theme });
    this.hasLabels = n * LABEL_STEP <= Math.max(width, 1600);
    this.step = this.hasLabels ? Math.max(LABEL_STEP, width / n) : width / n;
    this.width = Math.max(width, this.step * n);
    this.height = ARC_HEIGHT + 22 + (this.hasLabels ? LABEL_HEIGHT : 14);
    const context = sizedCanvas(this.base, this.width, this.height);
    const places = placesWithin(edges, first, last);
    const drawn = places.slice(0, MOST_ARCS);
    const reach = drawn.reduce((most, place) => Math.max(most, edges.rows[place] - edges.keys[place]), 1);
    this.reach = Math.min(reach, n);
    this.#strokeLevels(context, edges, drawn);
    this.#drawLine(context, texts.slice(first, last + 1), spans.slice(first, last + 1));
    return { n: places.length, drawn: drawn.length };
  }

  // Draws the chosen row on top: what it attends to, and who attends to it.
  choose({ token, entries, attenders, look }) {
    const context = sizedCanvas(this.canvas, this.width, this.height);
    context.drawImage(this.base, 0, 0, this.width, this.height);
    if (token === null) return;
    attenders.forEach((each) => this.#arc(context, token, each.token, each.share, this.theme.probe));
    entries.forEach((each) => this.#arc(context, each.key, token, each.share, this.theme.graph));
    this.#numbers(context, token, entries);
    this.#dot(context, token, this.theme.graph);
    if (look !== null && look !== token) this.#dot(context, look, this.theme.probe);
  }

  #x(token) {
    return (token - this.first + 0.5) * this.step;
  }

  #rise(distance) {
    return (ARC_HEIGHT - 12) * (0.06 + 0.94 * Math.min(1, distance / this.reach) ** 0.6);
  }

  #path(context, key, row) {
    const low = this.#x(key);
    const high = this.#x(row);
    if (key === row) {
      context.moveTo(low + 4, ARC_HEIGHT - 4);
      context.arc(low, ARC_HEIGHT - 4, 4, 0, 2 * Math.PI);
    } else {
      context.moveTo(low, ARC_HEIGHT);
      context.ellipse((low + high) / 2, ARC_HEIGHT, (high - low) / 2, this.#rise(row - key), 0, Math.PI, 2 * Math.PI);
    }
  }

  // Edges of about the same weight are one path, and no line is wider than a point: both keep
  // thousands of them quick.
  #strokeLevels(context, edges, places) {
    context.strokeStyle = css(this.theme.muted);
    let next = 0;
    for (let level = LEVELS; level > 0 && next < places.length; level--) {
      const floor = ((level - 1) / LEVELS) ** 2;
      context.beginPath();
      for (; next < places.length && (edges.shares[places[next]] > floor || level === 1); next++) {
        this.#path(context, edges.keys[places[next]], edges.rows[places[next]]);
      }
      context.globalAlpha = 0.08 + (0.6 * level) / LEVELS;
      context.lineWidth = 0.6 + (0.4 * level) / LEVELS;
      context.stroke();
    }
    context.globalAlpha = 1;
  }

  #arc(context, key, row, share, rgb) {
    context.strokeStyle = css(rgb);
    context.globalAlpha = 0.35 + 0.65 * Math.sqrt(Math.min(1, share));
    context.lineWidth = 1 + 4 * Math.sqrt(Math.min(1, share));
    context.beginPath();
    this.#path(context, key, row);
    context.stroke();
    context.globalAlpha = 1;
  }

  #numbers(context, token, entries) {
    context.font = "12px system-ui, sans-serif";
    context.textAlign = "center";
    const taken = [];
    for (const { key, share } of entries.slice(0, 6)) {
      if (key === token) continue;
      const x = Math.min(this.width - 20, Math.max(20, (this.#x(key) + this.#x(token)) / 2));
      const y = ARC_HEIGHT - this.#rise(token - key) - 4;
      if (taken.some(([otherX, otherY]) => Math.abs(otherX - x) < 36 && Math.abs(otherY - y) < 13)) continue;
      taken.push([x, y]);
      context.lineWidth = 3;
      context.strokeStyle = css(this.theme.paper);
      context.strokeText(short(share), x, Math.max(12, y));
      context.fillStyle = css(this.theme.ink);
      context.fillText(short(share), x, Math.max(12, y));
    }
  }

  #dot(context, token, rgb) {
    context.fillStyle = css(rgb);
    context.beginPath();
    context.arc(this.#x(token), ARC_HEIGHT + 4, 4.5, 0, 2 * Math.PI);
    context.fill();
  }

  #drawLine(context, texts, spans) {
    const gap = this.step > 4 ? 1 : 0;
    texts.forEach((_, token) => {
      context.fillStyle = css(this.theme[SPAN_COLOURS[spans[token]]]);
      context.fillRect(token * this.step, ARC_HEIGHT + 10, Math.max(0.6, this.step - gap), 6);
    });
    context.fillStyle = css(this.theme.ink);
    context.font = "12px system-ui, sans-serif";
    if (!this.hasLabels) return this.#ruler(context);
    texts.forEach((text, token) => {
      context.save();
      context.translate((token + 0.5) * this.step + 3, ARC_HEIGHT + 24);
      context.rotate(Math.PI / 3);
      context.fillText(visible(text).trim().slice(0, 13), 0, 4);
      context.restore();
    });
  }

  #ruler(context) {
    const every = 10 ** Math.floor(Math.log10(this.n / 4));
    context.textAlign = "center";
    const start = Math.ceil(this.first / every) * every;
    for (let token = start; token < this.first + this.n; token += every) {
      context.fillText(String(token), Math.max(8, this.#x(token)), ARC_HEIGHT + 29);
    }
    context.textAlign = "start";
  }

  #tokenAt(event) {
    const place = Math.floor(event.offsetX / this.step);
    return place >= 0 && place < this.n ? this.first + place : null;
  }
}
