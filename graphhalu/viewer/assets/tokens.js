// The text of an answer, one element a token; the prompt and the answer stand apart.

const STEP = 10;
const PAINTED = 200; // tokens that are coloured in one go
const LINE_TOKENS = 100;
const LONG = 400; // lines of such a text are not laid out while they are out of sight

class Tokens {
  constructor(prompt, answer, { onPick, onLook }) {
    this.parts = [prompt, answer];
    this.onPick = onPick;
    this.onLook = onLook;
    this.elements = [];
    this.coloured = [];
    this.chosen = null;
    for (const part of this.parts) {
      part.addEventListener("click", (event) => this.#at(event, (token) => onPick(token)));
      part.addEventListener("pointerover", (event) => this.#at(event, (token) => onLook(token)));
      part.addEventListener("pointerleave", () => onLook(null));
      part.addEventListener("focusin", (event) => this.#at(event, (token) => this.#focused(token)));
      part.addEventListener("keydown", (event) => this.#key(event));
    }
  }

  show({ texts, spans, promptLength, spanNames, hallucinated }) {
    this.texts = texts;
    this.chosen = null;
    this.looked = null;
    this.roving = 0;
    this.coloured = [];
    const parts = [[], []];
    let line = null;
    this.elements = texts.map((text, token) => {
      const isNewSpan = token === 0 || spans[token] !== spans[token - 1];
      const isNewPart = token === 0 || token === promptLength;
      if (isNewPart || (texts[token - 1].includes("\n") && !text.includes("\n")) || line.childElementCount >= LINE_TOKENS) {
        line = make("div", { class: "line", role: "presentation" });
        let n = 0;
        for (; n < LINE_TOKENS && token + n < texts.length && spans[token + n] === spans[token]; n++) {
          if (n > 0 && texts[token + n - 1].includes("\n")) break;
        }
        // about the height that it will have, so that the scroll bar tells the truth
        line.style.containIntrinsicSize = `auto ${2.2 * Math.ceil(n / 11)}em`;
        parts[token < promptLength ? 0 : 1].push(line);
      }
      const span = spanNames[spans[token]];
      if (isNewSpan) line.append(make("span", { class: `span-name span-${span}`, "aria-hidden": "true" }, span));
      const element = make("span", {
        class: `token span-${span}${hallucinated?.[token] ? " hallucinated" : ""}`, role: "option", tabindex: "-1",
        "aria-selected": "false", "data-token": token, "aria-label": `${token} ${visible(text)}`,
      }, visible(text));
      line.append(element);
      return element;
    });
    this.parts.forEach((part, index) => {
      part.replaceChildren(...parts[index]);
      part.classList.toggle("long", texts.length > LONG);
    });
    this.#rove(0);
  }

  choose(token) {
    this.elements[this.chosen]?.setAttribute("aria-selected", "false");
    this.#rove(token ?? 0);
    this.chosen = token;
    this.elements[token]?.setAttribute("aria-selected", "true");
    if (token !== null) this.#reveal(token);
  }

  // Scrolls within the text alone; the page stays where it is.
  #reveal(token) {
    const element = this.elements[token];
    const part = element.closest(".tokens");
    if (part.scrollHeight <= part.clientHeight) return;
    const { top, bottom } = element.getBoundingClientRect();
    const box = part.getBoundingClientRect();
    if (top < box.top || bottom > box.bottom) part.scrollTop += top - box.top - part.clientHeight / 2;
  }

  look(token) {
    this.elements[this.looked]?.classList.remove("looked");
    this.elements[token]?.classList.add("looked");
    this.looked = token;
  }

  // found: {token, rgb, number} for the tokens that are coloured; all others lose theirs.
  // Lines in sight come first, the rest of a long text between two frames.
  colour(found) {
    clearTimeout(this.painting);
    const wanted = new Map(found.map((each) => [each.token, each]));
    const tokens = [...new Set([...this.coloured, ...wanted.keys()])];
    this.coloured = tokens;
    const hidden = tokens.length > PAINTED ? tokens.filter((token) => !this.#isInSight(token)) : [];
    const later = new Set(hidden);
    for (const token of tokens) if (!later.has(token)) this.#paint(token, wanted.get(token));
    this.#paintLater(hidden, wanted);
  }

  #paintLater(rest, wanted) {
    if (!rest.length) {
      this.coloured = [...wanted.keys()];
      return;
    }
    this.painting = setTimeout(() => {
      for (const token of rest.slice(0, PAINTED)) this.#paint(token, wanted.get(token));
      this.#paintLater(rest.slice(PAINTED), wanted);
    });
  }

  #paint(token, found) {
    const { style, dataset } = this.elements[token];
    style.backgroundColor = found ? css(found.rgb) : "";
    style.color = found ? inkOn(found.rgb) : "";
    if (found) dataset.number = found.number;
    else delete dataset.number;
  }

  #isInSight(token) {
    const line = this.elements[token].parentElement;
    const part = line.parentElement;
    return line.offsetTop < part.scrollTop + part.clientHeight && line.offsetTop + line.offsetHeight > part.scrollTop;
  }

  #at(event, act) {
    const element = event.target.closest("[data-token]");
    if (element) act(Number(element.dataset.token));
  }

  #focused(token) {
    this.#rove(token);
    this.onLook(token);
  }

  #rove(token) {
    this.elements[this.roving]?.setAttribute("tabindex", "-1");
    this.roving = token;
    this.elements[token]?.setAttribute("tabindex", "0");
  }

  #key(event) {
    const last = this.elements.length - 1;
    const moves = {
      ArrowLeft: this.roving - 1, ArrowRight: this.roving + 1, ArrowUp: this.roving - STEP,
      ArrowDown: this.roving + STEP, Home: 0, End: last,
    };
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.onPick(this.roving);
    } else if (moves[event.key] !== undefined) {
      event.preventDefault();
      this.elements[Math.min(last, Math.max(0, moves[event.key]))].focus();
    }
  }
}
