// The list of answers: filtered, ordered, and walked through with the arrow keys.

const LISTED = 200;

class Answers {
  constructor(overview, { list, filter, order, search, count, onPick }) {
    Object.assign(this, { answers: overview.answers, overview, list, filter, order, search, count, onPick });
    this.chosen = null;
    this.limit = LISTED;
    for (const control of [filter, order, search]) control.addEventListener("input", () => this.show());
    list.addEventListener("click", (event) => this.#clicked(event));
    list.addEventListener("keydown", (event) => this.#key(event));
    this.show();
  }

  choose(index) {
    this.chosen = index;
    for (const item of this.list.children) {
      const isChosen = Number(item.dataset.answer) === index;
      if (item.dataset.answer === undefined) continue;
      item.setAttribute("aria-selected", String(isChosen));
      item.setAttribute("tabindex", isChosen ? "0" : "-1");
    }
    if (!this.list.querySelector('[tabindex="0"]')) this.list.firstElementChild?.setAttribute("tabindex", "0");
  }

  show() {
    const found = this.#found();
    const items = found.slice(0, this.limit).map((index) => this.#item(index));
    this.list.replaceChildren(...items);
    const more = found.length > this.limit ? `; the first ${this.limit} are listed` : "";
    this.count.textContent = `${found.length} of ${this.answers.length}${more}`;
    this.choose(this.chosen);
  }

  #found() {
    const wanted = { all: () => true, hallucinated: (a) => a.label === 1, correct: (a) => a.label === 0, none: (a) => a.label === null };
    const words = this.search.value.toLowerCase();
    const has = (answer) => [answer.id, answer.question, answer.answer].some((text) => text.toLowerCase().includes(words));
    const found = [...this.answers.keys()].filter(
      (index) => wanted[this.filter.value](this.answers[index]) && has(this.answers[index]),
    );
    const score = (index) => this.answers[index].score ?? -Infinity;
    if (this.order.value === "high") found.sort((a, b) => score(b) - score(a) || a - b);
    if (this.order.value === "low") found.sort((a, b) => score(a) - score(b) || a - b);
    if (this.order.value === "long") found.sort((a, b) => this.answers[b].length - this.answers[a].length || a - b);
    return found;
  }

  #item(index) {
    const answer = this.answers[index];
    const item = make("li", { role: "option", tabindex: "-1", "aria-selected": "false", "data-answer": index });
    item.append(
      make("span", { class: "chips" }, ...chipsOf(answer, this.overview)),
      make("span", { class: "list-question" }, answer.question),
      make("span", { class: "list-answer" }, answer.answer || "(empty answer)"),
    );
    return item;
  }

  #clicked(event) {
    const item = event.target.closest("[data-answer]");
    if (item) this.onPick(Number(item.dataset.answer));
  }

  #key(event) {
    const item = event.target.closest("[data-answer]");
    const to = { ArrowDown: item?.nextElementSibling, ArrowUp: item?.previousElementSibling,
      Home: this.list.firstElementChild, End: this.list.lastElementChild }[event.key];
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.#clicked(event);
    } else if (to) {
      event.preventDefault();
      to.focus();
    }
  }
}

// What is known of an answer in a few words, always with its number.
function chipsOf(answer, overview) {
  const chips = [];
  const meansOutput = overview.labeller?.meaning !== "input";
  if (answer.label === 1) chips.push(make("span", { class: "chip bad" }, `1 ${meansOutput ? "hallucinated" : "input bad"}`));
  if (answer.label === 0) chips.push(make("span", { class: "chip good" }, `0 ${meansOutput ? "correct" : "input good"}`));
  if (answer.label === null && overview.labeller) chips.push(make("span", { class: "chip" }, "no label"));
  if (overview.detector) chips.push(make("span", { class: "chip score" }, scoreWords(answer)));
  if (answer.is_tested === false) chips.push(make("span", { class: "chip seen", title: "the detector may have been trained on this answer" }, "not held out"));
  return chips;
}

function scoreWords(answer) {
  if (answer.score === null) return "no score";
  const probability = answer.probability === null ? "" : `, p ${answer.probability.toFixed(2)}`;
  return `score ${short(answer.score)}${probability}`;
}
