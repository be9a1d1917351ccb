// The text of an answer, one element a token; the prompt and the answer stand apart.

const STEP = 10;

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
    const lines = [document.createDocumentFragment(), document.createDocumentFragment()];
    this.elements = texts.map((text, token) => {
      const line = lines[token < promptLength ? 0 : 1];
      const span = spanNames[spans[token]];
      if (token === 0 || spans[token] !== spans[token - 1]) {
        line.append(make("span", { class: `span-name span-${span}`, "aria-hidden": "true" }, span));
      }
      const classes = `token span-${span}${hallucinated?.[token] ? " hallucinated" : ""}`;
      const element = make("span", {
        class: classes, role: "option", tabindex: "-1", "aria-selected": "false", "data-token": token,
        "aria-label": `${token} ${visible(text)}`,
      });
      element.textContent = visible(text);
      line.append(element);
      if (text.includes("\n")) line.append(make("br"));
      return element;
    });
    this.parts.forEach((part, index) => part.replaceChildren(lines[index]));
    this.#rove(0);
  }

  choose(token) {
    this.elements[this.chosen]?.setAttribute("aria-selected", "false");
    this.#rove(token ?? 0);
    this.chosen = token;
    this.elements[token]?.setAttribute("aria-selected", "true");
  }

  look(token) {
    this.elements[this.looked]?.classList.remove("looked");
    this.elements[token]?.classList.add("looked");
    this.looked = token;
  }

  // found: {token, rgb, number} for the tokens that are coloured; all others lose theirs.
  colour(found) {
    for (const token of this.coloured) {
      const { style, dataset } = this.elements[token];
      style.backgroundColor = "";
      style.color = "";
      delete dataset.number;
    }
    for (const { token, rgb, number } of found) {
      const { style, dataset } = this.elements[token];
      style.backgroundColor = css(rgb);
      style.color = inkOn(rgb);
      dataset.number = number;
    }
    this.coloured = found.map(({ token }) => token);
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
